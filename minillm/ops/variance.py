"""Variance and standard deviation over axes.

With centred_i = x_i - mean(x) and n - correction degrees of freedom,

    var = sum of centred_i^2 / degrees          dx_i = dvar 2 centred_i / degrees

The mean moves with x too, but that changes the sum by -2 mean(dx) sum(centred), and centred sums to 0.

    std = sqrt(var)                             dvar = dstd / (2 std)

Where std is 0 all elements are equal, and the slope is taken to be 0, because it has no one direction.
Shapes: x (..., n, ...), with n for the axis or axes of i; std (..., ...), or (..., 1, ...) with keepdims.
The mean and the squares are computed in float64: a sum of many float32 loses digits, and a square may overflow float32
where the standard deviation does not.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.errors import check_floating
from minillm.ops.axes import Axis, reduced_axis
from minillm.ops.create import as_tensor
from minillm.ops.reduce import restore_axes

__all__ = ["std", "var"]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    centred: Array  # (..., n, ...)
    degrees: float
    axis: Axis
    keepdims: bool
    std: Array | None = None  # (..., ...); None for a variance


def variance(x, correction, axis, keepdims):
    """The variance in float64, and what is saved."""
    total = np.sum(x, axis=axis, keepdims=True, dtype=np.float64)  # (..., 1, ...)
    n = x.size // max(1, total.size)
    mean = (total / n if n else total * math.nan).astype(x.dtype)  # (..., 1, ...)
    centred = x - mean  # (..., n, ...)
    degrees = float(n - correction)
    squares = np.square(centred, dtype=np.float64).sum(axis=axis, keepdims=keepdims)  # (..., ...)
    var = squares / max(degrees, 0)  # (..., ...); NaN for one element without degrees of freedom
    return var, Saved(centred, degrees, axis, keepdims)


def var_forward(x, *, correction, axis, keepdims):
    var, saved = variance(x, correction, axis, keepdims)
    y = var.astype(x.dtype)  # (..., ...)
    return y, saved


def var_backward(dy, saved):
    dvar = restore_axes(dy, saved.axis, saved.keepdims, saved.centred.ndim)  # (..., 1, ...)
    rate = 2 / saved.degrees if saved.degrees > 0 else math.inf
    dx = dvar * rate * saved.centred  # (..., n, ...)
    return (dx,)


VAR = Op("var", var_forward, var_backward)


def std_forward(x, *, correction, axis, keepdims):
    var, saved = variance(x, correction, axis, keepdims)
    std = np.sqrt(var).astype(x.dtype)  # (..., ...)
    return std, saved._replace(std=std)


def std_backward(dy, saved):
    constant = saved.std == 0  # (..., ...)
    dvar = np.where(constant, 0, dy / (2 * np.where(constant, 1, saved.std)))  # (..., ...)
    return var_backward(dvar, saved)


STD = Op("std", std_forward, std_backward)


def var(
    x: Tensor,
    axis: Axis = None,
    unbiased: bool = True,
    keepdims: bool = False,
    *,
    correction: float | None = None,
    dim: Axis = None,
    keepdim: bool = False,
) -> Tensor:
    """The variance over `axis`: the sum of squared distances from the mean, divided by n - correction.

    correction: 1 by default, as in PyTorch, which estimates a distribution's variance without bias (NumPy's is 0);
    `unbiased=False` is another name for correction 0. The variance of one element with correction 1 is NaN.
    Saves: an array like x.
    """
    return _spread(VAR, x, axis, dim, unbiased, correction, keepdims or keepdim)


def std(
    x: Tensor,
    axis: Axis = None,
    unbiased: bool = True,
    keepdims: bool = False,
    *,
    correction: float | None = None,
    dim: Axis = None,
    keepdim: bool = False,
) -> Tensor:
    """The standard deviation over `axis`: the root of the variance, with the same arguments; see `var`.

    Where all elements are equal, its gradient is 0. Saves: an array like x, and the result.
    """
    return _spread(STD, x, axis, dim, unbiased, correction, keepdims or keepdim)


def _spread(op: Op, x: Any, axis: Any, dim: Axis, unbiased: bool, correction: float | None, keepdims: bool) -> Tensor:
    if isinstance(axis, bool):  # PyTorch's x.var(False)
        axis, unbiased = None, axis
    x = as_tensor(x)
    check_floating(op.name, x=x)
    axis = reduced_axis(op.name, axis, dim, x.ndim)
    return op(x, correction=int(unbiased) if correction is None else correction, axis=axis, keepdims=keepdims)
