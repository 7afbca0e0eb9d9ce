"""GRPO: answers and their probabilities, groups, what is logged, that it learns, and that it resumes exactly."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm import random
from minillm.autograd import no_grad
from minillm.checkpoint import load_checkpoint
from minillm.data.arithmetic import make_problems, write_problems
from minillm.errors import InputError
from minillm.generate import generate_batch
from minillm.lora import LoraConfig, add_lora
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.tokenizers import BPETokenizer
from minillm.training import TrainConfig, train
from minillm.training.prepare import make_model
from minillm.training.tasks.grpo import DULL, GRPOOptions, GRPOTask, Sampled, sample_answers, seed_of
from minillm.training.tasks.scoring import scored
from minillm.training.whole_model import accumulate_gradients
from tests.training.answer_runs import settings_of

TINY = GPT2Config(vocab_size=256, context=24, layers=2, heads=2, channels=32, dropout=0.1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sums of up to two digits, and a tokenizer of characters that knows an end."""
    write_problems(tmp_path / "sums.jsonl", make_problems(60, 2))
    BPETokenizer.train("0123456789+=", 257, ("<|endoftext|>",)).save(tmp_path / "tokenizer")
    return tmp_path / "sums.jsonl"


def settings(data: Path, out: str = "run", **changes: Any) -> TrainConfig:
    defaults = dict(model=TINY, batch_size=16, lr=1e-3, eval_batches=1, group_size=4, answer_length=4)
    return settings_of("grpo", data, out, defaults, changes)


class EvenAnswers(GRPOTask):
    """A reward that an untrained model meets now and then: the share of digits in what it writes."""

    def reward(self, instruction: Any, written: str) -> float:
        return sum(letter.isdigit() for letter in written) / 4


def begun(config: TrainConfig, kind: type = EvenAnswers, dtype: str = "float32") -> tuple[Any, Any]:
    task = kind(config)
    random.manual_seed(0)
    model = make_model(config, task.tokenizer).to(dtype)
    task.begin(model, {})
    return task, model.eval()


# --- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_right_after_sampling_every_ratio_is_one(architecture, temperature, rng) -> None:
    """Sampled with a cache of keys and values, prompts of unequal lengths padded on the left; scored in one pass."""
    random.manual_seed(3)
    if architecture == "gpt2":
        model: Any = GPT2(TINY)
    else:
        model = Llama(LlamaConfig.preset("nano"))
    for parameter in model.parameters():
        parameter.data[...] *= 3  # so that the distributions are not flat
    model.eval()
    prompts = [rng.integers(0, 256, n).tolist() for n in (1, 7, 3, 12)]  # of several lengths
    stop = range(0, 40)
    answers = sample_answers(model, prompts, 9, temperature, stop=stop, seed=5)
    assert {answer.ended for answer in answers} == {True, False} or all(len(answer.ids) == 9 for answer in answers)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = np.array([*prompt, *answer.ids])
        targets = np.where(np.arange(1, len(ids)) >= len(prompt), ids[1:], -100)
        with no_grad():
            log_probs = scored(model, ids[None, :-1], targets[None], temperature).log_probs.data[0]
        found = np.array(answer.log_probs)
        assert np.abs(np.exp(log_probs[len(prompt) - 1 :] - found) - 1).max() < 1e-5
        if temperature != 1:
            at_one = scored(model, ids[None, :-1], targets[None], 1.0).log_probs.data[0][len(prompt) - 1 :]
            assert np.abs(np.exp(at_one / temperature - found) - 1).max() > 1e-3
    alike = generate_batch(model, prompts, 9, seed=5, stop=stop, temperature=temperature)
    assert [answer.ids for answer in answers] == alike


@pytest.mark.parametrize("temperature", [0.6, 1.3])
def test_ratios_are_one_to_a_millionth_in_float64(data, temperature) -> None:
    task, model = begun(settings(data, temperature=temperature), dtype="float64")
    batch = task.batch(0, model)
    assert (batch["lengths"] < batch["ids"].shape[1]).any()
    task.sums(model, batch)
    assert task.notes()["ratio_error"] < 1e-6


def test_seeds_of_steps_are_far_apart() -> None:
    seeds = [seed_of(seed, step) for seed in range(5) for step in range(200)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 1 << 56 for seed in seeds)
    assert np.diff(np.sort(np.array(seeds))).min() > 10_000


