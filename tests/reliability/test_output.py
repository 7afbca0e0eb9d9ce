"""A display that cannot write costs no work, a run has one trainer, and a terminal that goes away is no end."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minillm.checkpoint import load_checkpoint
from minillm.training import Run
from tests.reliability.kills import TEXT, TRAIN

START = [sys.executable, "-m", "minillm", "train", "--data", "text.txt", *TRAIN, "--watch", "None"]
LONG = [*START, "--steps", "100000", "--out", "run"]  # longer than a test waits
PATIENCE = 120.0


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def last_step(run: str | Path = "run") -> int:
    return load_checkpoint(Run.open(Path(run)).checkpoint("last")).state["step"]


def await_steps(process: subprocess.Popen, run: str = "run") -> None:
    """Wait until a run has saved."""
    until = time.monotonic() + PATIENCE
    while not Path(run, "checkpoints", "last.safetensors").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("redirected", ["| head -1", ">/dev/full", ">/dev/full 2>/dev/full", ">&- 2>&-"])
def test_a_training_without_an_output_ends_as_any_other(here: Path, redirected: str) -> None:
    command = " ".join([*START, "--out", "run", redirected])
    ended = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    assert last_step() == 12
    told = b"train: the output could not be written (No space left on device), so the rest was not shown"
    assert ended.stderr.startswith(told) == (redirected == ">/dev/full")


@pytest.mark.slow
def test_a_name_that_the_output_cannot_show_is_no_end(here: Path) -> None:
    name = os.fsdecode(b"n\xff\xc3\xbc")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    subprocess.run([*START, "--out", name], env=environment, check=True, capture_output=True, timeout=PATIENCE)
    assert last_step(name) == 12


def test_a_terminal_that_goes_away_saves(here: Path) -> None:
    """The kernel and the shell both send SIGHUP, and every write fails from then on."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(LONG, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    until = time.monotonic() + PATIENCE
    while not Path("run", "checkpoints", "last.safetensors").exists():
        os.read(ours, 1 << 16)
        assert time.monotonic() < until
    os.close(ours)
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
    assert process.wait(PATIENCE) == 0
    assert last_step() == Run.open(Path("run")).metrics()[-1]["step"]


def test_a_second_trainer_of_a_run_is_told_which_process_has_it(here: Path) -> None:
    with subprocess.Popen(LONG, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as first:
        await_steps(first)
        second = subprocess.run(
            [sys.executable, "-m", "minillm", "train", "--resume", "run"], capture_output=True, text=True
        )
        holder = rf"process {first.pid} \(since [-\d: ]+\)"
        told = rf"train: {holder} is training run at the moment; wait for its end, or stop it"
        assert second.returncode == 2
        assert re.fullmatch(told, second.stderr.strip()), second.stderr
        first.send_signal(signal.SIGTERM)
        _, said = first.communicate(timeout=PATIENCE)
        assert (first.returncode, said) == (0, b"\nfinishing this step, then saving\n")
    steps = [record["step"] for record in Run.open(Path("run")).metrics()]
    assert steps == list(range(1, last_step() + 1))


@pytest.mark.slow
def test_ranks_save_when_their_terminal_goes_away(here: Path) -> None:
    command = [*LONG, "--nproc", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        await_steps(process)
        for _ in range(3):
            process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE) == 0
    assert last_step() == Run.open(Path("run")).metrics()[-1]["step"]
