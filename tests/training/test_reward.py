"""Reward training: it learns held-out pairs, reads the last real token, is saved for transformers, and is exact."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minillm
from minillm.checkpoint import load_checkpoint
from minillm.data.instructions import Example
from minillm.data.pairs import IGNORED
from minillm.data.preferences import PairExample
from minillm.errors import InputError
from minillm.models.gpt2 import GPT2Config
from minillm.models.llama import LlamaConfig
from minillm.training import TrainConfig, train
from minillm.training.prepare import make_model
from minillm.training.tasks.reward import RewardOptions, RewardTask
from minillm.training.whole_model import accumulate_gradients
from tests.training.answer_runs import pairs_of, settings_of, write_records

MODELS: dict[str, Any] = {
    "gpt2": GPT2Config(vocab_size=256, context=64, layers=2, heads=2, channels=32, dropout=0.1),
    "llama": LlamaConfig(256, context=64, layers=2, heads=2, kv_heads=1, channels=32, hidden=48, tied=False),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pairs whose chosen answers are in capitals, and a tokenizer."""
    return write_records(tmp_path, pairs_of([f"{number}:" for number in range(60)]))


def settings(data: Path, architecture: str = "gpt2", out: str = "run", **changes: Any) -> TrainConfig:
    defaults = dict(architecture=architecture, model=MODELS[architecture], steps=40, batch_size=6, warmup=2, lr=3e-3)
    return settings_of("reward", data, out, {**defaults, "eval_every": 20, "sample_every": 40}, changes)


@pytest.mark.parametrize("architecture", MODELS)
def test_held_out_pairs_are_told_apart(data, architecture, capsys) -> None:
    run = train(settings(data, architecture))
    records = run.metrics()
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=0.05)
    assert records[-1]["val_accuracy"] == 1
    assert records[-1]["val_margin"] > 1
    assert {"accuracy", "margin", "mean_reward"} <= records[0].keys()
    model = minillm.load(run.folder)
    model.save_pretrained(data.parent / "saved")
    values = json.loads((data.parent / "saved" / "config.json").read_text())
    assert values["architectures"] == [{"gpt2": "GPT2", "llama": "Llama"}[architecture] + "ForSequenceClassification"]
    assert len(values["id2label"]) == 1
    assert values["pad_token_id"] != run.tokenizer.eos_id
    task = RewardTask(run.config, run.tokenizer)
    batch = task.made(task.out)
    again = minillm.load(data.parent / "saved")
    for side in range(2):
        ids, lengths = batch["ids"][:, side], batch["lengths"][:, side]
        ids = np.where(np.arange(ids.shape[1]) < lengths[:, None], ids, values["pad_token_id"])
        np.testing.assert_array_equal(again(ids).data, model(ids, lengths=lengths).data)
    assert "THE" in capsys.readouterr().out.upper()


def test_the_reward_is_read_at_the_token_that_ends_the_answer(data) -> None:
    task = RewardTask(settings(data))
    batch = task.batch(0)
    for pair in zip(batch["ids"], batch["lengths"], strict=True):
        for ids, length in zip(*pair, strict=True):
            assert ids[length - 1] == task.tokenizer.eos_id
            assert (ids[: length - 1] != task.tokenizer.eos_id).all()
    assert task.tokens(batch) == batch["lengths"].sum()


@pytest.mark.parametrize("behind", [0, 1, 3])
def test_what_a_template_puts_behind_an_answer_is_not_read(data, behind) -> None:
    """A published template may end each message with a line break, which is no target."""
    task = RewardTask(settings(data))
    plain = task.made([0, 1])
    for number, pair in enumerate(task.pairs):
        longer = []
        for ids, targets in pair:
            more = [*targets[-1:], *range(3, 3 + behind)]
            longer.append(Example(np.append(ids, more[:behind]), np.append(targets, [IGNORED] * behind)))
        task.pairs[number] = PairExample(*longer)
    for name, array in task.made([0, 1]).items():
        np.testing.assert_array_equal(array, plain[name])


def test_parts_of_a_batch_give_the_gradient_of_the_batch(data) -> None:
    config = dataclasses.replace(settings(data), task=RewardOptions(centering=0.1))
    task = RewardTask(config)
    model = make_model(config, task.tokenizer).to("float64").train()
    results = []
    for parts in (1, 4):
        model.zero_grad()
        value = float(accumulate_gradients(model, task.batch(0), parts, task))
        results.append((value, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    assert "score.weight" in results[0][1]
    for name, gradient in results[0][1].items():
        np.testing.assert_allclose(gradient, results[1][1][name], atol=1e-12)


def test_a_run_goes_on_as_if_it_had_not_stopped(data) -> None:
    config = settings(data, out="whole", steps=8, eval_every=4, schedule="wsd", decay_steps=0, sample_every=0)
    whole = train(config)
    part = train(dataclasses.replace(config, out=data.parent / "part", steps=4))
    resumed = train(dataclasses.replace(config, out=part.folder), resume=part.folder)
    one, other = (load_checkpoint(run.checkpoint("last")) for run in (whole, resumed))
    assert all(array.tobytes() == other.model[name].tobytes() for name, array in one.model.items())


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="centering is -1; give 0 or a small positive number"):
        RewardOptions(centering=-1)
