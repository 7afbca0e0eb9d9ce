"""Root-mean-square normalisation (Zhang, Sennrich 2019, arXiv:1910.07467): layer norm without the mean.

Forward, for one row x of C channels:

    mean_square = sum(x^2) / C        rstd = 1 / sqrt(mean_square + eps)
    norm = x rstd
    y    = norm weight

Backward. Let dnorm = dy weight. Every norm_i depends on every x_j, through x_i itself and rstd, and
d rstd / d x_j = -rstd^3 x_j / C = -rstd^2 norm_j / C:

    d norm_i / d x_j = rstd (1[i = j] - norm_i norm_j / C)

Multiply by dnorm_i and sum over i: one term through x itself, one through rstd:

    dx      = rstd (dnorm - norm sum(dnorm norm) / C)
    dweight = sum over the rows of dy norm
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.errors import check_floating, check_shapes
from minillm.ops.layernorm import weight_or_ones


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward: the memory bill of this op."""

    norm: Array  # (..., C), the size of x
    rstd: Array  # (..., 1)
    weight: Array  # (C,)


def rmsnorm_forward(x, weight, *, eps):
    C = x.shape[-1]
    mean_square = (x**2).sum(axis=-1, keepdims=True) / C  # (..., 1)
    rstd = 1 / np.sqrt(mean_square + eps)  # (..., 1)
    norm = x * rstd  # (..., C)
    y = norm * weight  # (..., C)
    return y, Saved(norm, rstd, weight)


def rmsnorm_backward(dy, saved):
    norm, rstd, weight = saved
    C = norm.shape[-1]
    rows = tuple(range(dy.ndim - 1))  # every axis but the channels
    dweight = (dy * norm).sum(axis=rows)  # (C,)
    dnorm = dy * weight  # (..., C)
    through_rstd = norm * (dnorm * norm).sum(axis=-1, keepdims=True) / C  # (..., C)
    dx = rstd * (dnorm - through_rstd)  # (..., C)
    return dx, dweight


RMSNORM = Op("rmsnorm", rmsnorm_forward, rmsnorm_backward)


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """Bring the mean square of each row to 1, then scale it: x / sqrt(mean(x^2) + eps) * weight.

    Shapes: x (..., C), weight (C,) or None for ones; result (..., C).
    Units: eps is in units of x squared.
    Saves: norm, an array the size of x, and one number per row; the kernels a reference to x and one number per row.
    Raises: ShapeError, such as `rms_norm: weight has C=512, but x has C=768`.
    Source: Zhang, Sennrich 2019, equation 4.
    """
    check_shapes("rms_norm", x=("... C", x), weight=("C", weight))
    check_floating("rms_norm", x=x, weight=weight)
    return RMSNORM(x, weight_or_ones(weight, x), eps=eps)
