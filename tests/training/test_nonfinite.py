"""Steps whose numbers are not finite: skipped or the end of the run, with the operation that made them; loss spikes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm.checkpoint import load_checkpoint
from minillm.errors import InputError
from minillm.training.config import TrainConfig, preset
from minillm.training.nonfinite import MOST_SKIPPED, SPIKE, WINDOW, Spikes, stop_or_skip
from minillm.training.run import Run
from minillm.training.trainer import train
from minillm.training.whole_model import WholeModel


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 60)
    settings: dict[str, Any] = dict(steps=6, warmup=1, eval_every=3, eval_batches=1, sample_every=0, threads=1)
    return dataclasses.replace(preset("nano"), data=str(tmp_path / "text.txt"), out=tmp_path / "run", **settings)


def plant(monkeypatch: pytest.MonkeyPatch, *bad: int, first: int = 1) -> None:
    """Make the tokens' vectors too large in these steps, which are counted by their batches and not by their passes."""
    real = WholeModel.forward_backward
    seen: list[Any] = []

    def forward_backward(self: Any, batch: Any, *others: Any) -> Any:
        if not seen or batch is not seen[-1]:
            seen.append(batch)
        embedding = self.model.wte.weight.data
        kept = embedding.copy()
        if len(seen) + first - 1 in bad:
            embedding[...] = 3e38
        try:
            return real(self, batch, *others)
        finally:
            embedding[...] = kept

    monkeypatch.setattr(WholeModel, "forward_backward", forward_backward)


def arrays(run: Run) -> dict[str, bytes]:
    checkpoint = load_checkpoint(run.checkpoint("last"))
    return {name: array.tobytes() for name, array in (checkpoint.model | checkpoint.optimizer).items()}


def test_a_run_stops_and_names_the_operation_and_the_step(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, 2)
    with pytest.raises(InputError, match=r"at step 2 the loss is nan, which the forward of \w+ of .* made first"):
        train(config, progress=False)


def test_a_skipped_step_changes_nothing_and_is_counted(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, 2)
    run = train(dataclasses.replace(config, nonfinite="skip", steps=2, eval_every=1), progress=False)
    first, second = (record for record in run.metrics())
    assert (second["loss"], second["grad_norm"], first["loss"] > 0) == (None, None, True)
    assert second["skipped"].startswith("at step 2 the loss is nan")
    assert second["val_loss"] == first["val_loss"]
    state = load_checkpoint(run.checkpoint("last")).state
    assert (state["step"], state["skipped"], state["skipped_in_a_row"]) == (2, 1, 1)
    shown = " ".join(capsys.readouterr().out.split())
    assert "the step is skipped, and no weight has changed" in shown
    assert "1 step was skipped" in shown


def test_a_run_with_a_skipped_step_is_resumed_bit_for_bit(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skips = dataclasses.replace(config, nonfinite="skip")
    with monkeypatch.context() as patched:
        plant(patched, 2, 5)
        whole = train(skips, progress=False)
    with monkeypatch.context() as patched:
        plant(patched, 2, 4)

        def stops_later(config: TrainConfig, step: int, *others: Any) -> str:
            return stop_or_skip(config if step == 2 else dataclasses.replace(config, nonfinite="stop"), step, *others)

        stopped = dataclasses.replace(skips, out=tmp_path / "two")
        patched.setattr("minillm.training.trainer.stop_or_skip", stops_later)
        with pytest.raises(InputError, match="at step 4"):  # after the checkpoint of step 3, which has skipped step 2
            train(stopped, progress=False)
    plant(monkeypatch, 5, first=4)
    other = train(skips, resume=tmp_path / "two", progress=False)
    assert arrays(other) == arrays(whole)
    losses = [[record["loss"] for record in run.metrics()] for run in (whole, other)]
    assert losses[0] == losses[1]
    assert [step for step, loss in enumerate(losses[0], 1) if loss is None] == [2, 5]
    assert load_checkpoint(other.checkpoint("last")).state["skipped"] == 2


def test_ten_in_a_row_stop_the_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, *range(3, 40))
    with pytest.raises(InputError, match=r"at step 12 .* the 10th step in a row that is skipped"):
        train(dataclasses.replace(config, steps=30, eval_every=30, nonfinite="skip"), progress=False)
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]  # type: ignore[operator]
    assert sum("skipped" in line for line in lines) == MOST_SKIPPED - 1


def test_spikes_are_told_by_the_documented_rule() -> None:
    rng = np.random.default_rng(0)
    losses = 3 + 0.1 * rng.normal(size=2000)
    spikes = Spikes()
    assert [one for one in losses if spikes.median_under(one) is not None] == []
    recent = losses[-WINDOW:]
    median = float(np.median(recent))
    distance = float(np.median(abs(recent - median)))
    assert Spikes(recent).median_under(median + 1.01 * SPIKE * distance) == pytest.approx(median)
    assert Spikes(recent).median_under(median + 0.99 * SPIKE * distance) is None
    assert Spikes(recent[1:]).median_under(100.0) is None  # too few to tell
    assert Spikes([*recent, None]).median_under(0.0) is None
