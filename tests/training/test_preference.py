"""Preference training: where it begins, its reference, what is logged, and that it resumes and divides exactly."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm import random
from minillm.autograd import no_grad
from minillm.checkpoint import load_checkpoint
from minillm.errors import InputError
from minillm.lora import LoraConfig, adapters_off, add_lora
from minillm.losses import PREFERENCE_LOSSES, sequence_log_probs
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.parallel.objective import micro_batches_of
from minillm.training import TrainConfig, train
from minillm.training.prepare import make_model
from minillm.training.tasks.preference import PreferenceOptions, PreferenceTask
from minillm.training.tasks.scoring import check_apart, frozen_log_probs, scored
from minillm.training.whole_model import accumulate_gradients
from tests.training.answer_runs import pairs_of, settings_of, write_records

TINY = GPT2Config(vocab_size=256, context=64, layers=2, heads=2, channels=16, dropout=0.2)
LN2 = math.log(2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pairs whose chosen answers are in capitals; one record is faulty, and one prompt is too long."""
    records = pairs_of([""] * 40)
    records.insert(7, {"prompt": "x", "chosen": " ", "rejected": "y"})
    records.insert(20, {"prompt": "z" * 70, "chosen": "A", "rejected": "a"})
    return write_records(tmp_path, records)


def settings(data: Path, out: str = "run", **changes: Any) -> TrainConfig:
    defaults = dict(model=TINY, batch_size=6, lr=3e-3, eval_batches=2, sample_tokens=4)
    return settings_of("preference", data, out, defaults, changes)


def begun(config: TrainConfig) -> tuple[PreferenceTask, Any]:
    """The task and its model, before the first step."""
    task = PreferenceTask(config)
    random.manual_seed(0)
    model = make_model(config, task.tokenizer)
    task.begin(model, {})
    return task, model.train()


# --- the beginning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", ["none", "all"])
def test_a_run_begins_at_ln_2_with_a_gradient(data, recompute) -> None:
    run = train(settings(data, recompute=recompute))
    before, first, *_, last = run.metrics()
    assert before["val_loss"] == pytest.approx(LN2, abs=1e-6)
    assert first["loss"] == pytest.approx(LN2, abs=1e-6)
    assert first["grad_norm"] > 0.01
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert first[name] == pytest.approx(0, abs=1e-5)
    assert last["loss"] < 0.68
    assert last["rewards/margins"] > 0
    assert last["val_rewards/accuracies"] > 0.5
    names = {f"{kind}/{side}" for kind in ("rewards", "logps", "logits") for side in ("chosen", "rejected")}
    names |= {"rewards/margins", "rewards/accuracies"}
    assert names <= first.keys()
    assert {f"val_{name}" for name in names} <= last.keys()


def test_a_chosen_answer_that_becomes_less_likely_is_explained(data) -> None:
    task, _ = begun(settings(data))
    task.first = {"val_logps/chosen": -10.0, "val_rewards/margins": 0.0}
    unseen = (-10.04, 0.5, False), (-12.0, 0.0004, False)  # differences that the shown digits do not have
    for chosen, margin, said in ((-12.0, 0.5, True), (-9.0, 0.5, False), (-12.0, -0.5, False), *unseen):
        task.last = {"val_logps/chosen": chosen, "val_rewards/margins": margin}
        assert any("chosen answers became less likely (log p -10.0 to" in line for line in task.next_steps("x")) == said


def test_equal_rewards_are_not_accurate(data) -> None:
    task, model = begun(settings(data))
    task.sums(model, task.batch(0))
    noted = task.notes()
    assert noted["rewards/accuracies"] <= 0.5  # rounding alone may tell the answers apart
    assert noted["logps/chosen"] < -1


