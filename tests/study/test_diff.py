"""Where two models part: a planted fault is found in its own layer."""

from __future__ import annotations

import numpy as np
import pytest

import minillm
from minillm.errors import InputError
from minillm.grad_mode import state
from minillm.models.llama import Llama, LlamaConfig
from minillm.study.diff import differences, outputs_of_layers

CONFIG = LlamaConfig(19, 16, 2, 4, 2, 16, 24)


def two_alike() -> tuple[Llama, Llama]:
    models = []
    for _ in range(2):
        minillm.manual_seed(4)
        models.append(Llama(CONFIG))
    return models[0], models[1]


def test_models_alike(rng) -> None:
    a, b = two_alike()
    found = differences(a, b, rng.integers(0, 19, (2, 7)))
    layers = ["ln_1", "attn.qkv", "attn.proj", "attn", "ln_2", "mlp.gate", "mlp.up", "mlp.down", "mlp"]
    blocks = [name for i in range(2) for name in (*(f"h.{i}.{layer}" for layer in layers), f"h.{i}")]
    assert [one.layer for one in found] == ["wte", *blocks, "ln_f", "lm_head", ""]
    assert {one.error for one in found} == {0.0}
    assert a.training
    assert b.training


@pytest.mark.parametrize("name", [name for name, _ in Llama(CONFIG).named_parameters()])
def test_a_changed_weight_is_found_in_its_layer(name, rng) -> None:
    a, b = two_alike()
    weights = dict(b.named_parameters())[name].data
    weights += rng.normal(size=weights.shape).astype(np.float32)
    found = differences(a, b, rng.integers(0, 19, (2, 7)))
    first = next(one for one in found if one.error > 1e-4)
    assert first.layer == name.rpartition(".")[0]
    assert all(one.error == 0 for one in found[: found.index(first)])


def test_what_is_not_finite_or_of_another_shape_is_infinitely_far(rng) -> None:
    a, b = two_alike()
    ids = rng.integers(0, 19, (1, 3))
    b.ln_f.weight.data[3] = np.nan
    assert [one.layer for one in differences(a, b, ids) if one.error == np.inf] == ["ln_f", "lm_head", ""]
    c = Llama(LlamaConfig(19, 16, 2, 4, 2, 16, 30))
    first = next(one for one in differences(a, c, ids) if one.error == np.inf)
    assert (first.layer, first.shapes) == ("h.0.mlp.gate", ((1, 3, 24), (1, 3, 30)))


def test_models_with_other_layers() -> None:
    a, _ = two_alike()
    ids = np.zeros((1, 2), int)
    with pytest.raises(InputError, match=r"where the first model runs 'ln_f', the second runs 'h\.2\.ln_1'"):
        differences(a, Llama(LlamaConfig(19, 16, 3, 4, 2, 16, 24)), ids)


def test_nothing_is_left_behind_by_an_error(rng) -> None:
    a, b = two_alike()
    with pytest.raises(InputError, match="token id 19 is out of range"):
        differences(a, b, np.full((1, 2), 19))
    assert a.training
    assert state.observers == ()
    assert len(differences(a, b, rng.integers(0, 19, (1, 2)))) == 24


def test_outputs_are_arrays_by_the_paths_of_their_layers() -> None:
    outputs = outputs_of_layers(Llama(CONFIG), np.zeros((1, 1), int))
    assert [name for name, _ in outputs][:2] == ["wte", "h.0.ln_1"]
    assert {type(array) for _, array in outputs} == {np.ndarray}
    assert outputs[-1][1].shape == (1, 1, 19)
