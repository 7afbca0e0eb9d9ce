"""Softmax on a CPU: the formula of ops/softmax.py, a block of rows at a time, in the memory of the result."""

from __future__ import annotations

import numpy as np

from minillm.backend import as_rows, row_blocks, row_max
from minillm.ops.softmax import Saved
from minillm.sums import row_sums, vecdot


def forward(x, *, axis):
    """p = e^x / sum of e^x along the axis, in the shape of x."""

    def block(x, p):
        shifted = np.subtract(x, row_max(x), out=p)
        e = np.exp(shifted, out=p)
        np.divide(e, row_sums(e), out=p)

    p = rows_along(axis, block, x)
    return p, Saved(p, axis)


def backward(dp, saved):
    """dx = p (dp - sum of dp p) along the axis."""

    def block(p, dp, dx):
        difference = np.subtract(dp, vecdot(dp, p)[:, None], out=dx)
        np.multiply(p, difference, out=dx)

    return (rows_along(saved.axis, block, saved.p, dp),)


def rows_along(axis, block, *arrays):
    """A new array like the first: `block(*arrays, new)` fills it, and is called for blocks of rows along `axis`."""
    last = [array.swapaxes(axis, -1) for array in arrays]  # with the axis last, for now
    new = np.empty_like(last[0], order="C")
    *given, filled = (as_rows(array) for array in (*last, new))
    row_blocks(lambda rows: block(*(array[rows] for array in given), filled[rows]), filled)
    return new.swapaxes(axis, -1)
