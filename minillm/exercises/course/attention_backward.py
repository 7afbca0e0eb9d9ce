"""The gradient of attention.

The forward computed, for every head, with q, k, v and y of shape (T, D),

    S = scale Q K^T        P = softmax(S) by rows, 0 where a key is hidden        Y = P V

Given dy, and the probabilities P as the forward left them, write the gradients with respect to q, k and v.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.ops.attention import Saved, softmax
from minillm.ops.attention import attention_backward as engine_backward


def attention_backward(dy, q, k, v, p, scale):
    """Return dq, dk, dv, each (H, T, D); dy, q, k and v are (H, T, D), p is (H, T, T), scale is a number."""
    raise NotImplementedError("replace this line")


def right(dy, q, k, v, p, scale):
    saved = Saved(q[None], k[None], v[None], p[None], 1, scale)
    return tuple(gradient[0] for gradient in engine_backward(dy[None], saved)[:3])


def cases(rng):
    for H, T, D, scale in ((1, 3, 3, 0.5), (1, 4, 2, 0.7), (2, 5, 3, 0.6), (2, 1, 4, 0.5)):
        dy, q, k, v = rng.normal(size=(4, H, T, D))
        s = np.where(np.tril(np.ones((T, T), bool)), scale * q @ k.swapaxes(-1, -2), -np.inf)
        yield dict(dy=dy, q=q, k=k, v=v, p=softmax(s), scale=scale)


EXERCISE = Exercise(
    starter=attention_backward,
    returns="dq dk dv",
    right=right,
    cases=cases,
    hints=(
        "Go back line by line: first from Y to P and V, then from P to S, then from S to Q and K.",
        "Two of the three lines are matrix products; you know their gradients.",
        "The line between them is a softmax by rows; where p is 0, ds comes out as 0 by itself.",
        "S = scale Q K^T, so the scale stands before the gradient of q and before that of k, once each.",
    ),
    read="minillm/ops/attention.py",
)


def turned(x):
    return x.swapaxes(-1, -2)


def through_softmax(dp, p):
    return p * (dp - (p * dp).sum(axis=-1, keepdims=True))


@EXERCISE.mistake("The scale is missing from dq and dk: it is a factor of every score.")
def scale_forgotten(dy, q, k, v, p, scale):
    return right(dy, q / scale, k / scale, v, p, scale)


@EXERCISE.mistake("The scale is there twice in dq and dk; it stands before Q K^T once.")
def scale_twice(dy, q, k, v, p, scale):
    return right(dy, q * scale, k * scale, v, p, scale)


@EXERCISE.mistake("ds lacks what goes back through the sum of the softmax: all scores of a row share it.")
def sum_of_the_softmax_forgotten(dy, q, k, v, p, scale):
    ds = p * (dy @ turned(v))
    return scale * ds @ k, scale * turned(ds) @ q, turned(p) @ dy


@EXERCISE.mistake("The gradient skips the softmax: dp is used as if it were ds.")
def softmax_skipped(dy, q, k, v, p, scale):
    ds = dy @ turned(v)
    return scale * ds @ k, scale * turned(ds) @ q, turned(p) @ dy


@EXERCISE.mistake("The sum of the softmax is taken down the columns; softmax was taken by rows, over the keys.")
def softmax_over_queries(dy, q, k, v, p, scale):
    dp = dy @ turned(v)
    ds = p * (dp - (p * dp).sum(axis=-2, keepdims=True))
    return scale * ds @ k, scale * turned(ds) @ q, turned(p) @ dy


@EXERCISE.mistake("In dk, ds is not transposed: a key collects from all queries that saw it, a column of ds.")
def ds_not_transposed(dy, q, k, v, p, scale):
    ds = through_softmax(dy @ turned(v), p)
    return scale * ds @ k, scale * ds @ q, turned(p) @ dy


@EXERCISE.mistake("In dv, p is not transposed: a value collects from all queries that saw it, a column of p.")
def p_not_transposed(dy, q, k, v, p, scale):
    dq, dk, _ = right(dy, q, k, v, p, scale)
    return dq, dk, p @ dy


@EXERCISE.mistake("dq is made with q, and dk with k; in a product each factor gets the other one.")
def factors_exchanged(dy, q, k, v, p, scale):
    ds = through_softmax(dy @ turned(v), p)
    return scale * ds @ q, scale * turned(ds) @ k, turned(p) @ dy


@EXERCISE.mistake("dv is made with ds; the values are multiplied by the probabilities themselves.")
def values_with_ds(dy, q, k, v, p, scale):
    dq, dk, _ = right(dy, q, k, v, p, scale)
    return dq, dk, turned(through_softmax(dy @ turned(v), p)) @ dy
