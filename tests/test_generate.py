"""Generation: the distribution that is drawn from, against plain Python; and the loop around it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import minillm
from minillm import random
from minillm.errors import InputError
from minillm.generate import generate, next_token_probabilities
from minillm.models.gpt2 import GPT2, GPT2Config


@pytest.fixture
def model() -> GPT2:
    """A model whose next token depends on much of what came before."""
    minillm.manual_seed(3)
    model = GPT2(GPT2Config(vocab_size=11, context=8, layers=2, heads=2, channels=12))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 30
    return model


# The distribution


def naive(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """One token at a time, as the docstring says it."""
    weights = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[:top_k]
    total = sum(weights[i] for i in order)
    kept, reached = [], 0.0
    for i in order:
        kept.append(i)
        reached += weights[i] / total
        if top_p is not None and reached >= top_p * (1 - 1e-12):
            break
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=12),
    st.floats(0.05, 5),
    st.none() | st.integers(1, 15),
    st.none() | st.floats(0.01, 1),
)
def test_probabilities_are_those_of_the_naive_formula(logits, temperature, top_k, top_p) -> None:
    result = next_token_probabilities(np.array(logits, np.float32).astype(np.float64), temperature, top_k, top_p)
    assert result.dtype == np.float64
    assert result.sum() == pytest.approx(1, rel=1e-12)
    expected = naive(np.array(logits, np.float32).tolist(), temperature, top_k, top_p)
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12)


def test_probabilities_by_hand() -> None:
    logits = np.log([0.1, 0.5, 0.15, 0.25])
    cases = [
        ({}, [0.1, 0.5, 0.15, 0.25]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, np.array([0.01, 0.25, 0.0225, 0.0625]) / 0.345),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_k": 99}, [0.1, 0.5, 0.15, 0.25]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),
        ({"top_p": 0.5}, [0, 1, 0, 0]),  # reached exactly
        ({"top_p": 0.51}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_p": 0.75}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_p": 1.0}, [0.1, 0.5, 0.15, 0.25]),
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),  # k first: then 0.5 is 2/3 of what is left
        ({"min_p": 0.0}, [0.1, 0.5, 0.15, 0.25]),
        ({"min_p": 0.29}, [0, 0.5 / 0.9, 0.15 / 0.9, 0.25 / 0.9]),
        ({"min_p": 0.31}, [0, 2 / 3, 0, 1 / 3]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        ({"min_p": 0.6, "temperature": 2.0}, [0, 0.5**0.5 / (0.5**0.5 + 0.5), 0, 0.5 / (0.5**0.5 + 0.5)]),
        # these logits are negative: times 2, a probability is squared
        ({"repetition_penalty": 2.0, "seen": [1, 1]}, np.array([0.1, 0.25, 0.15, 0.25]) / 0.75),
        ({"repetition_penalty": 3.0, "seen": [1], "temperature": 0}, [0, 0, 0, 1]),
        ({"repetition_penalty": 2.0}, [0.1, 0.5, 0.15, 0.25]),
    ]
    for settings, expected in cases:
        np.testing.assert_allclose(next_token_probabilities(logits, **settings), expected, rtol=1e-12, err_msg=settings)


def test_a_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    logits = np.array([2.0, -1.0, 0.0, 3.0])
    result = next_token_probabilities(logits, repetition_penalty=1.5, seen=[0, 1, 2, 0])
    np.testing.assert_allclose(result, next_token_probabilities(np.array([2 / 1.5, -1.5, 0.0, 3.0])), rtol=1e-12)
    np.testing.assert_array_equal(logits, [2, -1, 0, 3])


@pytest.mark.oracle
@given(
    st.lists(st.floats(-20, 20), min_size=2, max_size=12),
    st.floats(0.05, 5),
    st.none() | st.integers(1, 10),
    st.none() | st.floats(0.05, 0.95),
    st.none() | st.floats(0.01, 1),
    st.floats(0.5, 2),
    st.lists(st.integers(0, 1), max_size=3),
)
def test_as_in_transformers(logits, temperature, top_k, top_p, min_p, penalty, seen) -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers").generation.logits_process
    steps = [process.RepetitionPenaltyLogitsProcessor(penalty)] if seen else []
    steps += [process.TemperatureLogitsWarper(temperature)]
    steps += [process.TopKLogitsWarper(top_k)] if top_k else []
    steps += [process.TopPLogitsWarper(top_p)] if top_p else []
    steps += [process.MinPLogitsWarper(min_p)] if min_p else []
    scores = torch.tensor([logits], dtype=torch.float64)
    for step in steps:
        scores = step(torch.tensor([seen], dtype=torch.int64), scores)
    expected = scores.softmax(-1)[0].numpy()
    received = next_token_probabilities(np.array(logits), temperature, top_k, top_p, min_p, penalty, seen)
    distinct = len(set(logits)) == len(logits)
    assume(distinct and len(set(np.round(np.cumsum(np.sort(expected)), 6))) == len(logits))  # ties go otherwise there
    np.testing.assert_allclose(received, expected, atol=1e-9)


def test_of_equal_tokens_the_first_is_kept() -> None:
    np.testing.assert_array_equal(next_token_probabilities(np.zeros(4), top_k=2), [0.5, 0.5, 0, 0])
    np.testing.assert_array_equal(next_token_probabilities(np.zeros(4), temperature=0), [1, 0, 0, 0])


@pytest.mark.parametrize("temperature", [1e-310, 1e-30, 1e30, math.inf])
def test_extreme_temperatures_and_logits(temperature: float) -> None:
    result = next_token_probabilities(np.array([-3e38, 2.0, 1.0, 3e38], np.float32), temperature)
    np.testing.assert_array_equal(result, [0.25] * 4 if temperature == math.inf else [0, 0, 0, 1])
    assert (np.diff(next_token_probabilities(np.array([1.0, 2.0, 3.0]), temperature)) >= 0).all()


# The loop


def test_greedy_generation_is_repeated_argmax(model: GPT2) -> None:
    text = [3, 1]
    for _ in range(12):  # past the context of 8, of which the model sees the last
        text.append(int(model(np.array([text[-8:]])).data[0, -1].argmax()))
    assert len(set(text)) > 2
    assert list(generate(model, [3, 1], 12, temperature=0)) == text[2:]
    assert list(generate(model, np.array([3, 1]), 12, temperature=0, seed=9)) == text[2:]


def test_a_prompt_longer_than_the_context(model: GPT2) -> None:
    prompt = [0, 5, 9, 9, 1, 2, 3, 4, 5, 6, 7]
    assert list(generate(model, prompt, 5, temperature=0)) == list(generate(model, prompt[-8:], 5, temperature=0))


def test_the_seed_decides_the_text(model: GPT2) -> None:
    texts = [tuple(generate(model, [1], 30, seed=seed)) for seed in (0, 0, 1, 2)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_tokens_come_as_often_as_the_model_says(model: GPT2) -> None:
    expected = next_token_probabilities(model(np.array([[4]])).data[0, -1], 1.5, top_k=5)
    counts = np.zeros(11)
    for seed in range(2000):
        [token] = generate(model, [4], 1, temperature=1.5, top_k=5, seed=seed)
        counts[token] += 1
    assert (counts[expected == 0] == 0).all()
    likely = expected > 0.01
    assert likely.sum() > 1
    spread = np.sqrt(expected * (1 - expected) / 2000)
    assert (np.abs(counts / 2000 - expected) <= 4.5 * spread + 1e-9).all()


def test_settings_reach_the_draw(model: GPT2) -> None:
    greedy = list(generate(model, [1], 20, temperature=0))
    assert list(generate(model, [1], 20, top_k=1, seed=5)) == greedy
    assert list(generate(model, [1], 20, top_p=1e-9, seed=5)) == greedy
    assert list(generate(model, [1], 20, temperature=1e-6, seed=5)) == greedy
    assert list(generate(model, [1], 20, min_p=1.0, seed=5)) == greedy
    assert len(set(generate(model, [1], 10, temperature=0, repetition_penalty=1e9))) > len(set(greedy[:10]))
    assert list(generate(model, [1], 20, seed=5)) != greedy


def test_it_stops_after_a_stop_token(model: GPT2) -> None:
    text = list(generate(model, [1], 30, seed=0))
    stop = text[5]
    assert list(generate(model, [1], 30, seed=0, stop=[stop])) == text[: text.index(stop) + 1]
    assert list(generate(model, [1], 30, seed=0, stop=[99])) == text
    assert list(generate(model, [1], 0)) == []


def test_it_leaves_the_model_and_the_random_stream_as_they_were(model: GPT2) -> None:
    model.drop.p = 0.5
    place = random.default.state()
    for mode in (True, False):
        model.train(mode)
        tokens = generate(model, [1], 30)
        next(tokens)
        assert not model.h[1].mlp.training  # while it runs, no dropout
        tokens.close()  # a reader that has seen enough
        assert all(module.training == mode for _, module in model.named_modules())
        list(generate(model, [1], 3))
        assert model.training == mode
    assert random.default.state() == place
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_raises_is_left_in_its_mode(model: GPT2) -> None:
    with pytest.raises(InputError, match="token id 11 is out of range"):
        list(generate(model, [11], 3))
    assert model.training


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        ([], {}, "the prompt has no tokens"),
        ([1], {"max_tokens": -1}, "max_tokens is -1; give 0 or more"),
        ([1], {"temperature": -0.1}, "temperature is -0.1; give 0"),
        ([1], {"temperature": math.nan}, "temperature is nan"),
        ([1], {"top_k": 0}, "top_k is 0; give"),
        ([1], {"top_p": 0.0}, "top_p is 0.0; give"),
        ([1], {"top_p": 1.1}, "top_p is 1.1; give"),
        ([1], {"min_p": -0.1}, "min_p is -0.1; give"),
        ([1], {"min_p": 1.1}, "min_p is 1.1; give"),
        ([1], {"repetition_penalty": 0.0}, "repetition_penalty is 0.0; give more than 0"),
        ([1], {"seed": -1}, "seed is -1; give"),
        ([1], {"seed": 2**64}, "seed is 18446744073709551616; give"),
    ],
)
def test_settings_that_cannot_be_used(model: GPT2, ids, settings, message: str) -> None:
    with pytest.raises(InputError, match=f"^generate: {message}"):
        list(generate(model, ids, **{"max_tokens": 3, **settings}))
