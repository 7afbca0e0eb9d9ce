"""Softmax that does not overflow: probabilities from scores.

For a row of numbers x_1 to x_N, softmax gives p_i = e^(x_i) / sum_j e^(x_j): N numbers above 0 whose sum is 1. In
floating point, e^1000 is infinite, and e^-1000 is 0; yet the result is always a finite number. A score of -inf
stands for something hidden, and gets the probability 0.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.ops.softmax import softmax_forward


def softmax(x):
    """Return p, like x (..., N), with softmax taken along the last axis."""
    raise NotImplementedError("replace this line")


def right(x):
    return softmax_forward(x, axis=-1)[0]


def cases(rng):
    yield dict(x=np.array([0.5, -1.0, 2.0]))
    yield dict(x=rng.normal(size=(3, 3)))
    yield dict(x=rng.normal(size=(2, 3, 5)) - 3)
    yield dict(x=np.array([[1000.0, 1001.0], [-1001.0, -1000.0]]))
    hidden = rng.normal(size=(4, 6))
    hidden[rng.random(hidden.shape) < 0.3] = -np.inf
    hidden[:, 2] = 0.1
    yield dict(x=hidden)


EXERCISE = Exercise(
    starter=softmax,
    returns="p",
    right=right,
    cases=cases,
    hints=(
        "Take the exponential of every number, and divide by the sum of its row; keepdims helps to divide.",
        "Add the same number to the whole row: how do numerator and denominator change?",
        "So a number may be subtracted from each row first. Choose it so that no exponent is above 0.",
        "Choose it for each row: with one number for all rows, the sum of a low row is 0.",
    ),
    read="minillm/ops/softmax.py",
)


@EXERCISE.mistake("The exponential overflows for large numbers. Something may be subtracted from a row beforehand.")
def overflows(x):
    e = np.exp(x)
    return e / e.sum(axis=-1, keepdims=True)


@EXERCISE.mistake("The largest number of the whole array is subtracted; in a much lower row all exponentials become 0.")
def one_maximum_for_all(x):
    e = np.exp(x - x.max())
    return e / e.sum(axis=-1, keepdims=True)


@EXERCISE.mistake("All elements together sum to 1; each row must do so by itself.")
def one_sum_for_all(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum()


@EXERCISE.mistake("Softmax is taken along the first axis; the classes are along the last one.")
def first_axis(x):
    e = np.exp(x - x.max(axis=0, keepdims=True))
    return e / e.sum(axis=0, keepdims=True)


@EXERCISE.mistake("These are the logarithms of the probabilities.")
def logarithms(x):
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@EXERCISE.mistake("The mean of the row is subtracted; numbers far above it still overflow, and -inf makes it -inf.")
def mean_subtracted(x):
    e = np.exp(x - x.mean(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@EXERCISE.mistake("The exponentials are divided by the largest of them; divide by their sum.")
def divided_by_the_largest(x):
    return np.exp(x - x.max(axis=-1, keepdims=True))


@EXERCISE.mistake(
    "The numbers are divided by their largest; subtract it. Scaling the scores changes the probabilities."
)
def scaled_by_the_maximum(x):
    e = np.exp(x / x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
