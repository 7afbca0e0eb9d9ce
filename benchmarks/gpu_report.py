"""Check and time minillm on a GPU: `PYTHONPATH=. python benchmarks/gpu_report.py --out benchmarks/results/gpu`.

Correctness:
- Every kernel, in every dtype, is compared with the same formula in float64 NumPy, on awkward sizes; the memory that it
  writes to was full of NaN. The bound is relative to the error of NumPy in that dtype (gpu_parity.py).
- Gradients of the double kernels are compared with differences of their values, along random directions.
- Training losses, with kernels and without, are compared with those of the CPU; memory must not grow.
- NCCL with one rank: its operations, parallel training of every kind, and the whole trainer are compared with none.
- compute-sanitizer's memcheck and racecheck run the first of these, with every array an allocation of its own.

Speed:
- After a warm-up, CUDA events time launches that the GPU finds already queued, behind copies that keep it busy until
  then. The tables show medians of many samples, and their spread. Each launch works on memory that is in no cache
  (gpu_clock.py).
- The speed of a GPU depends on its clocks, which are left as they are. So each time is given as a fraction of a copy's
  bandwidth or of cuBLAS's rate, which the same process has measured at most minutes before, and comparisons with
  PyTorch take turns. nvidia-smi's clocks are noted.
- All arrays hold random numbers: on zeros a matrix product runs faster, because fewer bits change.

Each section, and each part of those that can run side by side, is a process of its own with a time limit; whatever
happens to it, its rows so far and the last line of its traceback are in OUT.json and OUT.md, written after each
section. The exit status is 1 if any check failed.

`--dry` runs the same code without a GPU, with tests/standin for CuPy, kernels in the emulator and tiny sizes. It shows
that the report works; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import gpu_attention
import gpu_clock
import gpu_parity
import gpu_ranks
import gpu_speed
import gpu_training
from gpu_job import FAIL, PASS, Job, verdict


class Section(NamedTuple):
    """A section: the function that runs, its time limit, and the parts that run side by side."""

    run: Callable
    seconds: float
    parts: tuple[str, ...] = ()
    checks: bool = False  # whether it must not fail

    def jobs(self, name: str) -> list[str]:
        """The names of the parts of a section, for `--only` and for the processes."""
        return [f"{name}:{part}" for part in self.parts] or [name]


def sanitizer(job: Job) -> None:
    """Run the parity checks once more, at small sizes, under each tool of compute-sanitizer."""
    table = job.table("compute-sanitizer", "tool", "processes", "errors", "verdict", "what it says first")
    program = find_sanitizer()
    if program is None:
        job.note("compute-sanitizer was not found on the PATH, in /usr/local/cuda or among Python's packages")
        return
    for tool in ("memcheck", "racecheck"):
        left = job.deadline - time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            logs = Path(folder, "logs")
            logs.mkdir()
            command = [program, "--tool", tool, "--target-processes", "all", "--log-file", f"{logs}/%p", sys.executable]
            command += [__file__, "--only", "parity", "--small", "--plain-memory", "--out", f"{folder}/report"]
            limit, output = left / (2 if tool == "memcheck" else 1), Path(folder, "output")
            _, ended = run_limited([*command, "--minutes", str(limit / 60)], limit, output)
            processes, errors, first = sanitizer_says(log.read_text() for log in logs.iterdir())
            printed = output.read_text(errors="replace")
        if not ended:
            job.note(f"{tool} was stopped after {limit:.0f} s")
        if processes:
            table.row(tool, processes, errors, verdict(not errors), first)
        else:
            job.note(f"{tool} came to no summary: {last_line_of(printed)}")


def find_sanitizer() -> str | None:
    """The path of compute-sanitizer."""
    packages = (Path(path) / "nvidia" for path in sys.path if path)
    bundled = (str(found) for folder in packages for found in folder.rglob("compute-sanitizer") if found.is_file())
    toolkit = shutil.which("compute-sanitizer", path="/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer")
    return shutil.which("compute-sanitizer") or toolkit or next(bundled, None)


def sanitizer_says(logs: Iterable[str]) -> tuple[int, int, str]:
    """The number of processes that printed a summary, all their errors, and the first lines about one of them."""
    processes = errors = 0
    first = ""
    for text in logs:
        summaries = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", text, re.MULTILINE)
        processes += bool(summaries)
        errors += sum(map(int, summaries))
        found = re.findall(r"^=+ ((?:Invalid|Error|Race|Out-of-range|Program hit|Fatal).*\n=+ .*)", text, re.MULTILINE)
        first = first or (re.sub(r"\s*\n=+\s*", "; ", found[0]) if found else "")
    return processes, errors, first


SECTIONS = {
    "machine": Section(gpu_clock.machine, 40),
    "parity": Section(gpu_parity.parity, 150, gpu_parity.PARTS, checks=True),
    "gradients": Section(gpu_parity.gradients, 60, gpu_parity.GRADIENT_PARTS, checks=True),
    "agreement": Section(gpu_training.agreement, 60, checks=True),
    "sanitizer": Section(sanitizer, 120),
    "kernels": Section(gpu_speed.kernels, 60, ("bfloat16", "float32")),
    "levels": Section(gpu_speed.levels, 30),
    "attention": Section(gpu_attention.attention, 60, checks=True),
    "training": Section(gpu_training.training, 60),
    "profile": Section(gpu_training.profile, 40),
    "nccl": Section(gpu_parity.nccl, 30, checks=True),
    "ranks": Section(gpu_ranks.ranks, 90, tuple(gpu_ranks.PARTS), checks=True),
    "compiled": Section(gpu_training.compiled, 150),
}
SIDE_BY_SIDE = {"parity", "gradients"}  # what is timed has the GPU to itself
LEAST = 5  # seconds, without which nothing is begun


# ---- one process ----------------------------------------------------------------------------------------------------


def run_limited(command: list[str], seconds: float, output: Path, threads: int = 0) -> tuple[int, bool]:
    """Run a command and all that it starts, at most so long; its status, and whether it came to its end."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MINILLM_THREADS"), str(threads))
    environment = {**os.environ, **(limits if threads else {})}
    with output.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            return process.wait(seconds), True
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait(), False


