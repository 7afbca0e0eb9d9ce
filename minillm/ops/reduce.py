"""Sums, means, maxima and minima over axes. Each hands its gradient back over the axes that it removed.

y = sum over i of x_i           dx_i = dy
y = 1/n sum over i of x_i       dx_i = dy / n
y = largest (smallest) x_i      dx_i = dy / k for the k elements that are equal to y, else 0

Shapes: x (..., n, ...), with n for the axis or axes of i; y (..., ...), or (..., 1, ...) with keepdims.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.errors import DtypeError
from minillm.ops.axes import Axis, reduced_axis, refuse_nothing, total_of
from minillm.ops.create import as_tensor

__all__ = ["amax", "amin", "mean", "sum"]


class Reduced(NamedTuple):
    """Everything that the forward keeps for the backward."""

    shape: tuple[int, ...]  # of x
    axis: Axis
    keepdims: bool


class Extreme(NamedTuple):
    """Everything that the forward keeps for the backward."""

    reached: Array  # (..., n, ...): which elements are equal to the result, a byte each
    axis: Axis
    keepdims: bool


def in_dtype(x: Any, dtype: Any) -> Tensor:
    """x in the dtype in which a sum or product adds it up: `dtype`, else int64 for integers and booleans."""
    x = as_tensor(x)
    if dtype is None:
        dtype = np.int64 if x.dtype.kind in "iub" else x.dtype
    return x.to(dtype)


def restore_axes(reduced, axis, keepdims, ndim):
    """Give a reduced array its removed axes back, with size 1, so that it broadcasts against what went in."""
    if keepdims:
        return reduced
    return reduced.reshape((1,) * ndim) if axis is None else np.expand_dims(reduced, axis)


# --- sum and mean --------------------------------------------------------------------------------------------------


def sum_forward(x, *, axis, keepdims):
    y = total_of(x, axis, keepdims)  # (..., ...)
    return y, Reduced(x.shape, axis, keepdims)


def sum_backward(dy, saved):
    shape, axis, keepdims = saved
    dx = np.broadcast_to(restore_axes(dy, axis, keepdims, len(shape)), shape)  # (..., n, ...)
    return (dx,)


SUM = Op("sum", sum_forward, sum_backward, aliases=True)


def sum(
    x: Tensor, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False, dtype: Any = None
) -> Tensor:
    """The sum over `axis` (an int, a tuple, or None for all); `dim` and `keepdim` are PyTorch's names for these.

    x is converted to `dtype` first; without one, integers and booleans are added up in int64.
    """
    x = in_dtype(x, dtype)
    return SUM(x, axis=reduced_axis("sum", axis, dim, x.ndim), keepdims=keepdims or keepdim)


def mean_forward(x, *, axis, keepdims):
    total = x.sum(axis=axis, keepdims=keepdims, dtype=np.promote_types(x.dtype, np.float32))  # (..., ...)
    n = x.size // (total.size or 1)
    y = (total.astype(np.float64) / n).astype(x.dtype)  # (..., ...); n may be too large for 16 bits
    return y, Reduced(x.shape, axis, keepdims)


def mean_backward(dy, saved):
    shape, axis, keepdims = saved
    n = math.prod(shape) // (dy.size or 1)
    share = (dy.astype(np.float64) / n).astype(dy.dtype)  # (..., ...); n may be too large for 16 bits
    dx = np.broadcast_to(restore_axes(share, axis, keepdims, len(shape)), shape)  # (..., n, ...)
    return (dx,)


MEAN = Op("mean", mean_forward, mean_backward, aliases=True)


def mean(
    x: Tensor, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False, dtype: Any = None
) -> Tensor:
    """The mean over `axis` (an int, a tuple, or None for all), in `dtype`.

    Raises: DtypeError for integers and booleans without a dtype, whose mean is no integer; ShapeError for no elements.
    """
    x = in_dtype(x, dtype)
    if x.dtype.kind in "iub":
        raise DtypeError(
            "mean: x holds integers or booleans, whose mean is none; give dtype=np.float32, or convert x with .to"
        )
    axis = reduced_axis("mean", axis, dim, x.ndim)
    refuse_nothing("mean", x.shape, axis, "mean")
    return MEAN(x, axis=axis, keepdims=keepdims or keepdim)


# --- the largest and the smallest ----------------------------------------------------------------------------------


def amax_forward(x, *, axis, keepdims):
    y = np.max(x, axis=axis, keepdims=keepdims)  # (..., ...)
    return y, Extreme(x == restore_axes(y, axis, keepdims, x.ndim), axis, keepdims)


def amin_forward(x, *, axis, keepdims):
    y = np.min(x, axis=axis, keepdims=keepdims)  # (..., ...)
    return y, Extreme(x == restore_axes(y, axis, keepdims, x.ndim), axis, keepdims)


def extreme_backward(dy, saved):
    reached, axis, keepdims = saved
    k = reached.sum(axis=axis, keepdims=True)  # (..., 1, ...)
    ties = np.where(k == 0, np.nan, k).astype(
        dy.dtype
    )  # (..., 1, ...); nothing equals a NaN, whose gradient is NaN too
    dx = reached * (restore_axes(dy, axis, keepdims, reached.ndim) / ties)  # (..., n, ...)
    return (dx,)


AMAX = Op("amax", amax_forward, extreme_backward)
AMIN = Op("amin", amin_forward, extreme_backward)


def _extreme(op: Op, x: Any, axis: Axis, keepdims: bool, dim: Axis) -> Tensor:
    x = as_tensor(x)
    axis = reduced_axis(op.name, axis, dim, x.ndim)
    refuse_nothing(op.name, x.shape, axis, "maximum" if op is AMAX else "minimum")
    return op(x, axis=axis, keepdims=keepdims)


def amax(x: Tensor, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> Tensor:
    """The maximum over `axis` (an int, a tuple, or None for all); equal maxima share its gradient evenly."""
    return _extreme(AMAX, x, axis, keepdims or keepdim, dim)


def amin(x: Tensor, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> Tensor:
    """The minimum over `axis` (an int, a tuple, or None for all); equal minima share its gradient evenly."""
    return _extreme(AMIN, x, axis, keepdims or keepdim, dim)
