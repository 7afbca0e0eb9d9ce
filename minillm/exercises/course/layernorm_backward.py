"""The gradient of layer normalisation.

Layer norm takes each row x of C channels to mean 0 and variance 1, and then scales and shifts every channel:

    mean = sum(x) / C        var = sum((x - mean)^2) / C        rstd = 1 / sqrt(var + eps)
    norm = (x - mean) rstd                                      y    = norm weight + bias

Given dy, and norm and rstd as the forward left them, write the gradients with respect to x, weight and bias. All C
channels of a row depend on each of its numbers, through mean and through rstd.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.ops.layernorm import Saved, layernorm_forward
from minillm.ops.layernorm import layernorm_backward as engine_backward


def layernorm_backward(dy, norm, rstd, weight):
    """Return dx (..., C), dweight (C,) and dbias (C,).

    dy and norm are (..., C), rstd is (..., 1), one number a row, and weight is (C,).
    """
    raise NotImplementedError("replace this line")


def right(dy, norm, rstd, weight):
    return engine_backward(dy, Saved(norm, rstd, weight, has_bias=True))


def cases(rng):
    for shape in ((1, 4), (3, 4), (4, 4), (2, 3, 5), (2, 1, 3, 6)):
        weight = rng.normal(1, 0.5, size=shape[-1:])
        _, saved = layernorm_forward(rng.normal(0.3, 2, size=shape), weight, 0.1 * weight, eps=1e-3)
        yield dict(dy=rng.normal(size=shape), norm=saved.norm, rstd=saved.rstd, weight=weight)


EXERCISE = Exercise(
    starter=layernorm_backward,
    returns="dx dweight dbias",
    right=right,
    cases=cases,
    hints=(
        "Begin with y = norm weight + bias: dbias, dweight and dnorm follow at once. The first two sum over all rows.",
        "Each norm_i depends on x_j in three ways: directly where i = j, through the mean, and through rstd.",
        "The slope of the mean by x_j is 1 / C. That of var by x_j is 2 (x_j - mean) / C; from it follows rstd's.",
        "Both ways through the statistics give a sum over the row: one of dnorm, and one of dnorm norm.",
    ),
    read="minillm/ops/layernorm.py",
)


def parameters(dy, norm):
    """The right dweight and dbias."""
    rows = tuple(range(dy.ndim - 1))
    return (dy * norm).sum(axis=rows), dy.sum(axis=rows)


def mean_of(x):
    return x.mean(axis=-1, keepdims=True)


@EXERCISE.mistake("mean and rstd are treated as constants; each of them depends on every number of the row.")
def statistics_constant(dy, norm, rstd, weight):
    return rstd * dy * weight, *parameters(dy, norm)


@EXERCISE.mistake("dx lacks the way through the mean: a larger x_j makes the mean larger, and so every norm smaller.")
def mean_constant(dy, norm, rstd, weight):
    dnorm = dy * weight
    return rstd * (dnorm - norm * mean_of(dnorm * norm)), *parameters(dy, norm)


@EXERCISE.mistake("dx lacks the way through rstd: each x_j changes the variance, which scales the whole row.")
def variance_constant(dy, norm, rstd, weight):
    dnorm = dy * weight
    return rstd * (dnorm - mean_of(dnorm)), *parameters(dy, norm)


@EXERCISE.mistake("dx is made of dy; what arrives at norm is dy times weight.")
def weight_forgotten(dy, norm, rstd, weight):
    return rstd * (dy - mean_of(dy) - norm * mean_of(dy * norm)), *parameters(dy, norm)


@EXERCISE.mistake("The factor rstd is missing from dx: norm is (x - mean) times rstd.")
def rstd_forgotten(dy, norm, rstd, weight):
    dnorm = dy * weight
    return dnorm - mean_of(dnorm) - norm * mean_of(dnorm * norm), *parameters(dy, norm)


@EXERCISE.mistake("The two sums in dx are not divided by C; mean and variance are sums divided by C.")
def sums_not_divided(dy, norm, rstd, weight):
    C, dnorm = norm.shape[-1], dy * weight
    return rstd * (dnorm - C * mean_of(dnorm) - norm * C * mean_of(dnorm * norm)), *parameters(dy, norm)


@EXERCISE.mistake("The variance here is that of the population, divided by C; your dx belongs to a division by C - 1.")
def sample_variance(dy, norm, rstd, weight):
    C, dnorm = norm.shape[-1], dy * weight
    through_rstd = norm * (dnorm * norm).sum(axis=-1, keepdims=True) / (C - 1)
    return rstd * (dnorm - mean_of(dnorm) - through_rstd), *parameters(dy, norm)


@EXERCISE.mistake("dweight is the sum of dy; the weight multiplies norm, so each dy comes with its norm.")
def weight_without_norm(dy, norm, rstd, weight):
    _, dbias = parameters(dy, norm)
    return right(dy, norm, rstd, weight)[0], dbias, dbias


@EXERCISE.mistake("dweight and dbias are means over the rows; every row used them in full, so they are sums.")
def parameters_averaged(dy, norm, rstd, weight):
    rows = tuple(range(dy.ndim - 1))
    return right(dy, norm, rstd, weight)[0], (dy * norm).mean(axis=rows), dy.mean(axis=rows)


@EXERCISE.mistake("dweight and dbias are summed over the first axis alone; all axes but the channels hold rows.")
def first_axis_alone(dy, norm, rstd, weight):
    return right(dy, norm, rstd, weight)[0], np.sum(dy * norm, axis=0), np.sum(dy, axis=0)
