"""The norm of order p over axes; for p = 2 it is the length of a vector.

    norm = (sum of |x_i|^p)^(1/p)          dx_i = dnorm sign(x_i) (|x_i| / norm)^(p - 1)

because d norm = norm^(1 - p) |x_i|^(p - 1) d|x_i|. Where the norm is 0 the gradient is taken to be 0. The norm of order
inf (-inf) is the largest (smallest) |x_i|; those that reach it share its gradient evenly.

Shapes: x (..., n, ...), with n for the axis or axes of i; norm (..., ...), or (..., 1, ...) with keepdims.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.errors import InputError, check_floating
from minillm.ops.axes import Axis, reduced_axis, refuse_nothing
from minillm.ops.create import as_tensor
from minillm.ops.reduce import restore_axes, sum
from minillm.ops.rounding import SIGN, signs

__all__ = ["norm"]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    x: Array
    norm: Array  # (..., ...)
    p: float
    axis: Axis
    keepdims: bool


def norm_forward(x, *, p, axis, keepdims):
    if p == math.inf:
        norm = np.max(np.abs(x), axis=axis, keepdims=keepdims)  # (..., ...)
    elif p == -math.inf:
        norm = np.min(np.abs(x), axis=axis, keepdims=keepdims)  # (..., ...)
    elif p == 2:
        norm = np.sqrt(total_in_float64(x * x, axis, keepdims))  # (..., ...)
    else:
        norm = np.power(total_in_float64(np.power(np.abs(x), p), axis, keepdims), 1 / p)  # (..., ...)
    return norm, Saved(x, norm, p, axis, keepdims)


def total_in_float64(x, axis, keepdims):
    """The sum, added up in float64, because float32 loses digits over many rows."""
    return np.sum(x, axis=axis, keepdims=keepdims, dtype=np.float64).astype(x.dtype)  # (..., ...)


def norm_backward(dy, saved):
    x, _, p, axis, keepdims = saved
    norm = restore_axes(saved.norm, axis, keepdims, x.ndim)  # (..., 1, ...)
    dnorm = restore_axes(dy, axis, keepdims, x.ndim)  # (..., 1, ...)
    size = np.abs(x)  # (..., n, ...)
    dsize = to_the_extremes(dnorm, norm, size, axis) if math.isinf(p) else to_all(dnorm, norm, size, p)
    dx = (dsize * signs(x)).astype(dy.dtype, copy=False)  # (..., n, ...)
    return (dx,)


def to_all(dnorm, norm, size, p):
    """dnorm (size / norm)^(p - 1), and 0 where the norm is 0."""
    zero = norm == 0  # (..., 1, ...)
    if 0 < p < 2:  # size / norm may be too small for a number, where the powers of both are not
        own = np.where((size == 0) & (p < 1), 0, np.power(size, p - 1))  # (..., n, ...); infinite at 0 for p < 1
        return dnorm * own * np.where(zero, 0, np.power(norm, 1 - p))  # (..., n, ...)
    return dnorm * np.where(zero, 0, np.power(size / np.where(zero, 1, norm), p - 1))  # (..., n, ...)


def to_the_extremes(dnorm, norm, size, axis):
    """dnorm / k for the k elements that reach the norm, else 0."""
    reached = size == norm  # (..., n, ...)
    k = np.maximum(reached.sum(axis=axis, keepdims=True), 1).astype(dnorm.dtype)  # (..., 1, ...); nothing equals a NaN
    return reached * (dnorm / k)  # (..., n, ...)


NORM = Op("norm", norm_forward, norm_backward)


def norm(
    x: Tensor, p: float | str = "fro", dim: Axis = None, keepdim: bool = False, *, axis: Axis = None, dtype: Any = None
) -> Tensor:
    """The norm of order p over `dim` (an int, a tuple, or None for all): (sum of |x|^p)^(1/p).

    p: 2 by default, also called "fro"; inf is the largest |x|, -inf the smallest, and 0 counts those that are not 0.
    Saves: a reference to x, and the result.
    """
    if p not in ("fro", None) and not isinstance(p, (int, float)):
        raise InputError(f"norm: p is {p!r}; give a number, inf, or 'fro', which is 2")
    x = as_tensor(x)
    x = x if dtype is None else x.to(dtype)
    check_floating("norm", x=x)
    order = 2.0 if p in ("fro", None) else float(p)
    axis = reduced_axis("norm", axis, dim, x.ndim)
    if order == 1:
        return sum(x.abs(), axis, keepdim)
    if order == 0:
        return sum(SIGN(x, function=lambda x: (x != 0).astype(x.dtype)), axis, keepdim)  # flat between its steps
    if math.isinf(order):
        refuse_nothing("norm", x.shape, axis, "largest")
    return NORM(x, p=order, axis=axis, keepdims=keepdim)
