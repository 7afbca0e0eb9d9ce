"""Ranks that are killed, stopped, slow or talked to by strangers: all end, or all go on.

A rank that is killed must end all others within seconds, each with one sentence that names it. A rank that is stopped
is named by the launcher, and the training goes on with it. Whatever else connects to the port of the ranks, and however
the clock is set, no training may notice it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minillm.models.gpt2 import GPT2Config
from minillm.parallel import shared_memory
from minillm.training import TrainConfig, train
from tests.parallel.test_faults import END, Ended, Started, free_port, shared_memory_names, steps
from tests.reliability.row import Row

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
DIVISIONS: dict[str, dict[str, int]] = {
    "data parallel": {"dp": 2},
    "ZeRO 3": {"dp": 2, "zero": 3},
    "tensor parallel": {"tp": 2},
    "pipeline": {"pp": 2},
}
TEXT = "".join(f"{i} times {i} is {i * i}.\n" for i in range(300))


def measure(count: int) -> list[Row]:
    """The table's rows: `count` ranks are killed, and the other mishaps come a tenth as often."""
    few = max(1, count // 10)
    with tempfile.TemporaryDirectory(prefix="minillm-ranks-") as name:
        folder = Path(name)
        (folder / "text.txt").write_text(TEXT)
        rows = [killed(folder, count), clock_steps(folder, few), slow(folder, few), strangers(folder, 25 * count)]
        rows += [one_port(folder, few), stopped(folder, few), launcher_killed(folder, few), told_once(folder, few)]
        return [*rows, no_room(few)]


def counted(tried: str, count: int, trial: Callable[[int], Any], told: str) -> Row:
    """A row for `trial(number)`, which raises AssertionError where something went wrong."""
    faults = 0
    for number in range(count):
        try:
            trial(number)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            faults += 1
            print(f"{tried}, number {number}: {error}", file=sys.stderr)
    return Row(tried, count, faults, told)


# --- ranks without a launcher --------------------------------------------------------------------------------------


def train_on_ranks(communicator: Any, folder: Path, out: str, division: dict[str, int]) -> None:
    """A training that goes on until it is stopped."""
    config = TrainConfig(
        data=str(folder / "text.txt"),
        out=folder / out,
        tokenizer="char",
        model=GPT2Config(vocab_size=256, context=8, layers=2, heads=2, channels=16),
        steps=1_000_000,
        batch_size=4,
        warmup=3,
        eval_every=20,
        eval_batches=1,
        sample_every=0,
        threads=1,
        **division,
    )
    train(config, communicator=communicator, progress=False)


def killed(folder: Path, count: int) -> Row:
    """A rank of a training gets a signal at some moment: while ranks meet, in a step, or while they save."""
    before, draw, seconds = shared_memory_names(), np.random.default_rng(0), []
    ways = list(itertools.product(DIVISIONS, SIGNALS, (0, 1)))
    saved = 0

    def trial(number: int) -> None:
        nonlocal saved
        division, sign, rank = ways[(7 * number) % len(ways)]  # 7 and 48 have no divisor in common: all come in turn
        out = folder / f"killed{number}"
        meeting = number % 4 == 0  # a rank that finds no rank 0 looks for it until the timeout
        seconds_to_meet = 5.0 if meeting else 15.0
        job = Started(folder, train_on_ranks, 2, folder, out.name, DIVISIONS[division], timeout=seconds_to_meet)
        if not meeting:
            _until(lambda: _lines(out) > 3, 60)
        time.sleep(float(draw.random()) * 0.3)
        os.kill(job.processes[rank].pid, sign)
        started = time.monotonic()
        found = job.wait(30.0)
        seconds.append(time.monotonic() - started)
        where = f"{division}, {sign.name} to rank {rank}: {found}"
        assert seconds[-1] < END, where
        if all(one.status == 0 for one in found):  # SIGTERM and Ctrl-C stop a training, which saves
            assert sign in (signal.SIGTERM, signal.SIGINT), where
            assert (out / "checkpoints/last.safetensors").exists(), where
            saved += 1
        else:
            assert found[rank].status != 0, where
            assert found[1 - rank].status, where
            assert "Traceback" not in found[1 - rank].error, where
            assert found[1 - rank].error.count("\n") <= 1, where

    row = counted("a rank gets one of 6 signals: DP, ZeRO, TP, PP", count, trial, "")
    left = shared_memory_names() - before
    told = f"all ended within {max(seconds):.1f} s; {saved} of those that were asked to stop had saved"
    return row._replace(faults=row.faults + len(left), told=told)


def jumping_clock(communicator: Any) -> None:
    """Steps during which the time of day jumps a day forwards, a year back, and so on."""
    jumps, real = itertools.cycle((86400.0, -31e6, 0.0, 3e9, -1e9)), time.time
    time.time = lambda: real() + next(jumps)  # type: ignore[assignment]
    steps(communicator, count=300)


def clock_steps(folder: Path, count: int) -> Row:
    def trial(number: int) -> None:
        found = Started(folder, jumping_clock, 2, timeout=10.0).wait(60.0)
        assert found == [Ended(0, "")] * 2, found

    return counted("the clock jumps by hours and years", count, trial, "300 steps each, 2 ranks")


def one_slow_step(communicator: Any) -> None:
    shared_memory.SLOW = 0.5
    steps(communicator, lambda _: time.sleep(1.5), count=6)


def slow(folder: Path, count: int) -> Row:
    """A step of rank 1 takes longer than the time after which the others name it; nobody is ended."""

    def trial(number: int) -> None:
        found = Started(folder, one_slow_step, 3, timeout=30.0).wait(60.0)
        assert [one.status for one in found] == [0, 0, 0], found
        assert "rank 0 has waited 0.5 s for ranks 1" in found[0].error, found
        assert found[1].error == found[2].error == "", found

    return counted("a rank is slow", count, trial, "named once, by the first that waits")


def until_there(communicator: Any, file: Path) -> None:
    """Steps until there is such a file; another shows that they have begun."""
    steps(communicator, count=2)
    file.with_suffix(f".{communicator.rank}").touch()
    while not communicator.max_of(float(file.exists()))[0]:
        steps(communicator, count=2)


def strangers(folder: Path, count: int) -> Row:
    """Connections that send noise, half a greeting or nothing, while ranks work."""
    port, stop = free_port(), folder / "strangers.stop"
    job = Started(folder, until_there, 2, stop, port=port, timeout=30.0)
    _until(lambda: stop.with_suffix(".0").exists(), 60)
    draw, open_ones = np.random.default_rng(1), []

    def trial(number: int) -> None:
        with contextlib.suppress(ConnectionError):
            stranger = socket.create_connection(("127.0.0.1", port), 5.0)
            if number % 3:
                stranger.sendall(draw.bytes(int(draw.integers(1, 300))))
            if number % 50:
                stranger.close()
            else:
                open_ones.append(stranger)  # it stays silent

    row = counted("a stranger connects to the port during training", count, trial, "noise, silence, half greetings")
    stop.touch()
    found = job.wait(60.0)
    for stranger in open_ones:
        stranger.close()
    return row._replace(faults=row.faults + (found != [Ended(0, "")] * 2))


def one_port(folder: Path, count: int) -> Row:
    """A second job at the port of the first is refused, and the first does not notice."""

    def trial(number: int) -> None:
        port, stop = free_port(), folder / f"port{number}.stop"
        first = Started(folder, until_there, 2, stop, port=port, timeout=30.0)
        _until(lambda: stop.with_suffix(".0").exists(), 60)
        second = Started(folder, steps, 2, port=port, changes={rank: {"MINILLM_TOKEN": "other"} for rank in range(2)})
        refused = second.wait(30.0)
        stop.touch()
        assert f"rank 0 cannot listen at 127.0.0.1:{port}" in refused[0].error, refused
        found = first.wait(30.0)
        assert found == [Ended(0, "")] * 2, found

    return counted("two trainings at one port", count, trial, "the second is refused, the first goes on")


# --- ranks of a launcher -------------------------------------------------------------------------------------------


def start(folder: Path, out: str, *more: str) -> subprocess.Popen:
    """Start `minillm train --nproc 2`, for a great many steps."""
    small = "--tokenizer char --layers 1 --heads 2 --channels 16 --context 8 --batch-size 4 --sample-every 0"
    command = [sys.executable, "-m", "minillm", "train", "--preset", "nano", *small.split(), "--nproc", "2"]
    command += ["--data", str(folder / "text.txt"), "--out", str(folder / out), "--eval-every", "1000000"]
    return subprocess.Popen(
        [*command, "--steps", "1000000", "--warmup", "3", *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MINILLM_THREADS": "1"},
    )


def stopped(folder: Path, count: int) -> Row:
    """SIGSTOP to a rank, and SIGCONT when the launcher has told; then Ctrl-C, which saves."""
    seconds = []

    def trial(number: int) -> None:
        rank, out = number % 2, folder / f"stopped{number}"
        process = start(folder, out.name)
        try:
            _until(lambda: _lines(out) > 3, 60)
            pid = _children(process.pid)[rank]
            os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            assert process.stderr is not None
            line = process.stderr.readline()
            seconds.append(time.monotonic() - began)
            assert f"rank {rank} (process {pid}) has been stopped" in line, line
            os.kill(pid, signal.SIGCONT)
            assert process.stderr.readline() == f"launch: rank {rank} goes on\n"
            before = _lines(out)
            _until(lambda: _lines(out) > before + 3, 30)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            _end(process)

    row = counted("a rank is stopped, and goes on", count, trial, "")
    return row._replace(told=f"told within {max(seconds, default=0.0):.1f} s")


def launcher_killed(folder: Path, count: int) -> Row:
    def trial(number: int) -> None:
        out = folder / f"launcher{number}"
        process = start(folder, out.name)
        ranks: list[int] = []
        try:
            _until(lambda: _lines(out) > 3, 60)
            ranks = _children(process.pid)
            process.kill()
            process.wait(10)
            _until(lambda: not any(_runs(pid) for pid in ranks), END)
        finally:
            _end(process, ranks)

    return counted("the launcher is killed", count, trial, "no rank is left")


def told_once(folder: Path, count: int) -> Row:
    """A setting that each rank finds to be wrong."""

    def trial(number: int) -> None:
        process = start(folder, f"once{number}", "--data", "no-such-file")
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            _end(process)
        assert process.returncode == 2, errors
        assert errors.count("no-such-file") == 1, errors
        assert not errors.startswith("rank"), errors

    return counted("a wrong setting", count, trial, "told once, by rank 0")


NO_ROOM = """
import os
from minillm.errors import ParallelError
from minillm.parallel.segments import create_segment
del os.memfd_create
try:
    memory = create_segment(2)
    memory.buf[:] = bytes(memory.size)
    memory.close()
    memory.unlink()
    print("room")
except ParallelError as error:
    print(error)
print(os.listdir("/dev/shm"))
"""


def no_room(count: int) -> Row:
    """Memory for ranks in a /dev/shm of each size, where memory without a name cannot be had."""
    tried = "a small /dev/shm, without memfd_create"
    if os.system("unshare --mount true 2>/dev/null"):
        return Row(tried, 0, 0, "left out: this user cannot mount a small one")

    def trial(number: int) -> None:
        size = (64, 1024, 2048, 8192)[number % 4]
        mount = f'mount -t tmpfs -o size={size}k tmpfs /dev/shm && exec "$0" -c "$1"'
        command = ["unshare", "--mount", "sh", "-c", mount, sys.executable, NO_ROOM]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert found.returncode == 0, (size, found)
        first, left = found.stdout.splitlines()
        assert first.startswith("connect: /dev/shm has no ") or (first == "room" and size == 8192), (size, found)
        assert left == "[]", (size, found)

    return counted(tried, 4 * count, trial, "a sentence instead of SIGBUS, and nothing is left in it")


# --- helpers -------------------------------------------------------------------------------------------------------


def _until(condition: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened within {seconds} s"
        time.sleep(0.02)


def _lines(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _children(pid: int) -> list[int]:
    """The processes that a process has started, in the order of their ranks."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _end(process: subprocess.Popen, ranks: list[int] | None = None) -> None:
    """End a launcher and its ranks, whatever has become of them, and read what they still say."""
    if process.poll() is None:
        ranks = [*(ranks or []), *_children(process.pid)]
        process.kill()
    for pid in ranks or []:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
