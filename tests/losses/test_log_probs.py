"""Log-probabilities of answers against their definition, and where temperature and shift could go wrong."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import Tensor
from minillm.errors import InputError
from minillm.losses import answer_lengths, sequence_log_probs, token_log_probs


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def drawn(rng: np.random.Generator, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Logits (3, 5, 7), and targets (3, 5) with answers of 4, 1 and 0 tokens."""
    targets = np.full((3, 5), -100)
    targets[0, 1:], targets[1, 2] = rng.integers(0, 7, 4), 6
    return rng.normal(size=(3, 5, 7)).astype(dtype) * 3, targets


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.3])
def test_each_answer_is_the_sum_of_its_tokens_at_the_temperature(temperature: float, rng) -> None:
    logits, targets = drawn(rng)
    expected = np.zeros((3, 5))
    for b, t in zip(*np.nonzero(targets != -100), strict=True):
        expected[b, t] = log_softmax(logits[b, t] / temperature)[targets[b, t]]
    tokens = token_log_probs(Tensor(logits), targets, temperature)
    np.testing.assert_allclose(tokens.data, expected, rtol=1e-12)
    answers = sequence_log_probs(Tensor(logits), targets, temperature)
    np.testing.assert_allclose(answers.data, expected.sum(1), rtol=1e-12)
    np.testing.assert_array_equal(answer_lengths(targets), [4, 1, 0])


def test_dividing_log_probabilities_would_be_another_thing(rng) -> None:
    logits, targets = drawn(rng)
    divided = sequence_log_probs(Tensor(logits), targets).data / 0.6
    assert np.abs(divided - sequence_log_probs(Tensor(logits), targets, 0.6).data)[:2].min() > 1e-3


def test_gradients_reach_the_tokens_of_the_answer_alone(rng) -> None:
    logits, targets = drawn(rng)
    x = Tensor(logits, requires_grad=True)
    cotangent = rng.normal(size=3)
    (sequence_log_probs(x, targets, 0.7) * cotangent).sum().backward()
    p = np.exp(log_softmax(logits / 0.7))
    expected = np.where(targets[..., None] == np.arange(7), 1 - p, -p) * cotangent[:, None, None] / 0.7
    np.testing.assert_allclose(x.grad, np.where(targets[..., None] == -100, 0, expected), atol=1e-14)


def test_logits_of_16_bits_are_summed_in_float32(rng) -> None:
    logits, targets = drawn(rng, np.float16)
    answers = sequence_log_probs(Tensor(logits), targets)
    assert answers.dtype == np.float32
    exact = sequence_log_probs(Tensor(logits.astype(np.float64)), targets).data
    np.testing.assert_allclose(answers.data, exact, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float, rng) -> None:
    logits, targets = drawn(rng)
    with pytest.raises(InputError, match=r"token_log_probs: temperature is .*; give a number above 0"):
        sequence_log_probs(Tensor(logits), targets, temperature)


def test_ids_outside_of_the_vocabulary_are_refused(rng) -> None:
    logits, targets = drawn(rng)
    targets[0, 1] = 7
    with pytest.raises(InputError, match="7"):
        sequence_log_probs(Tensor(logits), targets)
