"""What goes wrong around a training does not cost its work: signals, full disks, removed folders, a broken output."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minillm import files
from minillm.checkpoint import load_checkpoint
from minillm.errors import CheckpointError
from minillm.training import trainer, whole_model
from minillm.training.config import PRESETS, TrainConfig
from minillm.training.run import Run
from minillm.training.stop import AGAIN, TOLD
from minillm.training.trainer import train


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """A run of 8 steps that saves after each second one."""
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 40)
    changes = dict(steps=8, warmup=1, eval_every=2, eval_batches=1, sample_every=0, threads=1)
    return dataclasses.replace(PRESETS["nano"], data=str(tmp_path / "text.txt"), out=tmp_path / "run", **changes)


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, do: Any) -> None:
    """Do something in the middle of a step, counted from 1."""
    original, steps = whole_model.accumulate_gradients, iter(range(1, 10**6))

    def with_mishap(*arguments: Any) -> Any:
        if next(steps) == number:
            do()
        return original(*arguments)

    monkeypatch.setattr(whole_model, "accumulate_gradients", with_mishap)


def steps_in(run: Run) -> list[int]:
    return [record["step"] for record in run.metrics()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_before_it_validates(config, number, monkeypatch, capfdbinary) -> None:
    saved, evaluate = [], trainer.evaluate

    def look(*arguments: Any) -> Any:
        last = config.out / "checkpoints" / "last.safetensors"
        saved.append(load_checkpoint(last).state["step"] if last.exists() else None)
        return evaluate(*arguments)

    monkeypatch.setattr(trainer, "evaluate", look)
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), number))
    train(config)
    assert saved == [None, 3]
    assert capfdbinary.readouterr().err == TOLD + (AGAIN if number == signal.SIGINT else b"") + b"\n"
    assert load_checkpoint(config.out / "checkpoints" / "last.safetensors").state["step"] == 3


def test_a_step_keeps_its_line_if_the_validation_after_a_stop_is_cut_short(config, monkeypatch) -> None:
    """The second Ctrl-C comes between the checkpoint and the line of its step."""

    def stopped(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    evaluate = trainer.evaluate
    monkeypatch.setattr(
        trainer, "evaluate", lambda *given: stopped() if stop_was_saved(config, 3) else evaluate(*given)
    )
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    assert steps_in(Run.open(config.out)) == [1, 2]
    run = train(config, config.out)
    assert steps_in(run) == list(range(1, config.steps + 1))


def stop_was_saved(config: TrainConfig, step: int) -> bool:
    last = config.out / "checkpoints" / "last.safetensors"
    return last.exists() and load_checkpoint(last).state["step"] == step


def test_sighup_is_left_to_nohup(config, monkeypatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert steps_in(train(config)) == list(range(1, 9))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_says_how_to_go_on(config, monkeypatch, capsys) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 5, twice)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    told = f"stopped without saving; to go on after the last checkpoint:\n  minillm train --resume {config.out}"
    assert told in capsys.readouterr().out
    monkeypatch.undo()
    assert steps_in(train(config, resume=config.out)) == list(range(1, 9))


def test_a_checkpoint_that_cannot_be_written_is_tried_again(config, monkeypatch, capsys) -> None:
    sync, full = files.sync, iter([False, True, True])  # the second and the third checkpoint

    def disk(path: Path) -> None:
        if "best.safetensors" in path.name and next(full, False):
            raise OSError(28, "No space left on device")
        sync(path)

    monkeypatch.setattr(files, "sync", disk)
    run = train(config)
    out = capsys.readouterr().out
    assert out.count("best.safetensors (No space left on device)") == 1
    assert "; training goes on, and saves again after the next validation" in out
    assert load_checkpoint(run.checkpoint("last")).state["step"] == 8
    assert steps_in(run) == list(range(1, 9))


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(config, monkeypatch, capsys) -> None:
    sync = files.sync

    def disk(path: Path) -> None:
        if ".safetensors." in path.name and (config.out / "metrics.jsonl").read_text().count("\n") == 8:
            raise OSError(30, "Read-only file system")
        sync(path)

    monkeypatch.setattr(files, "sync", disk)
    with pytest.raises(CheckpointError, match=r"^train: step 8 is not saved: .*\(Read-only file system\)"):
        train(config)
    monkeypatch.undo()
    assert load_checkpoint(config.out / "checkpoints" / "last.safetensors").state["step"] == 6
    assert load_checkpoint(train(config, resume=config.out).checkpoint("last")).state["step"] == 8


@pytest.mark.parametrize("removed", ["", "checkpoints"])
def test_folders_that_were_removed_are_made_again(config, removed, monkeypatch) -> None:
    at_step(monkeypatch, 5, lambda: shutil.rmtree(config.out / removed))
    run = train(config)
    assert load_checkpoint(run.checkpoint("last")).state["step"] == 8
    again = Run.open(config.out)
    assert steps_in(again)[-1] == 8
    assert again.config == run.config


def test_a_picture_that_cannot_be_drawn_ends_nothing(config, monkeypatch, capsys) -> None:
    at_step(monkeypatch, 5, lambda: (config.out / "loss.png").mkdir())
    run = train(config)
    assert "the loss curve is not drawn: train: cannot write" in capsys.readouterr().out
    assert load_checkpoint(run.checkpoint("last")).state["step"] == 8


def test_a_damaged_last_checkpoint_is_told_with_the_way_on(config) -> None:
    run = train(dataclasses.replace(config, steps=5))
    last, best = run.checkpoint("last"), run.checkpoint("best")
    if last.samefile(best):
        last.write_bytes(best.read_bytes())
    step = load_checkpoint(best).state["step"]
    content = bytearray(last.read_bytes())
    content[-9] ^= 1
    last.unlink()
    last.write_bytes(content)
    told = rf"last.safetensors is damaged: the array .* is whole, and of step {step}: to go on from there, remove "
    with pytest.raises(CheckpointError, match=told):
        train(config, resume=config.out)
    assert not (config.out / ".lock").exists()
    last.unlink()
    assert steps_in(train(config, resume=config.out)) == list(range(1, 9))


OUTPUTS = {"a full disk": ">/dev/full", "closed": ">&-", "all closed": ">&- 2>&-", "a reader that leaves": "| head -2"}


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_that_cannot_be_written_is_not_worth_a_run(output: str, config, tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    command = (
        f"{sys.executable} -m minillm train --preset nano --data {config.data} --steps 6 --warmup 1 --eval-every 2 "
        f"--eval-batches 1 --sample-every 2 --threads 1 --out {config.out}"
    )
    result = subprocess.run(
        ["bash", "-c", f"{command} {OUTPUTS[output]}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    told = "train: the output could not be written (No space left on device), so the rest was not shown; the run is in"
    assert result.stderr.startswith(told) if output == "a full disk" else result.stderr == ""
    assert load_checkpoint(config.out / "checkpoints" / "last.safetensors").state["step"] == 6
    assert (config.out / "loss.png").is_file()


def test_an_ascii_console_is_no_fault(config) -> None:
    Path(config.data).write_text("größer als zwölf, schöner als fünf 日本 " * 60)
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0", "LC_ALL": "C"}
    command = "train --preset nano --steps 4 --warmup 1 --eval-every 2 --eval-batches 1 --sample-every 2 --threads 1"
    code = "import sys; from minillm.cli import main; main(sys.argv[1:])"
    result = subprocess.run(
        [sys.executable, "-c", code, *command.split(), "--data", config.data, "--out", str(config.out)],
        env=environment,
        capture_output=True,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert load_checkpoint(config.out / "checkpoints" / "last.safetensors").state["step"] == 4
