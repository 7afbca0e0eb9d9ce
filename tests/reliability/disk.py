"""Disks and folders that fail: training goes on where it can, and says what was not written

Each trial runs a command of minillm in a process of its own, in which a disk, a folder or a compiler fails. It ends so:
- everything is there in the end, or the output says what is not, and the command has another status than 0 if a
  checkpoint or its result is missing;
- an error is one sentence that names the file or its folder;
- a run that has saved can be resumed, and then has the weights of one that nothing happened to, bit for bit;
- a fault: anything else, such as a traceback, a hang, or a result that is missing without a word.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import numpy as np
import safetensors.numpy  # noqa: F401

import minillm.training.trainer  # noqa: F401
from minillm import cli
from minillm.checkpoint import load_checkpoint
from minillm.training.run import Run
from tests.reliability.faults import Disk, Ended, command, in_child
from tests.reliability.row import Row

ERRORS = (errno.ENOSPC, errno.EROFS, errno.ENOENT, errno.EACCES, errno.EIO, errno.EDQUOT)
STEPS = 4
MODEL = "--layers 1 --channels 16 --heads 2 --context 16 --batch-size 2 --threads 1 --no-progress".split()
LENGTH = f"--steps {STEPS} --warmup 1 --eval-every 2 --eval-batches 1 --sample-every 0".split()
TEXT = "The cat sat on the mat and the dog sat on the log;\n" * 40


class Place(NamedTuple):
    """A folder with what the commands need: a text, shards, and a run that nothing happened to."""

    folder: Path
    text: Path
    shards: Path
    run: Path

    def train(self, out: Path) -> list[str]:
        """The command that trains the run."""
        return ["train", "--data", str(self.text), "--tokenizer", "char", "--out", str(out), *MODEL, *LENGTH]


@contextlib.contextmanager
def place(folder: Path) -> Iterator[Place]:
    """Prepare a folder for the trials."""
    made = Place(folder, folder / "text.txt", folder / "shards", folder / "run")
    made.text.write_text(TEXT, encoding="utf-8")
    for words in (
        made.train(made.run),
        ["tokenizer", "encode", str(made.run / "tokenizer"), "--data", str(made.text), "--out", str(made.shards)],
    ):
        ended = command(words)
        assert ended.status == 0, ended.output
    yield made


# --- training ------------------------------------------------------------------------------------------------------


def weights_differ(run: Path, other: Path) -> bool:
    """True if the last checkpoints of two runs have other weights or moments."""
    ours, theirs = (load_checkpoint(Run.open(path).checkpoint("last")) for path in (run, other))
    pairs = [(ours.model, theirs.model), (ours.optimizer, theirs.optimizer)]
    return any(a.keys() != b.keys() or any(not np.array_equal(a[k], b[k]) for k in a) for a, b in pairs)


def faults_of_training(here: Place, out: Path, ended: Ended, *names: str) -> list[str]:
    """What is wrong with a training that something happened to, and with the run that it has left."""
    found = ended.faults(str(out), *names)
    if found:
        return found
    if ended.status == 0:
        lines = [record["step"] for record in Run.open(out).metrics()] if (out / "config.json").exists() else []
        if lines != list(range(1, STEPS + 1)) and "metrics" not in ended.output:
            found.append(f"the metrics have the steps {lines}: {ended.output}")
        if not (out / "loss.png").exists() and "loss curve is not drawn" not in ended.output:
            found.append(f"there is no picture, and nothing was said: {ended.output}")
        if not (out / "checkpoints" / "last.safetensors").exists():
            return [*found, f"no checkpoint was saved, but the status is 0: {ended.output}"]
    if (out / "config.json").exists():
        again = command(["train", "--resume", str(out), "--no-progress"])
        if again.status:
            return [*found, f"it cannot be resumed: {again.output}\nafter: {ended.output}"]
    else:
        shutil.rmtree(out, ignore_errors=True)
        again = command(here.train(out))
        if again.status:
            return [*found, f"it cannot be started again: {again.output}\nafter: {ended.output}"]
    if weights_differ(out, here.run):
        found.append(f"after resuming, the weights are others; before: {ended.output}")
    if left := [*out.rglob("*.tmp"), *out.parent.glob(f".{out.name}*.tmp")]:
        found.append(f"files are left over: {left}")
    return found


def failing_calls(here: Place, errors: int, every: int = 1) -> tuple[int, list[str]]:
    """Every call (or each `every`-th) of a training that changes the disk fails, once or from there on."""
    out = here.folder / "calls"
    disk = Disk(out)

    def counted() -> None:
        with disk.watched():
            cli.main(here.train(out))
        print("calls", disk.calls)

    calls = int(in_child(counted).output.split()[-1])
    shutil.rmtree(out)
    count, found = 0, []
    for at in range(0, calls, every):
        for number in range(errors):
            error, stays = ERRORS[(at // every + number) % len(ERRORS)], bool((at // every + number) % 2)

            def trained(at: int = at, error: int = error, stays: bool = stays) -> None:
                with Disk(out, at, error, stays).watched():
                    cli.main(here.train(out))

            wrong = faults_of_training(here, out, in_child(trained))
            found += [f"call {at} fails with {os.strerror(error)}{', and all after it' * stays}: {w}" for w in wrong]
            count += 1
            shutil.rmtree(out, ignore_errors=True)
    return count, found


def at_step(step: int, do: Callable[[], Any]) -> Callable[[], None]:
    """A function that arranges that something happens in a training after a step, before anything is written of it."""

    def arrange() -> None:
        real = Run.add_metrics

        def add(self: Run, record: dict[str, Any]) -> None:
            if record["step"] == step:
                do()
            real(self, record)

        Run.add_metrics = add  # type: ignore[method-assign] - the child process alone sees it

    return arrange


def short_files() -> None:
    """Let no file grow beyond 3 KB from now on, which is less than a checkpoint."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


