"""Runs that were killed: resumed, they end as if nothing had happened

Each trial trains in a process of its own, which SIGKILL ends: half of them within a write (before or after a file gets
its name, a folder is made, a link, or between bytes and disk, where the file is left half as long), the others at a
random time. The run is then resumed, or begun again where no run directory was there yet; a third of the trials are
killed once more on the way. A trial is a fault if the weights, the moments, the state or the metrics differ from those
of a run that was never killed, by a single bit, or if anything is left behind that a run does not have.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minillm import files
from minillm.checkpoint import load_checkpoint
from minillm.cli import main
from minillm.training.run import Run
from tests.reliability.row import Row

SETTINGS = "--preset nano --steps 6 --warmup 1 --eval-every 2 --eval-batches 1 --sample-every 0 --threads 1".split()
CLOCKS = ("seconds", "tokens_per_s", "crc32")  # what differs between two runs in any case
WRITES_OF_A_RUN = 40  # about
WRITES = ("replace", "rename", "link", "mkdir", "unlink")  # of os, by which files appear and go


def in_a_process(do: Callable[[], Any], seconds: float | None = None) -> bool:
    """Do something in a forked process, and kill that after some seconds. True if it came to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                do()
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise AssertionError("the training ended with an error")
    return os.WIFEXITED(status)


def die_in_write(number: int, before: bool) -> None:
    """Let this process be killed at its write of this number: before it, or after it, or with half of the bytes."""
    left = iter(range(number, -1, -1))

    def deadly(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            now = next(left, 1) == 0
            if now and before:
                if write is sync and Path(arguments[0]).is_file():
                    os.truncate(arguments[0], Path(arguments[0]).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            result = write(*arguments, **options)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    sync = files.sync
    files.sync = deadly(sync)  # type: ignore[assignment]
    for name in WRITES:
        setattr(os, name, deadly(getattr(os, name)))


def train(folder: Path, out: Path) -> None:
    """Begin the run, or resume it if it is there; no picture, which takes longer than the training."""
    Run.plot = lambda run: run.folder / "loss.png"  # type: ignore[method-assign]
    if out.exists():
        main(["train", "--resume", str(out)])
    else:
        main(["train", *SETTINGS, "--data", str(folder / "text.txt"), "--out", str(out)])


def result(out: Path) -> Any:
    """All that a run ends with, less what a clock says."""
    checkpoints = [load_checkpoint(out / "checkpoints" / f"{name}.safetensors") for name in ("last", "best")]
    arrays = [{name: array.tobytes() for name, array in (one.model | one.optimizer).items()} for one in checkpoints]
    states = [{key: value for key, value in one.state.items() if key != "seconds"} for one in checkpoints]
    metrics = [{k: v for k, v in record.items() if k not in CLOCKS} for record in Run.open(out).metrics()]
    return arrays, states, metrics, sorted(str(path.relative_to(out)) for path in out.rglob("*"))


def trials(count: int, folder: Path, seed: int = 0) -> dict[str, list[str]]:
    """Kill runs `count` times; returns how each trial ended, for each kind of kill: "equal", or a fault.

    A run that came to its end before it was to be killed is "too late", which is no trial.
    """
    (folder / "text.txt").write_text("to be or not to be, that is the question. " * 40)
    for name in ("warm", "whole"):  # the first loads what the processes of the trials then have
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            train(folder, folder / name)
        duration = time.perf_counter() - started
    shutil.rmtree(folder / "warm")
    whole, rng = result(folder / "whole"), np.random.default_rng(seed)
    ended: dict[str, list[str]] = {"within a write": [], "at a random time": []}
    for number in range(count):
        kind, out = list(ended)[number % 2], folder / f"run{number}"
        survived = []
        for attempt in range(1 + (number % 3 == 0)):
            if kind == "within a write":
                moment, before = int(rng.integers(WRITES_OF_A_RUN // (1 + 2 * attempt))), bool(rng.integers(2))

                def killed(moment: int = moment, before: bool = before, out: Path = out) -> None:
                    die_in_write(moment, before)
                    train(folder, out)

                survived.append(in_a_process(killed))
            else:
                seconds = float(rng.uniform(0, duration))
                survived.append(in_a_process(lambda out=out: train(folder, out), seconds))  # type: ignore[misc]
        end = outcome(folder, out, whole)
        ended[kind].append("too late" if all(survived) and end == "equal" else end)
        shutil.rmtree(out)
    return ended


def outcome(folder: Path, out: Path, whole: Any) -> str:
    """Train a run to its end, and compare it with one that was never killed."""
    try:
        in_a_process(lambda: train(folder, out))
    except AssertionError as error:
        return str(error)
    parts = dict(zip(("weights", "states", "metrics", "files"), zip(result(out), whole, strict=True), strict=True))
    different = [name for name, (found, expected) in parts.items() if found != expected]
    left = sorted(path.name for path in folder.iterdir() if path.name not in (out.name, "whole", "text.txt"))
    return "equal" if not different + left else f"others: {', '.join(different + left)}"


def measure(count: int) -> list[Row]:
    """The table: a row for each kind of kill."""
    folder = Path(tempfile.mkdtemp())
    try:
        ended = trials(count, folder)
    finally:
        shutil.rmtree(folder)
    rows = []
    for kind, ends in ended.items():
        results = [one for one in ends if one != "too late"]
        faults = [one for one in results if one != "equal"]
        told = "; ".join(sorted(set(faults))) or "all ended equal to the last bit, and nothing was left behind"
        rows.append(Row(f"killed {kind}", len(results), len(faults), told))
    return rows