# --- batches -------------------------------------------------------------------------------------------------------


def test_a_batch_has_groups_of_answers_to_one_prompt(data) -> None:
    task, model = begun(settings(data))
    batch = task.batch(3, model)
    assert batch["ids"].shape[0] == 16
    starts = (batch["targets"] != -100).argmax(1)
    for group in range(4):
        rows = slice(4 * group, 4 * group + 4)
        assert (
            len({row[: start + 1].tobytes() for row, start in zip(batch["ids"][rows], starts[rows], strict=True)}) == 1
        )
        assert batch["advantages"][rows].sum() == pytest.approx(0, abs=1e-5)
    assert len({row.tobytes() for row in batch["ids"]}) > 8
    again = task.batch(3, model)
    assert all(array.tobytes() == again[name].tobytes() for name, array in batch.items())


def test_the_end_of_an_answer_is_learned_and_nothing_behind_it(data) -> None:
    task, _ = begun(settings(data))
    end = task.tokenizer.eos_id
    prompt = task.prompts[2]
    answers = [Sampled([49, end], [-1.0, -2.0], True), Sampled([49, 50, 51, 52], [-1.0, -2.0, -3.0, -4.0], False)]
    batch = task.made(np.array([2, 2]), answers, np.array([[1.0, -1.0]]))
    place = len(prompt) - 1
    assert batch["targets"][0, place:].tolist() == [49, end, -100, -100]
    assert batch["old"][0, place:].tolist() == [-1.0, -2.0, 0.0, 0.0]
    assert batch["targets"][1, place:].tolist() == [49, 50, 51, 52]
    assert task.counts(batch) == {"loss": 6}


@pytest.mark.parametrize(("average", "count"), [("grpo", 2), ("bnpo", 2), ("dapo", 2), ("dr_grpo", 8)])
def test_truncated_answers_can_be_left_out(data, average, count) -> None:
    task, model = begun(settings(data, mask_truncated=True, average=average))
    answers = [Sampled([49, task.tokenizer.eos_id], [-1.0, -2.0], True), Sampled([49, 50, 51, 52], [-1.0] * 4, False)]
    batch = task.made(np.array([2, 2]), answers, np.array([[1.0, -1.0]]))
    assert task.counts(batch) == {"loss": count}
    alone = {name: array[:1] for name, array in batch.items()}
    both, one = (task.sums(model, rows)["loss"].item() for rows in (batch, alone))
    assert both == pytest.approx(one, rel=1e-5)


def test_what_is_logged_and_a_warning_when_nothing_can_be_learned(data) -> None:
    task, _ = begun(settings(data))
    answers = [Sampled([49, 50], [-1.0, -1.0], number % 2 == 0) for number in range(8)]
    task.note(np.array([[1, 0, 0, math.nan], [0, 0, 0, 0]]), answers)
    noted = task.notes()
    assert noted["reward"] == pytest.approx(1 / 7)
    assert noted["frac_reward_zero_std"] == 0.5
    assert noted["completions/clipped_ratio"] == 0.5
    assert noted["completions/mean_length"] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(DULL - 1):
            task.note(np.zeros((2, 4)), answers)
    with pytest.warns(UserWarning, match="grpo: for 10 steps all answers to each prompt got the same reward"):
        task.note(np.zeros((2, 4)), answers)


def test_groups_of_equal_rewards_have_no_gradient(data) -> None:
    class Same(GRPOTask):
        def reward(self, instruction, written):
            return 0.7

    task, model = begun(settings(data), Same)
    value = float(accumulate_gradients(model, task.batch(0, model), 1, task))
    assert value == 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


# --- learning ------------------------------------------------------------------------------------------------------


def test_it_learns_what_is_rewarded(data, monkeypatch) -> None:
    monkeypatch.setattr(GRPOTask, "reward", EvenAnswers.reward)
    config = settings(data, steps=40, batch_size=64, group_size=16, lr=5e-3, eval_every=40)
    records = [record for record in train(config).metrics() if record["loss"] is not None]
    first, last = (np.mean([record["reward"] for record in part]) for part in (records[:4], records[-4:]))
    assert last > first + 0.3
    assert all(abs(record["loss"]) < 0.5 for record in records)
    assert all(record["grad_norm"] > 1e-3 for record in records[:4])
    assert all(record["ratio_error"] < 1e-5 for record in records)
    assert {"reward_std", "frac_reward_zero_std", "completions/mean_length"} <= records[0].keys()


