"""Softmax along one axis: probabilities in proportion to e^x.

Forward, for the numbers x_1 to x_N along the axis:

    e_i = e^(x_i - max(x))        p_i = e_i / sum(e)

The largest cancels in the ratio, so it changes neither p nor its derivative; it keeps e finite.

Backward. Every p_i depends on every x_j, through e_i itself and the sum:

    d p_i / d x_j = p_i (1[i = j] - p_j)          1[i = j] is 1 if i = j, otherwise 0

Let dp_i = dL/dp_i. The chain rule gives dx_j = sum_i dp_i (d p_i / d x_j):

    dx_j = p_j (dp_j - sum(dp p))

GPT-2 does not call this operation in training: attention and cross_entropy compute their own softmax.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.errors import ShapeError, check_floating
from minillm.ops.axes import one_axis


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    p: Array  # (..., N, ...)
    axis: int  # the axis of the N numbers, counted from the front


def softmax_forward(x, *, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))  # (..., N, ...)
    p = e / e.sum(axis=axis, keepdims=True)  # (..., N, ...)
    return p, Saved(p, axis)


def softmax_backward(dp, saved):
    p, axis = saved
    through_sum = (dp * p).sum(axis=axis, keepdims=True)  # (..., 1, ...)
    dx = p * (dp - through_sum)  # (..., N, ...)
    return (dx,)


SOFTMAX = Op("softmax", softmax_forward, softmax_backward)


def softmax(x: Tensor, axis: int | None = None, *, dim: int | None = None) -> Tensor:
    """Probabilities along one axis: p_i = e^(x_i) / sum_j e^(x_j).

    Shapes: x (..., N, ...) with N numbers along `axis` (or `dim`, PyTorch's name; the last by default); result like x.
    Saves: p.
    Raises: ShapeError for an axis that is not there or has size 0; DtypeError for integers.
    """
    return SOFTMAX(x, axis=class_axis("softmax", x, axis, dim))


def class_axis(function: str, x: Tensor, axis: int | None, dim: int | None) -> int:
    """The axis of the classes, checked and counted from the front; the last where none is given."""
    check_floating(function, x=x)
    axis = one_axis(function, -1 if axis is None and dim is None else axis, x.ndim, dim)
    if x.shape[axis] == 0:
        raise ShapeError(f"{function}: axis {axis} of shape {x.shape} has size 0; it needs at least one class")
    return axis
