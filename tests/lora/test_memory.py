"""The memory of training adapters, measured: what `describe` predicts, and what training all weights takes."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from minillm import backend
from minillm.lora import LoraConfig, add_lora, lora_state_dict
from minillm.models.bart import Bart, BartConfig
from minillm.models.bert import BertConfig, BertForMaskedLM
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.optim import AdamW, decay_groups
from minillm.study.describe import describe_config
from minillm.study.profile import Profile, profiled

SMALL: dict[str, Any] = dict(channels=192, hidden=520, heads=6, kv_heads=2, layers=5, context=160, vocab_size=300)
MODELS: dict[str, tuple[Any, Any]] = {
    "gpt2": (GPT2, GPT2Config.preset("tiny", layers=5, dropout=0.1)),
    "llama": (Llama, LlamaConfig.preset("nano", **SMALL, tied=True)),
    "bert": (BertForMaskedLM, BertConfig.preset("bert-mini", vocab_size=999)),
    "bart": (Bart, BartConfig.preset("nano", context=64, vocab_size=300, encoder_layers=4, decoder_layers=4)),
}
SETTINGS = {
    "default": LoraConfig(rank=4),
    "all, with dropout": LoraConfig(rank=4, targets="all-linear", dropout=0.1),
    "two blocks": LoraConfig(targets=("c_attn", "v_proj", "value"), layers_to_transform=(1, 3)),
}
ROWS, TOKENS = 6, 60


@pytest.fixture
def one_thread() -> Iterator[None]:
    before, backend.cutting = backend.cutting, backend.cutting._replace(threads=1)
    yield
    backend.cutting = before


def batch(model: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, model.config.vocab_size, (2, ROWS, TOKENS))
    if isinstance(model, Bart):
        return {"source": ids, "targets": targets}
    if isinstance(model, BertForMaskedLM):
        targets.reshape(-1)[rng.permutation(targets.size)[round(0.15 * targets.size) :]] = -100
        return {"ids": ids, "labels": targets}
    return {"ids": ids, "targets": targets}


def targets_of(name: str, settings: LoraConfig) -> LoraConfig:
    """The settings with those targets that a model has."""
    if not isinstance(settings.targets, tuple):
        return settings
    [target] = {"gpt2": ("c_attn",), "bert": ("value",)}.get(name, ("v_proj",))
    return LoraConfig(targets=(target,), layers_to_transform=settings.layers_to_transform)


def measured(kind: Any, config: Any, lora: LoraConfig | None) -> tuple[int, int, int]:
    """Bytes of weights and of what the optimiser adds, and the most that forward and backward hold beside them."""
    model = kind(config)
    if lora is not None:
        add_lora(model, lora)
    weights = sum(parameter.data.nbytes for parameter in model.parameters())
    optimizer = AdamW(decay_groups(model.parameters(), 0.1))
    kept = sum(group.grad.nbytes + sum(x.nbytes for x in group.moments.values()) for group in optimizer.groups)
    arrays = batch(model)
    for _ in range(2):  # what is made once and kept, such as angles
        optimizer.zero_grad()
        model.loss(**arrays).backward()
    optimizer.zero_grad()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        model.loss(**arrays).backward()
        return weights, kept, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", MODELS)
def test_a_step_takes_what_is_predicted(name: str, settings: str) -> None:
    """Weights, gradients and two moments of the adapters to the byte (but for padding), the peak within 3%."""
    kind, config = MODELS[name]
    lora = targets_of(name, SETTINGS[settings])
    found = describe_config(name, kind, config, ROWS, TOKENS, lora=lora)
    weights, kept, peak = measured(kind, config, lora)
    model = add_lora(kind(config), lora)
    trained = sum(array.size for array in lora_state_dict(model).values())
    assert found.trained == trained
    assert found.weight_bytes == weights == 4 * model.num_parameters()
    assert found.gradient_bytes + found.moment_bytes == 3 * 4 * trained
    assert kept == pytest.approx(3 * 4 * trained, rel=0.05)  # each parameter begins on a cache line
    assert found.peak == pytest.approx(peak, rel=0.03)
    profile = Profile()
    with profiled(profile):
        model.loss(**batch(model)).backward()
    assert found.flops_per_token * found.tokens == profile.flops


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_adapters_take_less_than_the_whole(name: str) -> None:
    """Against training all weights: a small part of gradients and moments, fewer activations, fewer operations."""
    kind, config = MODELS[name]
    lora, full = (describe_config(name, kind, config, ROWS, TOKENS, lora=lora) for lora in (LoraConfig(rank=4), None))
    whole, adapted = measured(kind, config, None), measured(kind, config, LoraConfig(rank=4))
    assert adapted[1] < 0.06 * whole[1]
    assert adapted[2] < whole[2]
    assert sum(adapted) < 0.75 * sum(whole)
    assert lora.step_bytes == pytest.approx(sum(adapted), rel=0.03)
    assert full.step_bytes == pytest.approx(sum(whole), rel=0.03)
    assert lora.flops_per_token < 0.8 * full.flops_per_token
