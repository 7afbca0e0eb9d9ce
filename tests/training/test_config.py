"""The settings of a run: JSON in and out, presets, and every value that is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from minillm.errors import CheckpointError, InputError
from minillm.models.gpt2 import GPT2Config
from minillm.training.config import PRESETS, TrainConfig, preset


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
        ("lr", [-1e-9, math.nan], "0 or more"),
        ("min_lr", [-1e-9, math.nan], "0 or more"),
        ("weight_decay", [-1e-9, math.nan], "0 or more"),
        ("clip", [0.0, -1.0, math.nan], "a norm above 0"),
        ("validation_fraction", [0.0, 1.0, -0.1, math.nan], "a share above 0 and below 1"),
    ],
)
def test_values_that_are_refused(name: str, values: list, expected: str) -> None:
    for value in values:
        with pytest.raises(InputError, match=f"^train: {name} is {value}; give {expected}"):
            TrainConfig(**{name: value})


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