def run_job(name: str, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run a job's process; returns its tables and notes, its status, and how it ended if it failed."""
    if seconds < LEAST:
        return {"job": name, "status": "skipped", "error": "no time was left", "tables": [], "notes": []}
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder, "results.json"), Path(folder, "output")
        command = [sys.executable, __file__, "--job", name, str(file), str(seconds)]
        flags = ("dry", "small", "plain_memory")
        command += [f"--{flag.replace('_', '-')}" for flag in flags if getattr(options, flag)]
        threads = 2 if name.partition(":")[0] in SIDE_BY_SIDE else 0  # for NumPy's side of the checks; 0 is no limit
        status, ended = run_limited(command, seconds, output, threads)
        results = json.loads(file.read_text()) if file.is_file() else {"tables": [], "notes": []}
        printed = output.read_text(errors="replace")
    if not ended:
        how = {"status": "stopped", "error": f"still at work after {seconds:.0f} s"}
    elif status:
        how = {"status": "failed", "error": last_line_of(printed) or f"exit status {status}"}
    else:
        how = {"status": "done", "error": None}
    return {"job": name, **how, "log": printed if how["error"] else "", **results}


def last_line_of(printed: str) -> str:
    """The last line of a traceback, if there is one."""
    lines = [line for line in printed.splitlines() if line.strip()]
    of_error = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|Exit|Iteration)\b", line)]
    return (of_error or lines or [""])[-1][:500]


def do_job(name: str, file: str, seconds: str, options: argparse.Namespace) -> None:
    """Fill the tables of a job's section; this runs in the job's own process."""
    signal.alarm(math.ceil(float(seconds)) + 2)  # ends it even when nobody is left who would
    section, _, part = name.partition(":")
    job = Job(Path(file), float(seconds), options.dry, options.small, options.plain_memory)
    job.save()
    SECTIONS[section].run(job, *([part] if part else []))


# ---- the report -----------------------------------------------------------------------------------------------------


