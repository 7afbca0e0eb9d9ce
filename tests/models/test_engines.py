"""20 steps of each family with the plain formulas give the losses and weights of the fast engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

import minillm
from minillm.models import bart, bart_config, bert, distilbert, gemma, gpt2, llama, roberta, xlnet
from minillm.nn import Module
from minillm.ops.rope_table import RopeScaling
from minillm.optim import AdamW

STEPS = 20
V, B, T = 41, 3, 9
DROPOUT = dict(dropout=0.1, attention_dropout=0.1)
SIZES = dict(vocab_size=V, context=12, layers=2, heads=2, channels=16, hidden=24)
YARN = RopeScaling("yarn", 2.0, 8)


class Training(NamedTuple):
    """A model, and the arguments of its loss at one step."""

    model: Callable[[], Module]
    batch: Callable[[np.random.Generator], dict[str, Any]]


def next_token(rng: np.random.Generator) -> dict[str, Any]:
    ids = rng.integers(0, V, (B, T + 1))
    targets = np.where(rng.random((B, T)) < 0.2, -100, ids[:, 1:])
    return {"ids": ids[:, :-1], "targets": targets}


def hidden_tokens(rng: np.random.Generator) -> dict[str, Any]:
    ids = rng.integers(2, V, (B, T))
    labels = np.where(rng.random((B, T)) < 0.4, ids, -100)
    return {"ids": ids, "labels": labels, "lengths": np.array([T, T - 2, 4])}


def two_sentences(rng: np.random.Generator) -> dict[str, Any]:
    types = np.sort(rng.integers(0, 2, (B, T)))
    return hidden_tokens(rng) | {"token_types": types, "next_sentence": rng.integers(0, 2, B)}


def pairs(rng: np.random.Generator) -> dict[str, Any]:
    targets = rng.integers(0, V, (B, T))
    targets[1, 5:] = -100
    source = rng.integers(0, V, (B, T + 2))
    return {"source": source, "targets": targets, "source_lengths": np.array([T + 2, 4, 7]), "label_smoothing": 0.1}


def permuted(rng: np.random.Generator) -> dict[str, Any]:
    order = rng.permutation(T)
    places = np.argsort(order)  # when each position is read
    mapping = np.zeros((B, 3, T), bool)
    mapping[:, np.arange(3), order[-3:]] = True
    ids = rng.integers(0, V, (B, T))
    mask = np.broadcast_to(places[:, None] <= places, (B, T, T))
    mems = [rng.normal(size=(B, 4, 16)) for _ in range(2)]
    given = {"perm_mask": mask, "target_mapping": mapping, "token_types": rng.integers(0, 2, (B, T)), "mems": mems}
    return {"ids": ids, "labels": ids[:, order[-3:]]} | given


GEMMA = gemma.GemmaConfig(
    **SIZES, kv_heads=1, head_size=8, window=4, full_blocks=(1,), attention_cap=3.0, logit_cap=5.0
)
TRAININGS = {
    "gpt2": Training(lambda: gpt2.GPT2(gpt2.GPT2Config(**SIZES, **DROPOUT)), next_token),
    "gpt2, silu, not tied": Training(
        lambda: gpt2.GPT2(gpt2.GPT2Config(**SIZES, activation="silu", tied=False)), next_token
    ),
    "llama": Training(
        lambda: llama.Llama(
            llama.LlamaConfig(**SIZES, kv_heads=1, qk_norm=True, window=5, rotary=4, rope_scaling=YARN, mlp_bias=True)
        ),
        next_token,
    ),
    "gemma, caps": Training(lambda: gemma.Gemma(GEMMA), next_token),
    "gemma, norms": Training(
        lambda: gemma.Gemma(replace(GEMMA, attention_cap=None, qk_norm=True, window_rope_base=50.0)), next_token
    ),
    "bert": Training(lambda: bert.BertForPreTraining(bert.BertConfig(**SIZES, **DROPOUT)), two_sentences),
    "roberta": Training(lambda: roberta.RobertaForMaskedLM(roberta.RobertaConfig(**SIZES, **DROPOUT)), hidden_tokens),
    "distilbert": Training(
        lambda: distilbert.DistilBertForMaskedLM(distilbert.DistilBertConfig(**SIZES, **DROPOUT)), hidden_tokens
    ),
    "xlnet": Training(
        lambda: xlnet.XLNetLMHeadModel(xlnet.XLNetConfig(V, layers=2, heads=2, channels=16, hidden=24, clamp_len=6)),
        permuted,
    ),
    "bart": Training(
        lambda: bart.Bart(
            bart.BartConfig(V, 12, channels=16, **bart_config.both_sides(2, 2, 24), activation_dropout=0.1)
        ),
        pairs,
    ),
}


def trained(name: str, engine: str, dtype: str = "float64") -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The losses of 20 steps, and the weights after them."""
    minillm.manual_seed(5)
    model, batch = TRAININGS[name].model().to(dtype), TRAININGS[name].batch
    rng = np.random.default_rng(6)
    for parameter in model.parameters():  # weights of 1 and biases of 0 would hide a missing factor
        parameter.data[...] += rng.normal(0, 0.1, parameter.shape)
    optimizer = AdamW(model.parameters(), lr=3e-3)
    losses = []
    with minillm.engine(engine):
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = model.loss(**batch(rng))
            loss.backward()
            optimizer.clip_grad_norm(1.0)
            optimizer.step()
            losses.append(loss.item())
    return np.array(losses), model.state_dict()


@pytest.mark.parametrize("name", TRAININGS)
def test_twenty_steps_of_the_plain_and_of_the_fast_engine(name: str) -> None:
    losses, weights = trained(name, "plain")
    fast_losses, fast_weights = trained(name, "fast")
    assert np.ptp(losses) > 0.01  # and so the weights have moved
    np.testing.assert_allclose(fast_losses, losses, rtol=1e-10)
    for key, weight in weights.items():
        assert np.abs(fast_weights[key] - weight).max() <= 1e-10 * np.abs(weight).max(), key


def test_the_comparison_sees_a_difference_of_one_step() -> None:
    losses, weights = trained("gpt2", "plain")
    minillm.manual_seed(5)
    before = TRAININGS["gpt2"].model().to("float64").state_dict()
    assert all(np.abs(weights[key] - before[key]).max() > 1e-3 for key in weights)  # every parameter was trained
    assert len(set(losses)) == STEPS
