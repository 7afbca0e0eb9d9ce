"""A residual addition and its layer norm on a CPU: a block of rows is added up and normalised while it is in cache."""

from __future__ import annotations

import numpy as np

from minillm.backend import as_rows, row_blocks, sum_over_blocks
from minillm.fast.layernorm import backward_of_rows, forward_of_rows
from minillm.ops.add_layernorm import without_norm
from minillm.ops.layernorm import Saved


def forward(x, residual, weight, bias, *, eps):
    """x + residual and its layer norm, (..., C) each."""
    total = np.empty_like(x, order="C", dtype=np.promote_types(x.dtype, residual.dtype))
    norm, y = np.empty_like(total), np.empty_like(total)
    x_rows, residual_rows, total_rows, norm_rows, y_rows = map(as_rows, (x, residual, total, norm, y))
    rstd = np.empty_like(total, shape=(len(y_rows), 1))

    def block(rows):
        sums = np.add(x_rows[rows], residual_rows[rows], out=total_rows[rows])
        forward_of_rows(sums, weight, bias, eps, norm_rows[rows], y_rows[rows], rstd[rows])

    row_blocks(block, y_rows)
    return (total, y), Saved(norm, rstd, weight, bias is not None)


def backward(douts, saved):
    """dx = dresidual (..., C), dweight (C,) and dbias (C,)."""
    dtotal, dy = douts
    if dy is None:
        return without_norm(dtotal, saved)
    norm, rstd, weight, has_bias = saved
    dx = np.empty_like(norm)
    norm_rows, dy_rows, dx_rows = map(as_rows, (norm, dy, dx))
    dtotal_rows = None if dtotal is None else as_rows(dtotal)

    def block(rows):
        sums = backward_of_rows(dy_rows[rows], norm_rows[rows], rstd[rows], weight, dx_rows[rows])
        if dtotal_rows is not None:
            dx_rows[rows] += dtotal_rows[rows]
        return sums

    dweight, dbias = sum_over_blocks(block, dy_rows)
    return dx, dx, dweight, dbias if has_bias else None
