"""The settings of a run: JSON in and out, presets, and every value that is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from minillm.errors import CheckpointError, InputError
from minillm.models.gpt2 import GPT2Config
from minillm.training.config import PRESETS, Derived, TrainConfig, preset
from minillm.training.trainer import learning_rate


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name: str) -> None:
    changed = dataclasses.replace(PRESETS[name], out=Path("runs/x"), lr=0.1 + 0.2, field="body")
    for config in (PRESETS[name], changed):
        content = json.loads(json.dumps(config.to_json()))
        assert TrainConfig.from_json(content) == config
        assert content.keys() == {field.name for field in dataclasses.fields(TrainConfig)}
    assert changed.to_json()["out"] == "runs/x"


def test_fields_that_are_not_given_have_their_defaults() -> None:
    assert TrainConfig.from_json({"steps": 5}) == TrainConfig(steps=5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"step": 3}, r"^config: there is no setting called 'step'; did you mean 'steps'\?$"),
        ({"steps": "three"}, "^config: the settings cannot be used: "),
        ({"steps": 0}, "^config: the settings cannot be used: train: steps is 0; give 1 or more$"),
        ({"model": {"layer": 2}}, r"^config: there is no setting called 'layer'; did you mean 'layers'\?"),
        ({"model": {"layers": 0}}, "^config: the settings cannot be used: GPT2Config: layers is 0"),
        ({"model": 5}, "^config: the settings cannot be used: "),
    ],
)
def test_json_that_cannot_be_used(content, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        TrainConfig.from_json(content)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("steps", [0, -1], "1 or more"),
        ("batch_size", [0], "1 or more"),
        ("micro_batches", [0], "1 or more"),
        ("eval_every", [0], "1 or more"),
        ("eval_batches", [0], "1 or more"),
        ("warmup", [-1], "0 or more"),
        ("decay_steps", [-1], "0 or more"),
        ("sample_every", [-1], "0 or more"),
        ("sample_tokens", [-1], "0 or more"),
        ("seed", [-1], "0 or more"),
        ("lr", [-1e-9, math.nan, math.inf], "0 or more"),
        ("min_lr", [-1e-9, math.nan, math.inf], "0 or more"),
        ("weight_decay", [-1e-9, math.nan, math.inf], "0 or more"),
        ("clip", [0.0, -1.0, math.nan], "a norm above 0"),
        ("validation_fraction", [0.0, 1.0, -0.1, math.nan], "a share above 0 and below 1"),
    ],
)
def test_values_that_are_refused(name: str, values: list, expected: str) -> None:
    for value in values:
        with pytest.raises(InputError, match=f"^train: {name} is {value}; give {expected}"):
            TrainConfig(**{name: value})


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize(
    "changes", [{}, {"lr": 1e-5}, {"lr": 0.0}, {"lr": 10.0}, *({"steps": n} for n in (1, 2, 3, 7, 20, 10**6))], ids=str
)
def test_a_preset_of_which_one_setting_is_changed_still_keeps_its_promises(name, schedule, changes) -> None:
    before = PRESETS[name]
    warmup_is_given, floor_is_given = (not isinstance(x, Derived) for x in (before.warmup, before.min_lr))
    if warmup_is_given and changes.get("steps", before.steps) <= before.warmup:
        with pytest.raises(InputError, match="give a smaller --warmup, or more --steps"):
            dataclasses.replace(before, schedule=schedule, **changes)
        return
    config = dataclasses.replace(before, schedule=schedule, **changes)
    last = config.steps - 1
    chosen = {0, 1, config.warmup - 1, config.warmup, config.steps // 2, last - config.decay_steps, last - 1, last}
    rates = {step: learning_rate(config, step) for step in sorted(chosen) if 0 <= step <= last}
    assert max(rates.values()) == config.lr
    if config.steps > 1 and (schedule == "cosine" or config.decay_steps):
        floor = before.min_lr if floor_is_given else config.lr / 10
        assert rates[last] == pytest.approx(floor, rel=1e-12)
    after = [rate for step, rate in rates.items() if step >= config.warmup]
    assert after == sorted(after, reverse=True)


def test_numbers_that_nobody_gave_follow_from_others() -> None:
    config = TrainConfig()
    assert (config.min_lr, config.warmup, config.decay_steps) == (1e-4, 100, 200)
    short = dataclasses.replace(config, steps=20, lr=0.5)
    assert (short.min_lr, short.warmup, short.decay_steps) == (0.05, 2, 2)
    given = dataclasses.replace(short, warmup=3, min_lr=0.3)
    again = dataclasses.replace(given, steps=2000, lr=1.0)  # what was given stays
    assert (again.min_lr, again.warmup, again.decay_steps) == (0.3, 3, 200)
    saved = TrainConfig.from_json(json.loads(json.dumps(short.to_json())))
    with pytest.raises(InputError, match=r"min_lr=0\.05 is above lr=0\.01"):  # a run's settings are all given
        dataclasses.replace(saved, lr=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lr": 1e-5, "min_lr": 1e-4},
            "min_lr=0.0001 is above lr=1e-05, so the rate would rise; give --min-lr of 1e-05",
        ),
        ({"min_lr": 2e-3}, "min_lr=0.002 is above lr=0.001"),
        (
            {"steps": 50, "warmup": 100},
            "warmup=100 leaves none of steps=50 for the rate to reach min_lr; give a smaller",
        ),
        ({"steps": 50, "warmup": 50}, "warmup=50 leaves none of steps=50"),
        (
            {"steps": 10, "warmup": 3, "schedule": "wsd", "decay_steps": 200},
            "warmup=3 and decay_steps=200 do not fit into steps=10; give --decay-steps of 7 at most, a",
        ),
        ({"steps": 10, "warmup": 0, "schedule": "wsd", "decay_steps": 10}, "give --decay-steps of 9 at most"),
        ({"format": 3}, "the run has format 3; this version knows 1 to 2"),
    ],
)
def test_learning_rates_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        TrainConfig(**settings)
    if "format" not in settings:
        assert TrainConfig(**settings, format=1).format == 1  # but a run that began so goes on


def test_every_part_of_a_batch_needs_a_sequence() -> None:
    assert TrainConfig(batch_size=4, micro_batches=4).micro_batches == 4
    with pytest.raises(InputError, match="micro_batches=5 parts of a batch of 4 sequences would be empty; give 4 or"):
        TrainConfig(batch_size=4, micro_batches=5)


def test_presets_know_their_name_and_a_wrong_one_suggests_the_nearest() -> None:
    assert all(config.preset == name and preset(name) is config for name, config in PRESETS.items())
    with pytest.raises(InputError, match=r"no preset is called 'shakespear-char-cpu'; did you mean 'shakespeare-char-"):
        preset("shakespear-char-cpu")
    with pytest.raises(InputError, match="no preset is called 'x'; choose one of: default, "):
        preset("x")


def test_the_shakespeare_preset_is_nanogpts() -> None:
    """config/train_shakespeare_char.py with the arguments that nanoGPT's README gives for a CPU."""
    config = PRESETS["shakespeare-char-cpu"]
    assert config.model == GPT2Config(vocab_size=65, context=64, layers=4, heads=4, channels=128, dropout=0.0)
    expected = {
        "batch_size": 12,
        "micro_batches": 1,
        "steps": 2000,
        "lr": 1e-3,
        "min_lr": 1e-4,
        "warmup": 100,
        "beta1": 0.9,
        "beta2": 0.99,
        "weight_decay": 0.1,
        "clip": 1.0,
        "schedule": "cosine",
        "tokenizer": "char",
        "validation_fraction": 0.1,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.eval_batches >= 20


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().steps = 3  # type: ignore[misc]
