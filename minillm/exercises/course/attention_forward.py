"""Attention: each token collects the values of those before it.

For every head, with q, k and v of shape (T, D),

    S = scale Q K^T          scale = 1 / sqrt(D)
    P = softmax(S) by rows, over the keys that a query may see: those up to its own place
    Y = P V
"""

from __future__ import annotations

import math

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.ops.attention import attention_forward, softmax


def attention(q, k, v):
    """Return y (H, T, D); q, k and v are (H, T, D), with H heads that do not see each other."""
    raise NotImplementedError("replace this line")


def right(q, k, v):
    scale = 1 / math.sqrt(q.shape[-1])
    options = dict(lengths=None, causal=True, scale=scale, dropout=None)
    return attention_forward(q[None], k[None], v[None], None, **options)[0][0]


def cases(rng):
    for H, T, D in ((1, 3, 3), (1, 4, 2), (2, 5, 3), (3, 1, 4)):
        q, k, v = rng.normal(0, 1.5, size=(3, H, T, D))
        yield dict(q=q, k=k, v=v)
    q, k, v = rng.normal(0, 60, size=(3, 2, 4, 3))
    yield dict(q=q, k=k, v=v)


EXERCISE = Exercise(
    starter=attention,
    returns="y",
    right=right,
    cases=cases,
    hints=(
        "A row of S has one query and all keys. Multiply q by k with its last two axes exchanged.",
        "A hidden key must get the probability 0 before the row is brought to the sum 1. What is e^(-inf)?",
        "Scores can be large: subtract the largest of each row before the exponential.",
    ),
    read="minillm/ops/attention.py",
)


def scores(q, k, scale=None):
    return q @ k.swapaxes(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)


def seen(q):
    return np.tril(np.ones((q.shape[1], q.shape[1]), bool))


def hidden(s, q, value=-np.inf):
    return np.where(seen(q), s, value)


@EXERCISE.mistake("The scores are not divided by the square root of D.")
def scale_forgotten(q, k, v):
    return softmax(hidden(scores(q, k, 1), q)) @ v


@EXERCISE.mistake("The scores are divided by D; divide by its square root.")
def divided_by_the_size(q, k, v):
    return softmax(hidden(scores(q, k, 1 / q.shape[-1]), q)) @ v


@EXERCISE.mistake("No key is hidden: a token sees those behind it, which a model of the next token must not.")
def no_mask(q, k, v):
    return softmax(scores(q, k)) @ v


@EXERCISE.mistake("The mask is the wrong way round: a token sees the later ones, and not the earlier ones.")
def mask_transposed(q, k, v):
    return softmax(np.where(seen(q).T, scores(q, k), -np.inf)) @ v


@EXERCISE.mistake("A hidden score is set to 0, and e^0 is 1: such a key still gets a probability.")
def hidden_scores_zero(q, k, v):
    return softmax(hidden(scores(q, k), q, 0.0)) @ v


@EXERCISE.mistake("The mask is applied after the softmax, so what is left of a row no longer sums to 1.")
def masked_after_the_softmax(q, k, v):
    return (softmax(scores(q, k)) * seen(q)) @ v


@EXERCISE.mistake("Softmax is taken down the columns; the probabilities of one query, a row, must sum to 1.")
def softmax_over_queries(q, k, v):
    return softmax(hidden(scores(q, k), q).swapaxes(-1, -2)).swapaxes(-1, -2) @ v


@EXERCISE.mistake("The exponential overflows for large scores; subtract the largest of the row first.")
def overflows(q, k, v):
    e = np.exp(hidden(scores(q, k), q))
    return e / e.sum(axis=-1, keepdims=True) @ v


@EXERCISE.mistake("Keys and queries are exchanged: a row of scores belongs to one query, its columns to the keys.")
def keys_and_queries_exchanged(q, k, v):
    return softmax(hidden(scores(k, q), q)) @ v
