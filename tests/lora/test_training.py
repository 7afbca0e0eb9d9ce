"""Training adapters in the loop: what is saved, resumed bit for bit, on several ranks, and what is opened afterwards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minillm
from minillm.checkpoint import load_checkpoint
from minillm.errors import CheckpointError, InputError
from minillm.lora import LoraConfig, add_lora, is_lora, load_lora, lora_state_dict, save_lora
from minillm.models.gpt2 import GPT2Config
from minillm.models.llama import LlamaConfig
from minillm.training.config import TrainConfig
from minillm.training.trainer import train

TEXT = "the quick brown fox jumps over the lazy dog. " * 60
CONFIG = TrainConfig(
    tokenizer="char",
    model=GPT2Config.preset("nano", context=16, dropout=0.1),
    steps=6,
    batch_size=4,
    eval_every=3,
    eval_batches=2,
    sample_every=0,
    lr=0.05,
    lora=LoraConfig(rank=3, dropout=0.2, targets=("c_attn", "c_fc")),
    threads=1,
)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    (tmp_path / "text.txt").write_text(TEXT)
    return dataclasses.replace(CONFIG, data=str(tmp_path / "text.txt"), out=tmp_path / "run")


def checkpoint_of(folder: Path) -> Any:
    return load_checkpoint(folder / "checkpoints" / "last.safetensors")


def test_a_run_trains_and_saves_adapters_alone(config: TrainConfig) -> None:
    run = train(config, progress=False)
    found = checkpoint_of(run.folder)
    assert len(found.model) == 8
    assert all(".lora." in name for name in found.model)
    assert {name.partition(".")[2] for name in found.optimizer if "." in name} == set(found.model)
    assert all(array.any() for array in found.model.values())  # every B has moved
    assert run.folder.joinpath("checkpoints/last.safetensors").stat().st_size < 50_000
    losses = [record["val_loss"] for record in run.metrics() if record["val_loss"] is not None]
    assert losses[1] < losses[0]


def test_a_resumed_run_ends_bit_for_bit(config: TrainConfig, tmp_path: Path) -> None:
    """A constant rate, so that a run of half the steps is the first half of the other."""
    config = dataclasses.replace(config, min_lr=config.lr, warmup=0)
    whole = checkpoint_of(train(config, progress=False).folder)
    part = train(dataclasses.replace(config, steps=3, out=tmp_path / "part"), progress=False)
    assert checkpoint_of(part.folder).state["step"] == 3
    config = dataclasses.replace(config, out=part.folder)
    again = checkpoint_of(train(config, resume=part.folder, progress=False).folder)
    for ours, theirs in ((again.model, whole.model), (again.optimizer, whole.optimizer)):
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array)


def test_adapters_belong_to_their_base(config: TrainConfig) -> None:
    """A run does not go on when the frozen weights are others: here, of another seed."""
    run = train(dataclasses.replace(config, steps=3), progress=False)
    other = dataclasses.replace(config, seed=5, out=run.folder)
    with pytest.raises(CheckpointError, match="train: the weights under the adapters are not those"):
        train(other, resume=run.folder, progress=False)


def test_a_run_is_opened_with_its_adapters_merged(config: TrainConfig, tmp_path: Path) -> None:
    run = train(config, progress=False)
    model = minillm.load(run.folder)
    assert not is_lora(model)
    ids = np.arange(16)[None] % 20
    model.save_pretrained(tmp_path / "merged")
    with minillm.no_grad():
        np.testing.assert_array_equal(minillm.load(tmp_path / "merged")(ids).data, model(ids).data)
    values = json.loads((run.folder / "config.json").read_text())
    (run.folder / "config.json").write_text(json.dumps(values | {"seed": 1}))
    with pytest.raises(CheckpointError, match="the weights under the adapters of .* are not those"):
        minillm.load(run.folder)


def test_an_adapter_folder_is_opened_on_its_base(tmp_path: Path) -> None:
    from minillm.models.llama import Llama

    base = Llama(LlamaConfig.preset("nano"))
    base.save_pretrained(tmp_path / "plain")
    model = add_lora(minillm.load(tmp_path / "plain"), LoraConfig(rank=2))
    rng = np.random.default_rng(0)
    for array in lora_state_dict(model).values():
        array[...] = rng.normal(0, 0.3, array.shape)
    save_lora(model, tmp_path / "adapter", base="../plain")
    ids = np.arange(16)[None]
    with minillm.no_grad():
        expected, opened = model(ids).data, minillm.load(tmp_path / "adapter")
        np.testing.assert_allclose(opened(ids).data, expected, rtol=1e-4, atol=1e-4)
    assert not is_lora(opened)
    assert is_lora(load_lora(minillm.load(tmp_path / "plain"), tmp_path / "adapter"))


@pytest.mark.parametrize("division", [{"tp": 2}, {"pp": 2}])
def test_layers_under_adapters_are_not_divided(division: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"train: --lora 3 trains adapters of whole layers.*--dp and --zero work"):
        dataclasses.replace(CONFIG, **division)


def test_settings_come_back_from_json() -> None:
    lora = LoraConfig(rank=4, targets="q_proj,v_proj", rank_pattern={"q_proj": 2}, layers_to_transform=(1, 2))
    config = dataclasses.replace(CONFIG, lora=lora)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