@pytest.mark.parametrize("loss", [*PREFERENCE_LOSSES, "kto"])
def test_every_loss_trains(data, loss) -> None:
    smoothing = 0.1 if loss in ("conservative", "robust", "exo_pair") else 0.0
    records = train(settings(data, loss=loss, label_smoothing=smoothing, steps=4)).metrics()[
        1:
    ]  # the first line is before the first step
    start = {
        **dict.fromkeys(("sigmoid", "conservative", "robust", "sigmoid_norm"), LN2),
        **{"hinge": 1, "ipo": 25, "nca_pair": 2 * LN2, "bco_pair": 2 * LN2, "sppo_hard": 50, "apo_zero": 1},
        **{"apo_down": 1, "discopop": (1 + LN2) / 2, "kto": 0.5},
    }
    if loss in start:
        assert records[0]["loss"] == pytest.approx(start[loss], rel=2e-5)
    assert all(math.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in records)
    assert records[-1]["rewards/margins"] != records[0]["rewards/margins"]


def test_orpo_adds_the_cross_entropy_of_the_whole_chosen_text(data) -> None:
    task, model = begun(settings(data, loss="orpo"))
    batch = task.batch(0)
    sums, counts = task.sums(model, batch), task.counts(batch)
    total, number = 0.0, 0
    with no_grad():
        for pair in (task.pairs[i] for i in batch["number"]):
            whole = np.append(pair.chosen.ids, pair.chosen.targets[-1])
            total += model.eval().loss(whole[None, :-1], whole[None, 1:], reduction="sum").item()
            number += len(whole) - 1
    assert counts["nll"] == number
    assert sums["nll"].item() == pytest.approx(total, rel=1e-5)


# --- the reference -------------------------------------------------------------------------------------------------


def test_the_reference_is_the_model_at_the_start_and_stays(data) -> None:
    task, model = begun(settings(data))
    before = task.reference.copy()
    with no_grad():
        for number in (0, 5, 30):
            for side in range(2):
                ids, targets = task.pairs[number][side]
                alone = sequence_log_probs(model.eval()(ids[None]), targets[None]).item()
                assert before[number, side] == pytest.approx(alone, abs=1e-4)
    run = train(settings(data, steps=5, eval_every=5))
    kept = load_checkpoint(run.kept).model["reference"]
    random.manual_seed(run.config.seed)
    fresh = PreferenceTask(run.config, run.tokenizer)
    again = fresh.begin(make_model(run.config, run.tokenizer), {})["reference"]
    assert kept.tobytes() == again.tobytes()


def test_with_lora_the_reference_is_the_model_without_adapters(data, rng) -> None:
    config = settings(data)
    task = PreferenceTask(config)
    model = add_lora(make_model(config, task.tokenizer), LoraConfig(rank=2, dropout=0.5))
    kept = task.begin(model.train(), {})["reference"]
    [value] = {task.sums(model.train(), task.batch(0))["loss"].item() / 6}
    assert value == pytest.approx(LN2, abs=1e-6)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += rng.normal(size=parameter.shape).astype(np.float32)
    examples = [example for pair in task.pairs for example in pair]
    with adapters_off(model):
        assert frozen_log_probs(model, examples, 12).tobytes() == kept.tobytes()
    assert np.abs(frozen_log_probs(model, examples, 12) - kept.reshape(-1)).max() > 0.1
    losses = {task.sums(model.train(), task.batch(0))["loss"].item() for _ in range(3)}
    assert len(losses) == 1  # the adapters' dropout is off too


def test_a_reference_that_shares_memory_with_the_policy_is_refused() -> None:
    policy, reference = GPT2(TINY), GPT2(TINY)
    check_apart(policy, reference)
    reference.h[1].mlp.fc.weight.data = policy.h[1].mlp.fc.weight.data[:]
    with pytest.raises(InputError, match=r"check_apart: h.1.mlp.fc.weight of the policy .* share memory"):
        check_apart(policy, reference)


# --- log-probabilities ---------------------------------------------------------------------------------------------


