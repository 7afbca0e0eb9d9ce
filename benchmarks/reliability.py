"""What minillm keeps when something goes wrong: `python benchmarks/reliability.py [SECTION ...] [--count N]`.

Every section is a file of tests/reliability/ that tries one kind of mishap, so that the tests and this table do the
same things: the tests a few times, this table as often as `--count` says. A section ends with a table of what was
tried, how often, and the number of faults: files that were used although they were damaged, work that was lost,
tracebacks, hangs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

SECTIONS = {  # a file of tests/reliability/, with the number of trials that its table stands for
    "corruption": 2000,
    "kills": 200,
    "stops": 60,
    "disk": 1,
    "command_line": 2000,
    "ranks": 40,
    "long_runs": 1000,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--count", type=int, help="trials of each section; by default what its goal asks for")
    parser.add_argument("--out", type=Path, help="a folder that gets a Markdown file for each section")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no section is called {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    faults = 0
    for name in given.sections or SECTIONS:
        section = importlib.import_module(f"tests.reliability.{name}")
        started = time.perf_counter()
        rows = section.measure(given.count or SECTIONS[name])
        seconds = time.perf_counter() - started
        text = table(section.__doc__.splitlines()[0], rows, seconds)
        print(text, flush=True)
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            (given.out / f"reliability_{name}.md").write_text(text, encoding="utf-8")
        faults += sum(row.faults for row in rows)
    raise SystemExit(1 if faults else 0)


def table(title: str, rows: list, seconds: float) -> str:
    """A Markdown table of a section's rows."""
    lines = [f"# {title}", "", "| tried | times | faults | |", "|---|---|---|---|"]
    lines += [f"| {row.tried} | {row.count:,} | {row.faults:,} | {row.told} |" for row in rows]
    total = sum(row.count for row in rows), sum(row.faults for row in rows)
    lines += [f"| together | {total[0]:,} | **{total[1]:,}** | {seconds:.0f} s |", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
