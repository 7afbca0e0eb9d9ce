"""The gradient of softmax, from its probabilities.

Softmax along the last axis gave p_i = e^(x_i) / sum_j e^(x_j). Every p_i depends on every x_j of its row: on its own
by the numerator, and on all of them by the sum. Given dp, the gradient of the loss with respect to p, write the
gradient with respect to x, without making a matrix of N x N numbers for a row.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.ops.softmax import Saved
from minillm.ops.softmax import softmax_backward as engine_backward


def softmax_backward(dp, p):
    """Return dx, like dp and p (..., N); the sums of p over the last axis are 1."""
    raise NotImplementedError("replace this line")


def right(dp, p):
    return engine_backward(dp, Saved(p, -1))[0]


def cases(rng):
    for shape in ((3,), (1, 4), (3, 3), (2, 3, 5), (2, 2, 1)):
        e = np.exp(rng.normal(size=shape))
        yield dict(dp=rng.normal(size=shape), p=e / e.sum(axis=-1, keepdims=True))


EXERCISE = Exercise(
    starter=softmax_backward,
    returns="dx",
    right=right,
    cases=cases,
    hints=(
        "Find the derivative of p_i by x_j: once for i = j, and once for i different from j. Both fit in one line.",
        "Then dx_j is the sum over i of dp_i times that derivative. Split the sum: only one term has i = j.",
        "What is left is a sum over i that does not depend on j: one number for the row.",
    ),
    read="minillm/ops/softmax.py",
)


@EXERCISE.mistake("Each p_i is treated as if it depended on its own x_i alone; the sum below ties it to the others.")
def diagonal_alone(dp, p):
    return dp * p * (1 - p)


@EXERCISE.mistake("This is the gradient of e^x alone: the way through the sum of the exponentials is missing.")
def sum_forgotten(dp, p):
    return dp * p


@EXERCISE.mistake("What goes back through the sum is the sum of dp alone; each dp_i has to be weighted by its p_i.")
def sum_not_weighted(dp, p):
    return p * (dp - dp.sum(axis=-1, keepdims=True))


@EXERCISE.mistake("What goes back through the sum is a mean over the row; it is a sum.")
def mean_in_place_of_sum(dp, p):
    return p * (dp - (dp * p).mean(axis=-1, keepdims=True))


@EXERCISE.mistake("One sum is taken over all rows; rows do not depend on each other.")
def rows_mixed(dp, p):
    return p * (dp - (dp * p).sum())


@EXERCISE.mistake("The sum is taken over the first axis; it goes over the numbers of a row, the last axis.")
def first_axis(dp, p):
    return p * (dp - (dp * p).sum(axis=0, keepdims=True))


@EXERCISE.mistake("The term that goes through the sum has the wrong sign: a larger sum makes every p smaller.")
def wrong_sign(dp, p):
    return p * (dp + (dp * p).sum(axis=-1, keepdims=True))


@EXERCISE.mistake("The factor p before everything is missing: e^x is its own slope.")
def factor_forgotten(dp, p):
    return dp - (dp * p).sum(axis=-1, keepdims=True)


@EXERCISE.mistake("The factor p is missing from the term that goes through the sum: p_j times the row's number.")
def factor_on_one_term_alone(dp, p):
    return p * dp - (dp * p).sum(axis=-1, keepdims=True)
