"""A residual addition and its layer norm on a CPU: a block of rows is added up and normalised while it is in cache."""

from __future__ import annotations

import numpy as np

from minillm.backend import as_rows, row_blocks, sum_over_blocks
from minillm.fast.layernorm import Saved, backward_of_rows, forward_of_rows
from minillm.ops.add_layernorm import without_norm


def forward(x, residual, weight, bias, *, eps):
    """x + residual and its layer norm, (..., C) each."""
    total = np.empty_like(x, order="C", dtype=np.promote_types(x.dtype, residual.dtype))
    y = np.empty_like(total)
    x_rows, residual_rows, total_rows, y_rows = map(as_rows, (x, residual, total, y))
    mean, rstd = np.empty_like(total, shape=(2, len(y_rows), 1))

    def block(rows):
        sums = np.add(x_rows[rows], residual_rows[rows], out=total_rows[rows])
        forward_of_rows(sums, weight, bias, eps, y_rows[rows], mean[rows], rstd[rows])

    row_blocks(block, y_rows)
    return (total, y), Saved(total, weight, mean, rstd, bias is not None)


def backward(douts, saved):
    """dx = dresidual (..., C), dweight (C,) and dbias (C,)."""
    dtotal, dy = douts
    if dy is None:
        return without_norm(dtotal, saved)
    total, weight, mean, rstd, has_bias = saved
    dx = np.empty_like(total, order="C")
    total_rows, dy_rows, dx_rows = map(as_rows, (total, dy, dx))
    dtotal_rows = None if dtotal is None else as_rows(dtotal)

    def block(rows):
        sums = backward_of_rows(dy_rows[rows], total_rows[rows], weight, mean[rows], rstd[rows], dx_rows[rows])
        if dtotal_rows is not None:
            dx_rows[rows] += dtotal_rows[rows]
        return sums

    dweight, dbias = sum_over_blocks(block, dy_rows)
    return dx, dx, dweight, dbias if has_bias else None
