"""Layer norm on a CPU: the formulas derived in ops/layernorm.py, a block of rows at a time, which stays in cache.

Sums over channels are products with ones, which are faster than np.sum (see sums.py). add_layernorm.py uses both
functions of a block too.
"""

from __future__ import annotations

import numpy as np

from minillm.backend import as_rows, row_blocks, sum_over_blocks
from minillm.ops.layernorm import Saved
from minillm.sums import column_sums, row_sums, vecdot


def forward(x, weight, bias, *, eps):
    """y (..., C); norm (..., C) and rstd (N, 1) of each of the N rows are saved."""
    norm, y = np.empty_like(x, order="C"), np.empty_like(x, order="C")  # (..., C)
    x_rows, norm_rows, y_rows = as_rows(x), as_rows(norm), as_rows(y)  # (N, C)
    rstd = np.empty_like(x, shape=(len(x_rows), 1))  # (N, 1)

    def block(rows):
        forward_of_rows(x_rows[rows], weight, bias, eps, norm_rows[rows], y_rows[rows], rstd[rows])

    row_blocks(block, x_rows)
    return y, Saved(norm, rstd, weight, bias is not None)


def backward(dy, saved):
    """dx (..., C), dweight (C,) and dbias (C,)."""
    norm, rstd, weight, has_bias = saved
    dx = np.empty_like(norm)  # (..., C)
    norm_rows, dy_rows, dx_rows = as_rows(norm), as_rows(dy), as_rows(dx)  # (N, C)

    def block(rows):
        return backward_of_rows(dy_rows[rows], norm_rows[rows], rstd[rows], weight, dx_rows[rows])

    dweight, dbias = sum_over_blocks(block, dy_rows)  # (C,) each
    return dx, dweight, dbias if has_bias else None


def forward_of_rows(x, weight, bias, eps, norm, y, rstd):
    """Layer norm of a block of n rows: fills norm (n, C), y (n, C) and rstd (n, 1)."""
    channels = x.shape[-1]
    mean = row_sums(x) / channels
    centred = np.subtract(x, mean, out=norm)
    var_plus_eps = vecdot(centred, centred)[:, None] / channels + eps
    np.divide(np.sqrt(var_plus_eps), var_plus_eps, out=rstd)
    np.multiply(centred, rstd, out=norm)
    np.multiply(norm, weight, out=y)
    if bias is not None:
        y += bias


def backward_of_rows(dy, norm, rstd, weight, dx):
    """The gradients of a block of n rows: fills dx (n, C) and returns its sums for dweight and dbias, (C,) each.

    Names on the left that share the memory of dx, each overwritten by the next: dy_norm, dnorm, without_mean,
    dx_over_rstd.
    """
    channels = norm.shape[-1]
    dbias = column_sums(dy)
    dy_norm = np.multiply(dy, norm, out=dx)
    dweight = column_sums(dy_norm)
    dnorm = np.multiply(dy, weight, out=dx)
    through_mean = row_sums(dnorm) / channels
    through_rstd = norm * (vecdot(dnorm, norm)[:, None] / channels)
    without_mean = np.subtract(dnorm, through_mean, out=dnorm)
    dx_over_rstd = np.subtract(without_mean, through_rstd, out=without_mean)
    np.multiply(dx_over_rstd, rstd, out=dx)
    return dweight, dbias