def test_scores_are_those_of_all_logits(rng) -> None:
    model = GPT2(TINY).eval()
    ids = rng.integers(0, 256, (3, 9))
    targets = np.where(rng.random((3, 9)) < 0.5, rng.integers(0, 256, (3, 9)), -100)
    logits = model(ids)
    found = scored(model, ids, targets, 0.7)
    np.testing.assert_allclose(found.answers.data, sequence_log_probs(logits, targets, 0.7).data, rtol=1e-5)
    means = np.where(targets != -100, logits.data.mean(-1), 0)
    np.testing.assert_allclose(found.mean_logits, means, atol=1e-6)


def test_dropout_is_off(data) -> None:
    task, model = begun(settings(data))
    batch = task.batch(0)
    values = {task.sums(model.train(), batch)["loss"].item() for _ in range(3)}
    assert len(values) == 1


# --- exactness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "orpo", "kto"])
def test_parts_of_a_batch_give_the_gradient_of_the_batch(data, loss) -> None:
    task, model = begun(settings(data, loss=loss))
    model.to("float64")
    batch = task.batch(3, model)
    results = []
    for parts in (1, 3, 6):
        model.zero_grad()
        value = float(accumulate_gradients(model, batch, parts, task))
        results.append((value, {name: p.grad.copy() for name, p in model.named_parameters()}))
    for value, gradients in results[1:]:
        assert value == pytest.approx(results[0][0], rel=1e-12)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, results[0][1][name], atol=1e-12)
    assert len(micro_batches_of(batch, 6)) == 6


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_a_run_goes_on_as_if_it_had_not_stopped(data, loss) -> None:
    config = settings(data, "whole", loss=loss, schedule="wsd", decay_steps=0)
    whole = train(config)
    part = train(dataclasses.replace(config, out=data.parent / "part", steps=4))
    resumed = train(dataclasses.replace(config, out=part.folder), resume=part.folder)
    one, other = (load_checkpoint(run.checkpoint("last")) for run in (whole, resumed))
    for name, array in one.model.items():
        assert array.tobytes() == other.model[name].tobytes(), name
    losses = [[record["loss"] for record in run.metrics()] for run in (whole, resumed)]
    assert losses[0] == losses[1]


# --- data ----------------------------------------------------------------------------------------------------------


def test_what_was_left_out_is_said(data) -> None:
    task = PreferenceTask(settings(data))
    assert "1 left out (line 8: the field 'chosen' is empty" in task.summary()
    assert "1 cut to 64 tokens, of which 1 had no answer left and were dropped" in task.summary()
    assert len(task.learned) + len(task.out) == 40


def test_held_out_pairs_are_never_trained_on(data) -> None:
    task = PreferenceTask(settings(data))
    seen = {number for step in range(20) for number in task.batch(step)["number"].tolist()}
    assert seen == set(task.learned.tolist())
    held = [number for batch in task.evaluation_batches(99) for number in batch["number"].tolist()]
    assert sorted(held) == task.out.tolist()


def test_records_on_one_line_are_told_apart(data) -> None:
    records = [json.loads(line) for line in data.read_text().splitlines()]
    expected = PreferenceTask(settings(data))
    data.write_text(json.dumps(records))
    found = PreferenceTask(settings(data))
    assert (found.is_out == expected.is_out).all()
    assert 0 < found.is_out.sum() < 20


def test_data_without_a_usable_pair_is_refused(data, tmp_path) -> None:
    with pytest.raises(InputError, match=r"leaves no pair to be trained on: .* 41 had no answer left"):
        PreferenceTask(settings(data, max_length=2))
    data = tmp_path / "empty.jsonl"
    data.write_text(json.dumps({"prompt": "a", "chosen": "", "rejected": ""}))
    with pytest.raises(InputError, match="its one record cannot be used; line 1: the field 'chosen' is empty"):
        PreferenceTask(settings(data))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(beta=0.0), "beta is 0.0; give a number above 0"),
        (dict(loss="exo_pair"), "exo_pair needs a label_smoothing above 0"),
        (dict(loss="robust", label_smoothing=0.5), "robust has label_smoothing=0.5; give a share below 0.5"),
        (dict(max_length=1), "max_length is 1; give 2 or more tokens"),
    ],
)
def test_impossible_options_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        PreferenceOptions(**options)