def run_section(name: str, jobs: list[str], seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run the jobs of a section and join what they found."""
    began, section = time.monotonic(), SECTIONS[name]
    workers = min(8, os.cpu_count() or 1) if name in SIDE_BY_SIDE else 1
    with ThreadPoolExecutor(workers) as pool:
        deadline = began + (seconds if options.dry else min(seconds, section.seconds))  # dry, g++ compiles at length
        results = list(pool.map(lambda job: run_job(job, deadline - time.monotonic(), options), jobs))
    tables: dict[str, dict[str, Any]] = {}
    for table in (table for result in results for table in result["tables"]):
        tables.setdefault(table["title"], {**table, "rows": []})["rows"] += table["rows"]
    ended_badly = [{key: r[key] for key in ("job", "status", "error")} for r in results if r["status"] != "done"]
    joined = {
        "section": name,
        "seconds": round(time.monotonic() - began, 1),
        "tables": list(tables.values()),
        "notes": [note for result in results for note in result["notes"]],
        "problems": ended_badly,
        "log": [r["log"] for r in results if r.get("log")],
    }
    if name == "parity" and jobs == section.jobs(name):
        launched = {instance for result in results for instance in result.get("launched", [])}
        count, missing = gpu_parity.coverage(launched)
        uncovered = gpu_parity.without_cases()
        rows = [["instances", count, ""], ["not launched", len(missing), ", ".join(missing)]]
        rows += [["operations without a case", len(uncovered), ", ".join(uncovered)]]
        joined["tables"].append({"title": "What was launched", "columns": ["what", "count", "which"], "rows": rows})
    joined["outcome"] = outcome(joined)
    return joined


def outcome(section: dict[str, Any]) -> str:
    """FAIL if a row says so or if a section of checks crashed or hung; else a word for how it ended."""
    cells = [cell for table in section["tables"] for row in table["rows"] for cell in row]
    statuses = {problem["status"] for problem in section["problems"]}
    broken = statuses & {"failed", "stopped"}
    if FAIL in cells or (broken and SECTIONS[section["section"]].checks):
        return FAIL
    if statuses:
        return "not all of it" if section["tables"] else min(statuses)
    return PASS if PASS in cells else "done"


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: how each section ended, then its tables."""
    rows = [
        [s["section"], s["outcome"], s["seconds"], "; ".join(map(problem_line, s["problems"]))]
        for s in report["sections"]
    ]
    lines = [f"# {report['title']}", "", f"`{report['command']}`", ""]
    lines += table_lines(["section", "outcome", "seconds", "problems"], rows)
    for section in report["sections"]:
        lines += ["", f"## {section['section']}"]
        for table in section["tables"]:
            lines += ["", f"**{table['title']}**", "", *table_lines(table["columns"], table["rows"])]
        lines += ["", *section["notes"]] if section["notes"] else []
    return "\n".join(lines) + "\n"


def problem_line(problem: dict[str, str]) -> str:
    """A line that names a job that did not finish, and says why."""
    return f"{problem['job']} {problem['status']}: {problem['error']}"


def table_lines(columns: list[str], rows: Iterable[list[Any]]) -> Iterator[str]:
    """A Markdown table."""
    for row in (columns, ["---"] * len(columns), *rows):
        yield f"| {' | '.join(map(cell, row))} |"


def cell(value: Any) -> str:
    """A cell of the table: a number with three digits, or text on one line."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def write(report: dict[str, Any], out: Path) -> None:
    """Write OUT.json, OUT.md, and to OUT.log the output of the processes that failed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    logs = [text for section in report["sections"] for text in section["log"]]
    plain = [{key: section[key] for key in section if key != "log"} for section in report["sections"]]
    out.with_suffix(".json").write_text(json.dumps({**report, "sections": plain}, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(report))
    out.with_suffix(".log").write_text("\n\n".join(logs))


def selected(only: list[str] | None) -> dict[str, list[str]]:
    """The jobs of each section: all, or those named (a section, or one of its parts)."""
    jobs = {name: section.jobs(name) for name, section in SECTIONS.items()}
    if only is None:
        return jobs
    known = {*jobs, *(job for names in jobs.values() for job in names)}
    if unknown := set(only) - known:
        choice = f"choose from {', '.join(sorted(known))}"
        raise SystemExit(f"gpu_report: --only: there is no section {sorted(unknown)[0]!r}; {choice}")
    chosen = {name: [job for job in names if name in only or job in only] for name, names in jobs.items()}
    return {name: names for name, names in chosen.items() if names}


def main(arguments: list[str] | None = None) -> int:
    """Run the sections, writing the report after each; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="where OUT.json, OUT.md and OUT.log go")
    parser.add_argument("--only", nargs="+", help="sections, or parts of them, such as parity:softmax")
    parser.add_argument("--minutes", type=float, default=8, help="for everything; what would begin later is skipped")
    parser.add_argument("--small", action="store_true", help="check the awkward sizes only, not the large ones")
    parser.add_argument("--dry", action="store_true", help="without a GPU, at tiny sizes")
    parser.add_argument("--plain-memory", action="store_true", help="no memory pool: each array an allocation")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job:
        do_job(*options.job, options)
        return 0
    end = time.monotonic() + 60 * options.minutes
    title = "DRY RUN of the GPU report: its times mean nothing" if options.dry else "minillm on a GPU"
    shown = [f"--{flag}" for flag in ("dry", "small") if getattr(options, flag)]
    shown += ["--only", *options.only] if options.only else []
    report = {"title": title, "command": " ".join(["python benchmarks/gpu_report.py", *shown]), "sections": []}
    for name, jobs in selected(options.only).items():
        section = run_section(name, jobs, end - time.monotonic(), options)
        report["sections"].append(section)
        write(report, options.out)
        print(f"{name}: {section['outcome']}, {section['seconds']} s", flush=True)
        for problem in section["problems"]:
            print(f"    {problem_line(problem)}", flush=True)
    return int(any(section["outcome"] == FAIL for section in report["sections"]))


if __name__ == "__main__":
    sys.exit(main())
