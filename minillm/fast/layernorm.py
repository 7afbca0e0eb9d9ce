"""Layer norm on a CPU: the formulas derived in ops/layernorm.py, a block of rows at a time, which stays in cache.

Sums over channels are products with ones, which are faster than np.sum (see sums.py). The backward recomputes norm from
x, mean and rstd: that costs two passes in cache and saves an array the size of x. add_layernorm.py uses both functions
of a block too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.backend import Array, as_rows, row_blocks, sum_over_blocks
from minillm.sums import column_sums, row_sums, vecdot


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward; N is the number of rows."""

    x: Array  # (..., C)
    weight: Array  # (C,)
    mean: Array  # (N, 1)
    rstd: Array  # (N, 1)
    has_bias: bool


def forward(x, weight, bias, *, eps):
    """y (..., C), with mean and rstd of each row."""
    y = np.empty_like(x, order="C")  # (..., C)
    x_rows, y_rows = as_rows(x), as_rows(y)  # (N, C)
    mean, rstd = np.empty_like(x, shape=(2, len(x_rows), 1))  # (N, 1) each

    def block(rows):
        forward_of_rows(x_rows[rows], weight, bias, eps, y_rows[rows], mean[rows], rstd[rows])

    row_blocks(block, x_rows)
    return y, Saved(x, weight, mean, rstd, bias is not None)


def backward(dy, saved):
    """dx (..., C), dweight (C,) and dbias (C,)."""
    x, weight, mean, rstd, has_bias = saved
    dx = np.empty_like(x, order="C")  # (..., C)
    x_rows, dy_rows, dx_rows = as_rows(x), as_rows(dy), as_rows(dx)  # (N, C)

    def block(rows):
        return backward_of_rows(dy_rows[rows], x_rows[rows], weight, mean[rows], rstd[rows], dx_rows[rows])

    dweight, dbias = sum_over_blocks(block, dy_rows)  # (C,) each
    return dx, dweight, dbias if has_bias else None


def forward_of_rows(x, weight, bias, eps, y, mean, rstd):
    """Layer norm of a block of n rows: fills y (n, C), mean (n, 1) and rstd (n, 1)."""
    channels = x.shape[-1]
    np.divide(row_sums(x), channels, out=mean)
    centred = x - mean
    var_plus_eps = vecdot(centred, centred)[:, None] / channels + eps
    np.divide(np.sqrt(var_plus_eps), var_plus_eps, out=rstd)
    norm = np.multiply(centred, rstd, out=centred)
    np.multiply(norm, weight, out=y)
    if bias is not None:
        y += bias


def backward_of_rows(dy, x, weight, mean, rstd, dx):
    """The gradients of a block of n rows: fills dx (n, C) and returns its sums for dweight and dbias, (C,) each.

    Names on the left that share memory, each overwritten by the next: dnorm, then without_mean, then dx_over_rstd, all
    in dx; centred, then norm, then through_rstd.
    """
    channels = x.shape[-1]
    centred = x - mean
    norm = np.multiply(centred, rstd, out=centred)
    dbias = column_sums(dy)
    dy_norm = np.multiply(dy, norm, out=dx)
    dweight = column_sums(dy_norm)
    dnorm = np.multiply(dy, weight, out=dx)
    mean_of_dnorm_norm = vecdot(dnorm, norm)[:, None] / channels
    through_mean = row_sums(dnorm) / channels
    through_rstd = np.multiply(norm, mean_of_dnorm_norm, out=norm)
    without_mean = np.subtract(dnorm, through_mean, out=dnorm)
    dx_over_rstd = np.subtract(without_mean, through_rstd, out=without_mean)
    np.multiply(dx_over_rstd, rstd, out=dx)
    return dweight, dbias
