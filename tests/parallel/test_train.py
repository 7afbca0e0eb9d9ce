"""`train` on several ranks: the run that one process would have made, through checkpoints and Ctrl-C."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minillm.checkpoint import load_checkpoint
from minillm.data import read_text
from minillm.errors import InputError, ParallelError
from minillm.models.gpt2 import GPT2
from minillm.parallel.communicator import Alone, Trace, bytes_sent
from minillm.parallel.data_parallel import DataParallel
from minillm.training import corpus
from minillm.training.config import TrainConfig, preset
from minillm.training.run import Run
from minillm.training.trainer import train

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer.\n" * 60
CONFIG = dataclasses.replace(
    preset("nano"),
    steps=12,
    warmup=2,
    batch_size=6,
    micro_batches=2,
    eval_every=6,
    eval_batches=3,
    sample_every=6,
    sample_tokens=4,
    model=dataclasses.replace(preset("nano").model, layers=4, dropout=0.1),
)
DIVIDED = {
    "dp2": dict(dp=2),
    "zero3": dict(dp=2, zero=3),
    "tp2-recompute": dict(tp=2, recompute="all"),
    "pp2": dict(pp=2),
    "dp2-pp2-zero1": dict(dp=2, pp=2, zero=1, pipeline="gpipe"),
}


def count(settings: dict) -> int:
    return settings.get("dp", 1) * settings.get("tp", 1) * settings.get("pp", 1)


def run_on(communicator, config: TrainConfig, resume: Path | None = None) -> Path:
    return train(config, resume, communicator).folder


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def alone(text, tmp_path_factory) -> Run:
    return train(dataclasses.replace(CONFIG, data=str(text), out=tmp_path_factory.mktemp("alone") / "run"))


def check_same(found: Run, expected: Run, bound: float = 2e-5) -> None:
    records = zip(found.metrics(), expected.metrics(), strict=True)
    for one, other in records:
        assert one["step"] == other["step"]
        assert one["tokens"] == other["tokens"]
        for name in ("loss", "val_loss", "grad_norm"):
            assert one[name] == (None if other[name] is None else pytest.approx(other[name], rel=bound)), name
    for name in ("last", "best"):
        one, other = (load_checkpoint(run.checkpoint(name)) for run in (found, expected))
        assert one.state["random"] == other.state["random"]
        assert one.model.keys() == other.model.keys()
        assert one.optimizer.keys() == other.optimizer.keys()
        for key, array in other.model.items():
            np.testing.assert_allclose(one.model[key], array, rtol=0, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("name", DIVIDED)
def test_the_run_of_one_process(ranks, text, alone, tmp_path, name):
    config = dataclasses.replace(CONFIG, data=str(text), out=tmp_path / "run", **DIVIDED[name])
    folders = ranks(count(DIVIDED[name])).run(run_on, config)
    assert set(folders) == {tmp_path / "run"}
    run = Run.open(folders[0])
    check_same(run, alone)
    assert (run.folder / "loss.png").is_file()
    assert sorted(path.name for path in run.folder.rglob("*")) == sorted(path.name for path in alone.folder.rglob("*"))


def test_a_run_goes_on_in_other_parts(ranks, text, alone, tmp_path):
    """Half of it on a mesh of four, a quarter on two stages, the rest in one process."""
    stopped = dataclasses.replace(CONFIG, data=str(text), out=tmp_path / "half", schedule="wsd", decay_steps=0)
    whole = train(dataclasses.replace(stopped, out=tmp_path / "whole"))
    first = dataclasses.replace(stopped, steps=6, dp=2, tp=2, zero=1)
    ranks(4).run(run_on, first)
    second = dataclasses.replace(first, steps=9, dp=1, tp=1, pp=2, zero=0)
    ranks(2).run(run_on, second, tmp_path / "half")
    third = dataclasses.replace(second, steps=12, pp=1)
    run = train(third, tmp_path / "half")
    for key, array in load_checkpoint(whole.checkpoint("last")).model.items():
        found = load_checkpoint(run.checkpoint("last")).model[key]
        np.testing.assert_allclose(found, array, rtol=0, atol=1e-4, err_msg=key)
    assert [record["step"] for record in run.metrics()] == list(range(1, 13))


def other_settings(communicator, config: TrainConfig) -> None:
    train(dataclasses.replace(config, lr=config.lr * (1 + (communicator.rank == 1))), None, communicator)


def other_text(communicator, config: TrainConfig) -> None:
    if communicator.rank == 2:  # the same path on another machine
        corpus.read_text = lambda path, field: read_text(f"{path}.other", field)
    try:
        train(config, None, communicator)
    finally:
        corpus.read_text = read_text


def test_ranks_that_do_not_train_the_same_are_named(ranks, text, tmp_path):
    config = dataclasses.replace(CONFIG, data=str(text), out=tmp_path / "run")
    errors = [outcome.error for outcome in ranks(3).outcomes(other_settings, config)]
    assert all(isinstance(error, ParallelError) for error in errors)
    assert any(
        "rank 1: not the same settings as rank 0; start all ranks with the same options" in str(e) for e in errors
    )
    (text.parent / "text.txt.other").write_text(TEXT + "to be")
    errors = [outcome.error for outcome in ranks(3).outcomes(other_text, config)]
    assert any("rank 2: not the same" in str(error) for error in errors)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_ends_all_ranks_after_the_same_step(text, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "minillm", "train", "--preset", "nano", "--data", str(text), "--out", str(out)]
    command += ["--steps", "100000", "--eval-every", "100000", "--sample-every", "0", "--nproc", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out / "metrics.jsonl").exists():
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "--resume" in printed
    run = Run.open(out)
    assert load_checkpoint(run.checkpoint("last")).state["step"] == run.metrics()[-1]["step"]


def test_a_trace_has_every_message(text, tmp_path):
    """Files of two ranks: what each received is what the formula has the other send."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "minillm", "train", "--preset", "nano", "--data", str(text), "--out", str(out)]
    command += ["--steps", "3", "--sample-every", "0", "--eval-every", "3", "--nproc", "2"]
    subprocess.run([*command, "--trace", str(tmp_path / "trace")], check=True, capture_output=True)
    found = [Trace.read(tmp_path / "trace" / f"messages-{rank}.jsonl") for rank in range(2)]
    for rank, messages in enumerate(found):
        assert {(message.source, message.target) for message in messages} == {(1 - rank, rank)}
        assert [message.seconds for message in messages] == sorted(message.seconds for message in messages)
    sent = bytes_sent([message for messages in found for message in messages])
    model = GPT2(dataclasses.replace(preset("nano").model, vocab_size=Run.open(out).tokenizer.vocab_size))
    units = DataParallel(model, Alone(), [{"params": model.parameters()}]).units.values()
    expected = 3 * sum(4 * unit.size for unit in units)  # two ranks: 2 (n - 1) / n is 1
    assert sent[0, "gradients"] == sent[1, "gradients"] == expected


def test_zero_without_other_ranks_is_refused(text, tmp_path):
    config = dataclasses.replace(CONFIG, data=str(text), out=tmp_path / "run", zero=2)
    with pytest.raises(InputError, match="--zero 2 divides what several ranks keep; start them with --nproc"):
        train(config)
    assert not (tmp_path / "run").exists()