def test_held_out_prompts_measure_it(data, capsys) -> None:
    run = train(settings(data, sample_every=8))
    before, *_, last = run.metrics()
    assert before["val_loss"] == pytest.approx(1 - before["val_reward"])
    assert last["val_loss"] == pytest.approx(1 - last["val_reward"])
    assert last["val_missing_reward"] == last["val_loss"]
    shown = capsys.readouterr().out
    assert f"step 0/8  1 - held-out reward {before['val_loss']:.3f}" in shown
    assert f"1 - held-out reward: last {last['val_loss']:.4f} at step 8" in shown
    assert "validation" not in shown
    assert "+" in shown
    assert "held-out reward" in shown
    assert "(a loss near 0 is usual)" in shown


# --- the reference -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True])
def test_the_distance_is_that_from_the_start(data, lora, rng) -> None:
    config = settings(data, beta=0.5)
    task = EvenAnswers(config)
    random.manual_seed(0)
    model = make_model(config, task.tokenizer)
    if lora:
        add_lora(model, LoraConfig(rank=2))
    kept = task.begin(model, {})
    assert bool(kept) != lora
    before = task.batch(0, model.eval())
    task.sums(model, before)
    assert task.notes()["kl"] == pytest.approx(0, abs=1e-6)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * rng.normal(size=parameter.shape).astype(np.float32)
    after = task.batch(0, model)
    task.sums(model, after)
    assert task.notes()["kl"] > 1e-4
    resumed = EvenAnswers(config, task.tokenizer)
    if not lora:
        resumed.begin(make_model(config, task.tokenizer), kept)
        assert resumed.batch(0, model)["reference"].tobytes() == after["reference"].tobytes()


# --- exactness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["grpo", "dapo", "dr_grpo"])
def test_parts_of_a_batch_give_the_gradient_of_the_batch(data, average) -> None:
    task, model = begun(settings(data, average=average, beta=0.1), dtype="float64")
    batch = task.batch(1, model)
    for parameter in model.parameters():
        parameter.data *= 1.01  # off the point where all ratios are 1
    results = []
    for parts in (1, 3, 16):
        model.zero_grad()
        value = float(accumulate_gradients(model, batch, parts, task))
        results.append((value, {name: p.grad.copy() for name, p in model.named_parameters() if p.grad is not None}))
    for value, gradients in results[1:]:
        assert value == pytest.approx(results[0][0], rel=1e-10, abs=1e-12)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, results[0][1][name], atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_run_goes_on_as_if_it_had_not_stopped(data, beta, monkeypatch) -> None:
    monkeypatch.setattr(GRPOTask, "reward", EvenAnswers.reward)
    config = settings(data, "whole", beta=beta, schedule="wsd", decay_steps=0)
    whole = train(config)
    part = train(dataclasses.replace(config, out=data.parent / "part", steps=4))
    resumed = train(dataclasses.replace(config, out=part.folder), resume=part.folder)
    one, other = (load_checkpoint(run.checkpoint("last")) for run in (whole, resumed))
    assert all(array.tobytes() == other.model[name].tobytes() for name, array in one.model.items())


# --- data ----------------------------------------------------------------------------------------------------------


def test_prompts_without_room_for_an_answer_are_left_out(data) -> None:
    write_problems(data, [*make_problems(30, 2), *make_problems(2, 8)])
    task = GRPOTask(settings(data, answer_length=8))
    assert "2 too long for the context, and dropped" in task.summary()
    assert len(task.learned) + len(task.out) == 30


def test_builtin_problems(data) -> None:
    task = GRPOTask(dataclasses.replace(settings(data), data="builtin"))
    assert len(task.learned) + len(task.out) == 2000
    assert task.reward(task.instructions[0], task.instructions[0].messages[-1].content) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(group_size=1), "group_size is 1; give 2 or more"),
        (dict(temperature=0.0), "temperature is 0.0; give a number above 0"),
        (dict(eps_low=-0.1), "eps_low is -0.1; give 0 or more"),
    ],
)
def test_impossible_options_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        GRPOOptions(**options)


def test_a_batch_of_broken_groups_is_refused(data) -> None:
    with pytest.raises(InputError, match="batch_size=18 answers are no whole number of groups of 4"):
        GRPOTask(settings(data, batch_size=18))