def mishaps_while_training(here: Place) -> list[tuple[str, int, list[str]]]:
    """Folders that go and files that cannot grow while a run is trained, at each of its steps."""
    rows = []
    out = here.folder / "mishap"
    for name, do in {
        "the run's folder is deleted": lambda: shutil.rmtree(out),
        "its checkpoints are deleted": lambda: shutil.rmtree(out / "checkpoints"),
        "its folder is moved away": lambda: os.rename(out, here.folder / "moved"),
        "files cannot grow any more": short_files,
    }.items():
        found = []
        for step in range(1, STEPS + 1):
            ended = command(here.train(out), at_step(step, do))
            found += [f"{name} at step {step}: {wrong}" for wrong in faults_of_training(here, out, ended)]
            shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(here.folder / "moved", ignore_errors=True)
        rows.append((name, STEPS, found))
    return rows


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """A disk of this size at a folder; False where this user may not mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "minillm", str(folder)], capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def real_disks(here: Place) -> list[tuple[str, int, list[str]]]:
    """Disks that are full, become full, or are remounted read-only while a run is trained."""

    def fill(disk: Path) -> None:
        with contextlib.suppress(OSError), open(disk / "filling", "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def protect(disk: Path) -> None:
        for way in (["--bind", str(disk)], ["-o", "remount,bind,ro"]):  # over it: the lock is open there for writing
            subprocess.run(["mount", *way, str(disk)], check=True)

    rows, disk = [], here.folder / "disk"
    for name, do in (("the disk becomes full", fill), ("the disk is remounted read-only", protect)):
        found, count = [], 0
        for step in range(1, STEPS + 1):
            with small_disk(disk, "4m") as mounted:
                if not mounted:
                    continue
                out, count = disk / "run", count + 1
                ended = command(here.train(out), at_step(step, lambda do=do: do(disk)))  # type: ignore[misc]
                if ended.status == 0 and step < STEPS - 1:
                    found.append(f"{name} at step {step}: the status is 0: {ended.output}")
                if do is protect:
                    subprocess.run(["umount", str(disk)], check=True)
                (disk / "filling").unlink(missing_ok=True)
                found += [f"{name} at step {step}: {wrong}" for wrong in faults_of_training(here, out, ended)]
        rows.append((name, count, found))
    found, sizes = [], ("4k", "8k", "16k", "32k", "64k", "128k")
    for size in sizes:
        with small_disk(disk, size) as mounted:
            if mounted:
                found += [f"a disk of {size}: {w}" for w in command(here.train(disk / "run")).faults(str(disk))]
    rows.append(("the disk is too small from the start", len(sizes), found))
    return rows


def shards_in_use(here: Place) -> tuple[int, list[str]]:
    """The shards that a run is trained on are cut short, exchanged or deleted meanwhile."""
    [shard] = here.shards.glob("train_*.bin")
    whole, out = shard.read_bytes(), here.folder / "on-shards"
    words = ["train", "--data", str(here.shards), "--tokenizer", str(here.run / "tokenizer"), "--out", str(out)]
    found = []
    mishaps: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
        "cut to its header": (lambda: os.truncate(shard, 64), (2,)),
        "cut to nothing": (lambda: os.truncate(shard, 0), (2,)),
        "cut to half": (lambda: os.truncate(shard, len(whole) // 2), (0, 2)),
        "exchanged": (lambda: (shard.unlink(), shard.write_bytes(whole[::-1])), (0,)),  # the old one is still open
        "written over": (lambda: shard.write_bytes(whole[:64] + bytes(len(whole) - 64)), (0, 2)),
        "deleted": (shard.unlink, (0,)),
    }
    for name, (do, wanted) in mishaps.items():
        ended = command([*words, *MODEL, *LENGTH], at_step(1, do))
        wrong = ended.faults(shard.name)
        if not wrong and ended.status not in wanted:
            wrong = [f"status {ended.status}: {ended.output}"]
        found += [f"a shard that is {name}: {one}" for one in wrong]
        shard.unlink(missing_ok=True)
        shard.write_bytes(whole)
        shutil.rmtree(out, ignore_errors=True)
    return len(mishaps), found


# --- other commands ------------------------------------------------------------------------------------------------


def writers(here: Place, out: Path) -> dict[str, list[str]]:
    """A command for each kind of file that is written, with its place in or at `out`."""
    run, text = str(here.run), str(here.text)
    texts = here.folder / "texts"
    texts.mkdir(exist_ok=True)
    for number in range(12):
        (texts / f"{number}.txt").write_text(f"{number} {TEXT}", encoding="utf-8")
    commands = {
        "convert": ["convert", run, str(out / "model")],
        "tokenizer train": ["tokenizer", "train", str(out / "tokenizer"), "--data", text, "--vocab-size", "270"],
        "tokenizer encode": ["tokenizer", "encode", f"{run}/tokenizer", "--data", text, "--out", str(out / "shards")],
        "data build": ["data", "build", str(texts), "--out", str(out / "corpus"), "--skip", "clean,dedup"],
        "data extract": ["data", "extract", text, "--out", str(out / "found.jsonl"), "--processes", "1"],
        "step": ["step", run, "--text", "the cat", "--out", str(out / "step.html")],
        "eval": ["eval", run, "--data", text, "--out", str(out / "eval.json")],
        "exercise start": ["exercise", "start", "softmax-forward", "--folder", str(out / "exercises")],
    }
    commands["data build"] += ["--validation", "0.4", "--vocab-size", "270", "--processes", "1"]
    return commands


def files_below(folder: Path) -> list[Path]:
    """The files of a folder that have something in them."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def other_commands(here: Place, errors: int, every: int = 1) -> list[tuple[str, int, list[str]]]:
    """Every call that changes the disk fails in every other command that writes."""
    rows, out = [], here.folder / "written"
    for name in writers(here, out):
        words = writers(here, out)[name]
        out.mkdir()
        disk = Disk(out)

        def counted(words: list[str] = words, disk: Disk = disk) -> None:
            with disk.watched():
                cli.main(words)
            print("calls", disk.calls)

        whole = in_child(counted)
        found = whole.faults()
        names = [path.relative_to(out) for path in files_below(out)]
        if whole.status or not names:
            rows.append((f"`{name}`", 1, [f"`{name}` does not work at all: {whole.output}"]))
            shutil.rmtree(out)
            continue
        calls, count = int(whole.output.split()[-1]), 0
        for at in range(0, calls, every):
            for number in range(errors):
                shutil.rmtree(out)
                out.mkdir()
                error, stays = ERRORS[(at // every + number) % len(ERRORS)], bool((at // every + number) % 2)

                def write(at: int = at, error: int = error, stays: bool = stays, words: list[str] = words) -> None:
                    with Disk(out, at, error, stays).watched():
                        cli.main(words)

                ended = in_child(write)
                wrong = ended.faults(str(out), here.folder.name)
                there = [path.relative_to(out) for path in files_below(out)]
                if ended.status == 0 and there != names:
                    wrong.append(f"the status is 0, and of {names} only {there} is there: {ended.output}")
                if left := [path for path in there if path.name.endswith(".tmp")]:
                    wrong.append(f"files are left over: {left}")
                found += [f"`{name}`, call {at} fails with {os.strerror(error)}: {one}" for one in wrong]
                count += 1
        for limit in (0, 100, 1000):  # bytes, that no file may grow beyond
            shutil.rmtree(out)
            out.mkdir()

            def limited(limit: int = limit) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

            found += [f"`{name}` with files up to {limit} bytes: {w}" for w in command(words, limited).faults(str(out))]
            count += 1
        shutil.rmtree(out)
        rows.append((f"`{name}`", count, found))
    return rows


def files_that_are_none(here: Place, every: int = 1) -> tuple[int, list[str]]:
    """A pipe, a device, a socket and a folder where a file is wanted, to read or to write; each `every`-th trial."""
    odd = here.folder / "odd"
    odd.mkdir()
    os.mkfifo(odd / "pipe.jsonl")
    os.mkfifo(odd / "pipe.gguf")
    (odd / "a-folder.txt").mkdir()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(odd / "socket"))
    run, out, model = str(here.run), str(odd / "out"), odd / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        os.mkfifo(model / name)
    broken = odd / "broken"
    shutil.copytree(here.run, broken)
    for path in (broken / "checkpoints").iterdir():
        path.unlink()
        os.mkfifo(path)
    paths = [str(odd / name) for name in ("pipe.jsonl", "socket", "a-folder.txt")] + ["/dev/zero", "/dev/stdin"]
    trials = [
        words
        for path in paths
        for words in (
            ["train", "--data", path, "--out", out, *MODEL, *LENGTH],
            ["train", "--data", str(here.text), "--tokenizer", path, "--out", out, *MODEL, *LENGTH],
            ["train", "--data", str(here.text), "--init", path, "--out", out, *LENGTH],
            ["train", "--resume", path],
            ["tokenizer", "train", f"{out}-tokenizer", "--data", path],
            ["tokenizer", "encode", path, "the cat"],
            ["eval", run, "--data", path],
            ["sample", path],
            ["convert", path, out],
            ["describe", path],
            ["doctor", path],
            ["diff", path, run],
            ["finetune", "sft", run, "--data", path, "--out", out],
            ["finetune", "dpo", run, "--data", path, "--out", out],
            ["data", "build", path, "--out", f"{out}-corpus"],
            ["data", "clean", path, "--out", f"{out}.jsonl"],
            ["data", "report", path],
        )
    ]
    trials += [[*words, "--out", path] for path in (*paths[:2], "/dev/zero") for words in (
        ["step", run, "--text", "the cat"], ["eval", run, "--data", str(here.text)],
        ["train", "--data", str(here.text), *MODEL, *LENGTH], ["data", "build", str(here.text)],
    )]  # fmt: skip
    trials += [["sample", str(place)] for place in (model, broken, odd / "pipe.gguf", model / "model.safetensors")]
    trials += [["train", "--resume", str(broken)], ["data", "build", str(odd / "missing.txt"), "--out", f"{out}-2"]]
    found, trials = [], trials[::every]
    for words in trials:
        ended = command(words, seconds=20)
        wrong = ended.faults(*[word for word in words if "/" in word])
        if not ended.status and "--out" in words:
            wrong.append(f"it was not refused: {ended.output}")
        found += [f"`minillm {' '.join(words)}`: {one}" for one in wrong]
    if left := [path.name for path in odd.glob("out*")]:
        found.append(f"refused commands have left {left}")
    if not all((odd / name).is_fifo() for name in ("pipe.jsonl", "pipe.gguf")):
        found.append("a pipe was replaced by a file")
    shutil.rmtree(odd)
    return len(trials), found


def places_of_the_user(here: Place) -> tuple[int, list[str]]:
    """HOME, TMPDIR and the folders of caches are unset, missing, or no folders, while a run is trained."""
    nowhere, file = "/nonexistent/place", str(here.text)
    names = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR")
    trials = [{name: value} for name in names for value in (None, nowhere, file)]
    trials += [dict.fromkeys(names, value) for value in (nowhere, file)]
    found = []
    for trial in trials:
        out = here.folder / "users"

        def set_them(trial: dict[str, str | None] = trial) -> None:
            tempfile.tempdir = None
            for name, value in trial.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

        ended = command(here.train(out), set_them)
        wrong = ended.faults() if ended.status == 0 else [ended.output]
        wrong += [] if (out / "loss.png").exists() else [f"no picture: {ended.output}"]
        found += [f"{trial}: {one}" for one in wrong]
        shutil.rmtree(out, ignore_errors=True)
    return len(trials), found


def measure(count: int) -> list[Row]:
    """Run all trials; each call that can fail does so with `count` of the six kinds of errors."""
    from tests.reliability import compilers

    with tempfile.TemporaryDirectory() as name, place(Path(name).resolve()) as here:
        found = [("a call of a training fails", *failing_calls(here, count))]
        found += mishaps_while_training(here)
        found += real_disks(here)
        found.append(("a shard is changed while it is read", *shards_in_use(here)))
        found += other_commands(here, count)
        found.append(("a pipe, device, socket or folder as a file", *files_that_are_none(here)))
        found.append(("HOME, TMPDIR and caches that are not there", *places_of_the_user(here)))
        found += compilers.trials(here.folder)
    for _, _, faults in found:
        print(*faults, sep="\n", end="\n" if faults else "")
    return [Row(tried, number, len(faults), "") for tried, number, faults in found]
