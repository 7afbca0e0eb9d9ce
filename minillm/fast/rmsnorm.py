"""RMS norm on a CPU: the formula of ops/rmsnorm.py, a block of rows at a time; the backward makes norm again from x."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.backend import Array, as_rows, row_blocks, sum_over_blocks
from minillm.sums import column_sums, vecdot


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward; rows are those of `as_rows`."""

    x: Array  # (..., C)
    weight: Array  # (C,)
    rstd: Array  # (rows, 1)


def forward(x, weight, *, eps):
    """y (..., C), with rstd of each row."""
    y = np.empty_like(x, order="C")
    x_rows, y_rows = as_rows(x), as_rows(y)
    rstd = np.empty_like(x, shape=(len(x_rows), 1))
    channels = x.shape[-1]

    def block(rows):
        mean_square = vecdot(x_rows[rows], x_rows[rows])[:, None] / channels
        np.divide(1, np.sqrt(mean_square + eps), out=rstd[rows])
        norm = np.multiply(x_rows[rows], rstd[rows], out=y_rows[rows])
        np.multiply(norm, weight, out=y_rows[rows])

    row_blocks(block, x_rows)
    return y, Saved(x, weight, rstd)


def backward(dy, saved):
    """dx (..., C) and dweight (C,)."""
    x, weight, rstd = saved
    dx = np.empty_like(x, order="C")
    x_rows, dy_rows, dx_rows = as_rows(x), as_rows(dy), as_rows(dx)
    channels = x.shape[-1]

    def block(rows):
        norm = x_rows[rows] * rstd[rows]
        dweight = column_sums(np.multiply(dy_rows[rows], norm, out=dx_rows[rows]))
        dnorm = np.multiply(dy_rows[rows], weight, out=dx_rows[rows])
        projection = vecdot(dnorm, norm)[:, None] / channels
        through_rstd = np.multiply(norm, projection, out=norm)
        dx_over_rstd = np.subtract(dnorm, through_rstd, out=dnorm)
        np.multiply(dx_over_rstd, rstd[rows], out=dx_rows[rows])
        return (dweight,)

    (dweight,) = sum_over_blocks(block, dy_rows)
    return dx, dweight
