"""RMS norm on a CPU: the formulas derived in ops/rmsnorm.py, a block of rows at a time, which stays in cache."""

from __future__ import annotations

import numpy as np

from minillm.backend import as_rows, row_blocks, sum_over_blocks
from minillm.ops.rmsnorm import Saved
from minillm.sums import column_sums, vecdot


def forward(x, weight, *, eps):
    """y (..., C); norm (..., C) and rstd (N, 1) of each of the N rows are saved."""
    norm, y = np.empty_like(x, order="C"), np.empty_like(x, order="C")  # (..., C)
    x_rows, norm_rows, y_rows = as_rows(x), as_rows(norm), as_rows(y)  # (N, C)
    rstd = np.empty_like(x, shape=(len(x_rows), 1))  # (N, 1)
    channels = x.shape[-1]

    def block(rows):
        mean_square = vecdot(x_rows[rows], x_rows[rows])[:, None] / channels
        np.divide(1, np.sqrt(mean_square + eps), out=rstd[rows])
        norm_of_rows = np.multiply(x_rows[rows], rstd[rows], out=norm_rows[rows])
        np.multiply(norm_of_rows, weight, out=y_rows[rows])

    row_blocks(block, x_rows)
    return y, Saved(norm, rstd, weight)


def backward(dy, saved):
    """dx (..., C) and dweight (C,)."""
    norm, rstd, weight = saved
    dx = np.empty_like(norm)  # (..., C)
    norm_rows, dy_rows, dx_rows = as_rows(norm), as_rows(dy), as_rows(dx)  # (N, C)
    channels = norm.shape[-1]

    def block(rows):
        dweight = column_sums(np.multiply(dy_rows[rows], norm_rows[rows], out=dx_rows[rows]))
        dnorm = np.multiply(dy_rows[rows], weight, out=dx_rows[rows])
        through_rstd = norm_rows[rows] * (vecdot(dnorm, norm_rows[rows])[:, None] / channels)
        dx_over_rstd = np.subtract(dnorm, through_rstd, out=dnorm)
        np.multiply(dx_over_rstd, rstd[rows], out=dx_rows[rows])
        return (dweight,)

    (dweight,) = sum_over_blocks(block, dy_rows)
    return dx, dweight
