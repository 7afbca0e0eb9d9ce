"""Layer norm on a CPU: the formula of ops/layernorm.py, a block of rows at a time, so that every pass stays in cache.

Sums over channels are products with ones (see sums.py). The forward keeps x instead of norm, which the backward makes
again: that costs two passes in cache and saves an array the size of x.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.backend import Array, as_rows, row_blocks, sum_over_blocks
from minillm.sums import column_sums, row_sums, vecdot


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward; rows are those of `as_rows`."""

    x: Array  # (..., C)
    weight: Array  # (C,)
    mean: Array  # (rows, 1)
    rstd: Array  # (rows, 1)
    has_bias: bool


def forward(x, weight, bias, *, eps):
    y = np.empty_like(x, order="C")
    x_rows, y_rows = as_rows(x), as_rows(y)
    mean, rstd = np.empty_like(x, shape=(2, len(x_rows), 1))

    def block(rows):
        normalise(x_rows[rows], weight, bias, eps, y_rows[rows], mean[rows], rstd[rows])

    row_blocks(block, x_rows)
    return y, Saved(x, weight, mean, rstd, bias is not None)


def backward(dy, saved):
    x, weight, mean, rstd, has_bias = saved
    dx = np.empty_like(x, order="C")
    x_rows, dy_rows, dx_rows = as_rows(x), as_rows(dy), as_rows(dx)

    def block(rows):
        return gradients(dy_rows[rows], x_rows[rows], weight, mean[rows], rstd[rows], dx_rows[rows])

    dweight, dbias = sum_over_blocks(block, dy_rows)
    return dx, dweight, dbias if has_bias else None


def normalise(x, weight, bias, eps, y, mean, rstd):
    """The forward of a block of rows: fills y, mean and rstd."""
    channels = x.shape[-1]
    np.divide(row_sums(x), channels, out=mean)
    centred = x - mean
    variance = vecdot(centred, centred)[:, None] / channels + eps
    np.divide(np.sqrt(variance), variance, out=rstd)
    norm = np.multiply(centred, rstd, out=centred)
    np.multiply(norm, weight, out=y)
    if bias is not None:
        y += bias


def gradients(dy, x, weight, mean, rstd, dx):
    """The backward of a block of rows: fills dx and returns its sums for dweight and dbias."""
    channels = x.shape[-1]
    centred = x - mean
    norm = np.multiply(centred, rstd, out=centred)
    dweight = column_sums(np.multiply(dy, norm, out=dx))
    dbias = column_sums(dy)
    dnorm = np.multiply(dy, weight, out=dx)
    projection = vecdot(dnorm, norm)[:, None] / channels
    dnorm_centred = np.subtract(dnorm, row_sums(dnorm) / channels, out=dnorm)
    through_rstd = np.multiply(norm, projection, out=norm)
    dx_over_rstd = np.subtract(dnorm_centred, through_rstd, out=dnorm_centred)
    np.multiply(dx_over_rstd, rstd, out=dx)
    return dweight, dbias
