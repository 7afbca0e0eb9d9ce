"""Layer normalisation (Ba, Kiros, Hinton 2016, arXiv:1607.06450).

Forward, for one row x of C channels (sums are over these; a b is the elementwise product):

    mean = sum(x) / C        var = sum((x - mean)^2) / C        rstd = 1 / sqrt(var + eps)
    norm = (x - mean) rstd
    y    = norm weight + bias

Backward. dy is the gradient of the loss with respect to y, and so for the other names; y = norm weight + bias gives

    dbias   = sum over the rows of dy
    dweight = sum over the rows of dy norm
    dnorm   = dy weight

Every norm_i = (x_i - mean) rstd depends on every x_j, through x_i itself, through the mean and through rstd:

    d mean / d x_j = 1 / C
    d var  / d x_j = 2 (x_j - mean) / C         (the mean moves too, which adds nothing, because sum(x - mean) = 0)
    d rstd / d x_j = -rstd^3 / 2 d var / d x_j = -rstd^2 norm_j / C
    d norm_i / d x_j = rstd (1[i = j] - 1/C - norm_i norm_j / C)

Multiply by dnorm_i and sum over i:

    through_mean = sum(dnorm) / C
    through_rstd = norm sum(dnorm norm) / C
    dx           = rstd (dnorm - through_mean - through_rstd)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.errors import check_floating, check_shapes


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward: the memory bill of this op."""

    norm: Array  # (..., C), the size of x
    rstd: Array  # (..., 1)
    weight: Array  # (C,)
    has_bias: bool


def layernorm_forward(x, weight, bias, *, eps):
    C = x.shape[-1]
    mean = x.sum(axis=-1, keepdims=True) / C  # (..., 1)
    var = ((x - mean) ** 2).sum(axis=-1, keepdims=True) / C  # (..., 1)
    std = np.sqrt(var + eps)  # (..., 1)
    rstd = std / (var + eps)  # (..., 1); 1 / std, except that an infinite var gives NaN, so that an overflow shows
    norm = (x - mean) * rstd  # (..., C)
    y = norm * weight  # (..., C)
    if bias is not None:
        y = y + bias  # (..., C)
    return y, Saved(norm, rstd, weight, bias is not None)


def layernorm_backward(dy, saved):
    norm, rstd, weight, has_bias = saved
    C = norm.shape[-1]
    row_axes = tuple(range(dy.ndim - 1))  # every axis but the channels
    dbias = dy.sum(axis=row_axes) if has_bias else None  # (C,)
    dweight = (dy * norm).sum(axis=row_axes)  # (C,)
    dnorm = dy * weight  # (..., C)
    through_mean = dnorm.sum(axis=-1, keepdims=True) / C  # (..., 1)
    through_rstd = norm * (dnorm * norm).sum(axis=-1, keepdims=True) / C  # (..., C)
    dx = rstd * (dnorm - through_mean - through_rstd)  # (..., C)
    return dx, dweight, dbias


LAYERNORM = Op("layernorm", layernorm_forward, layernorm_backward)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Bring each row to mean 0 and variance 1, then scale and shift it: (x - mean) / sqrt(var + eps) * weight + bias.

    Shapes: x (..., C), weight (C,) or None for ones, bias (C,) or None; result (..., C).
    Units: eps is in units of x squared; the variance is that of the population (divided by C).
    Saves: norm, an array the size of x, and one number per row; the kernels a reference to x and two numbers per row.
    Raises: ShapeError, such as `layer_norm: weight has C=512, but x has C=768`.
    Source: Ba, Kiros, Hinton 2016, equation 4.
    """
    check_shapes("layer_norm", x=("... C", x), weight=("C", weight), bias=("C", bias))
    check_floating("layer_norm", x=x, weight=weight, bias=bias)
    return LAYERNORM(x, weight_or_ones(weight, x), bias, eps=eps)


def weight_or_ones(weight: Tensor | None, x: Tensor) -> Tensor:
    """The weight of a norm over the channels of x; ones where none is given."""
    return Tensor(np.ones_like(x.data, shape=x.shape[-1:])) if weight is None else weight
