"""The logarithm of softmax along one axis, which keeps the digits of probabilities too small for a number.

Forward, for the numbers x_1 to x_N along the axis, with p = softmax(x):

    shifted_i = x_i - max(x)        log p_i = shifted_i - log(sum(e^shifted))

No logarithm of a small p is taken, and the sum is at least 1.

Backward. By the derivative of softmax (softmax.py), d log p_i / d x_j = 1[i = j] - p_j, where 1[i = j] is 1 if i = j,
otherwise 0. Let dlog_p_i = dL/d(log p_i). The chain rule gives dx_j = sum_i dlog_p_i (d log p_i / d x_j):

    dx_j = dlog_p_j - p_j sum(dlog_p)

GPT-2 does not call this operation in training: cross_entropy has these formulas too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.ops.softmax import class_axis


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    log_p: Array  # (..., N, ...)
    axis: int  # the axis of the N numbers, counted from the front


def log_softmax_forward(x, *, axis):
    shifted = x - x.max(axis=axis, keepdims=True)  # (..., N, ...)
    log_sum = np.log(np.exp(shifted).sum(axis=axis, keepdims=True))  # (..., 1, ...)
    log_p = shifted - log_sum  # (..., N, ...)
    return log_p, Saved(log_p, axis)


def log_softmax_backward(dlog_p, saved):
    log_p, axis = saved
    p = np.exp(log_p)  # (..., N, ...)
    dx = dlog_p - p * dlog_p.sum(axis=axis, keepdims=True)  # (..., N, ...)
    return (dx,)


LOG_SOFTMAX = Op("log_softmax", log_softmax_forward, log_softmax_backward)


def log_softmax(x: Tensor, axis: int | None = None, *, dim: int | None = None) -> Tensor:
    """Logarithms of probabilities along one axis: log p_i = x_i - log sum_j e^(x_j).

    Shapes: x (..., N, ...) with N numbers along `axis` (or `dim`, PyTorch's name; the last by default); result like x.
    Saves: log p.
    Raises: ShapeError for an axis that is not there or has size 0; DtypeError for integers.
    """
    return LOG_SOFTMAX(x, axis=class_axis("log_softmax", x, axis, dim))
