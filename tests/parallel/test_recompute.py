"""Blocks that are computed a second time: the same bits, from less memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from minillm import random
from minillm.data import permute_tokens
from minillm.errors import InputError
from minillm.models.bart import Bart
from minillm.models.bart_config import BartConfig, both_sides
from minillm.models.gemma import Gemma, GemmaConfig
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama
from minillm.models.xlnet import XLNetConfig, XLNetLMHeadModel
from minillm.parallel.recompute import parse_layers, recompute
from minillm.testing import check_gradients
from tests.parallel.training import LLAMA

CONFIG = GPT2Config(vocab_size=61, context=64, layers=6, heads=2, channels=32, dropout=0.2)


def gradients(model, layers, seed=3):
    if layers is not None:
        recompute(model, layers)
    ids = np.random.default_rng(0).integers(0, 61, (4, 33))
    random.manual_seed(seed)
    loss = model.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    return loss.item(), {p.name: p.grad for p in model.parameters()}, random.default.counter


@pytest.mark.parametrize("layers", [[0], [5], [1, 3, 4], range(6)])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma", "qwen3"])
def test_the_same_bits(kind, layers):
    def build():
        random.manual_seed(1)
        if kind == "gemma":
            return Gemma(replace(GemmaConfig.preset("nano", layers=6, logit_cap=9.0), attention_cap=5.0))
        if kind == "qwen3":
            return Llama(replace(LLAMA, layers=6, context=64, qk_norm=True, window=5, full_blocks=(1, 4)))
        return GPT2(CONFIG) if kind == "gpt2" else Llama(replace(LLAMA, layers=6, context=64))

    expected, found = gradients(build(), None), gradients(build(), layers)
    assert found[0] == expected[0]
    assert found[2] == expected[2]  # the place in the random stream
    for name in expected[1]:
        np.testing.assert_array_equal(found[1][name], expected[1][name], err_msg=name)


@pytest.mark.parametrize("kind", ["bart", "xlnet"])
def test_blocks_with_several_inputs_and_outputs(kind):
    """A Bart's decoder reads keys and values of the encoder; an XLNet's block has two streams."""
    draw = np.random.default_rng(0)
    if kind == "bart":
        config = BartConfig(61, 16, channels=16, **both_sides(2, 2, 24), dropout=0.2, attention_dropout=0.2)
        batch = {"source": draw.integers(4, 61, (3, 9)), "targets": draw.integers(4, 61, (3, 7))}
    else:
        config = XLNetConfig(61, layers=3, heads=2, channels=16, hidden=24, dropout=0.2)
        batch = permute_tokens(draw.integers(0, 61, (3, 12)), generator=random.Generator(1))._asdict()

    def gradients(again):
        random.manual_seed(1)
        model = Bart(config) if kind == "bart" else XLNetLMHeadModel(config)
        if again:
            recompute(model)
        random.manual_seed(3)
        loss = model.loss(**batch)
        loss.backward()
        return loss.item(), {p.name: p.grad for p in model.parameters() if p.grad is not None}

    expected, found = gradients(False), gradients(True)
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        np.testing.assert_array_equal(found[1][name], gradient, err_msg=name)


def test_the_gradient_is_that_of_the_function():
    random.manual_seed(2)
    model = GPT2(replace(CONFIG, layers=2, dropout=0.0)).to("float64")
    recompute(model)
    for parameter in model.parameters():
        parameter.requires_grad = False  # theirs do not come back through the operation
    generator = np.random.default_rng(4)
    check_gradients(lambda x: model.ln_f(model.blocks(x)), generator.standard_normal((1, 3, 32)))


def test_two_passes_add_up():
    """Micro-batches: the gradients of weights are added by inner backwards."""
    random.manual_seed(1)
    plain, again = GPT2(replace(CONFIG, dropout=0.0)), None
    random.manual_seed(1)
    again = GPT2(replace(CONFIG, dropout=0.0))
    recompute(again, [0, 2])
    ids = np.random.default_rng(0).integers(0, 61, (4, 33))
    for model in (plain, again):
        for rows in (ids[:1], ids[1:]):
            model.loss(rows[:, :-1], rows[:, 1:], reduction="sum").backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        np.testing.assert_array_equal(one.grad, other.grad, err_msg=one.name)


def test_a_kept_graph_draws_the_same_masks_again():
    random.manual_seed(1)
    model = GPT2(CONFIG)
    recompute(model)
    ids = np.arange(20).reshape(2, 10)
    cotangent = np.random.default_rng(6).standard_normal((2, 10, 32)).astype(np.float32)
    loss = (model.features(ids) * cotangent).sum()
    found = []
    for _ in range(2):
        model.zero_grad()
        loss.backward(keep_graph=True)
        found.append({p.name: p.grad.copy() for p in model.h[0].parameters()})
    for name, gradient in found[0].items():
        np.testing.assert_array_equal(found[1][name], gradient, err_msg=name)


def kept_bytes(layers):
    random.manual_seed(1)
    model = GPT2(CONFIG)
    recompute(model, layers)
    ids = np.random.default_rng(0).integers(0, 61, (4, 65))
    model.loss(ids[:, :-1], ids[:, 1:])  # caches of the first call
    tracemalloc.start()
    loss = model.loss(ids[:, :-1], ids[:, 1:])
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert loss.requires_grad
    return kept


def test_a_block_keeps_its_input_alone():
    every, half, none = (kept_bytes(layers) for layers in ([], [0, 1, 2], range(6)))
    block = (every - none) / 6  # what a block keeps, less its input
    assert half == pytest.approx((every + none) / 2, rel=0.02)
    tokens, channels = 4 * 64, 32
    # by the count in study/describe: 16 C + H + 4 numbers a token; its input is one of them
    assert block == pytest.approx(tokens * 4 * (15 * channels + 2 + 4), rel=0.05)


def test_without_gradients_nothing_changes():
    from minillm.autograd import no_grad

    random.manual_seed(1)
    model = GPT2(CONFIG).eval()
    ids = np.arange(10)[None]
    with no_grad():
        expected = model(ids).data
        recompute(model)
        found = model(ids)
        cache = model.new_cache()
        last = model.next_logits(ids, cache).data
    assert not found.requires_grad
    np.testing.assert_array_equal(found.data, expected)
    np.testing.assert_allclose(last, expected[:, -1], rtol=1e-5, atol=1e-6)


def test_layers_by_number():
    assert parse_layers("none", 4) == []
    assert parse_layers("all", 4) == [0, 1, 2, 3]
    assert parse_layers("0, 2-3", 4) == [0, 2, 3]
    for text in ("", "x", "1-", "-1", "1-x", "0,,1"):
        with pytest.raises(InputError, match="names no layers; give none, all, or numbers"):
            parse_layers(text, 4)
    with pytest.raises(InputError, match="there is no layer 4; the model has 4"):
        parse_layers("2-4", 4)
    with pytest.raises(InputError, match="there is no block 9; the model has 2"):
        recompute(Llama(replace(LLAMA, layers=2)), [9])
