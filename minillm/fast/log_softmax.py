"""Log-softmax on a CPU: the formula of ops/log_softmax.py, a block of rows at a time, in the memory of the result."""

from __future__ import annotations

import numpy as np

from minillm.backend import row_max
from minillm.fast.softmax import rows_along
from minillm.ops.log_softmax import Saved
from minillm.sums import row_sums


def forward(x, *, axis):
    """log p = x - log sum of e^x along the axis, in the shape of x."""

    def block(x, log_p):
        shifted = np.subtract(x, row_max(x), out=log_p)
        log_sum = np.log(row_sums(np.exp(shifted)))
        np.subtract(shifted, log_sum, out=log_p)

    log_p = rows_along(axis, block, x)
    return log_p, Saved(log_p, axis)


def backward(dlog_p, saved):
    """dx = dlog_p - p (sum of dlog_p) along the axis."""

    def block(log_p, dlog_p, dx):
        p = np.exp(log_p, out=dx)
        through_sum = np.multiply(p, row_sums(dlog_p), out=dx)
        np.subtract(dlog_p, through_sum, out=dx)

    return (rows_along(saved.axis, block, saved.log_p, dlog_p),)
