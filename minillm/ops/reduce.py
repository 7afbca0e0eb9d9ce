"""Sums, means, maxima and minima over axes.

Each reduction stretches its gradient back over the axes that it removed: for a sum, every element that went in gets
the gradient of the sum; for a mean, 1/n of it; for a maximum, only the elements that reach it, in equal shares.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor, tensor
from minillm.backend import Array
from minillm.errors import DtypeError, ShapeError, check_whole
from minillm.sums import sum_over

Axis = int | tuple[int, ...] | None


class Reduced(NamedTuple):
    """The shape that went in, and the axes that were removed."""

    shape: tuple[int, ...]
    axis: Axis
    keepdims: bool


class Extreme(NamedTuple):
    """Which elements reach the maximum (or minimum): one byte each."""

    reached: Array
    axis: Axis
    keepdims: bool


def choose_axis(function: str, axis: Any, dim: Any, ndim: int) -> Any:
    """`axis` or PyTorch's `dim`, whichever was given, checked against the number of dimensions."""
    if dim is not None:
        if axis is not None:
            raise ShapeError(f"{function}: both axis={axis} and dim={dim} were given; give one of them")
        axis = dim
    if axis is None:
        return None
    several = isinstance(axis, (tuple, list))
    chosen = tuple(check_whole(function, "axis", one) for one in (axis if several else [axis]))
    for one in chosen:
        if not -ndim <= one < ndim:
            raise ShapeError(f"{function}: axis {one} is out of range for a tensor with {ndim} dimensions")
    if len({one % ndim for one in chosen}) < len(chosen):
        raise ShapeError(f"{function}: axis {axis} names an axis twice")
    return chosen if several else chosen[0]


def one_axis(function: str, axis: Any, ndim: int, dim: Any = None) -> int:
    """A single axis, counted from the front."""
    return check_whole(function, "axis", choose_axis(function, axis, dim, ndim)) % ndim


def reduced_axis(function: str, axis: Any, dim: Any, ndim: int) -> Any:
    """`choose_axis` for a reduction, where a number without axes may be asked for its first or last, as in PyTorch."""
    chosen = choose_axis(function, axis, dim, ndim or 1)
    return chosen if ndim else None


def refuse_nothing(function: str, shape: tuple[int, ...], axis: Axis, what: str) -> None:
    """Raise ShapeError where no element is left to make a result of."""
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    if any(shape[one] == 0 for one in axes):
        raise ShapeError(f"{function}: the tensor has shape {shape}, and no elements have no {what}")


def in_dtype(x: Any, dtype: Any) -> Tensor:
    """What a sum or product adds up: x in `dtype`, and without one, integers and booleans in int64, as in PyTorch."""
    x = x if isinstance(x, Tensor) else tensor(x)
    if dtype is None:
        dtype = np.int64 if x.dtype.kind in "iub" else x.dtype
    return x.to(dtype)


def restore_axes(reduced: Array, axis: Axis, keepdims: bool, ndim: int) -> Array:
    """Give a reduced array its removed axes back, with size 1, so that it broadcasts against what went in."""
    if keepdims:
        return reduced
    return reduced.reshape((1,) * ndim) if axis is None else np.expand_dims(reduced, axis)


def sum_forward(x, *, axis, keepdims):
    total = sum_over(x, axis, keepdims)
    if x.dtype.kind not in "iub":  # the sum of booleans is a count
        total = total.astype(x.dtype, copy=False)
    return total, Reduced(x.shape, axis, keepdims)


def sum_backward(dout, saved):
    return (np.broadcast_to(restore_axes(dout, saved.axis, saved.keepdims, len(saved.shape)), saved.shape),)


SUM = Op("sum", sum_forward, sum_backward, aliases=True)


def sum(
    x: Tensor, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False, dtype: Any = None
) -> Tensor:
    """The sum over `axis` (an int, a tuple, or None for all); `dim` and `keepdim` are PyTorch's names for the same.

    `dtype` is what is added up and what comes out; integers and booleans are added up in int64.
    """
    x = in_dtype(x, dtype)
    return SUM(x, axis=reduced_axis("sum", axis, dim, x.ndim), keepdims=keepdims or keepdim)


def mean_forward(x, *, axis, keepdims):
    total = sum_over(x, axis, keepdims)
    mean = total / (x.size // (total.size or 1))
    return mean if x.dtype.kind in "iub" else mean.astype(x.dtype, copy=False), Reduced(x.shape, axis, keepdims)


def mean_backward(dout, saved):
    share = restore_axes(dout, saved.axis, saved.keepdims, len(saved.shape))
    count = math.prod(saved.shape) // (share.size or 1)  # of elements that went into each mean: it may overflow 16 bits
    share = np.divide(share, count, dtype=np.promote_types(share.dtype, np.float32)).astype(share.dtype, copy=False)
    return (np.broadcast_to(share, saved.shape),)


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
    out = np.max(x, axis=axis, keepdims=keepdims)
    return out, Extreme(x == restore_axes(out, axis, keepdims, x.ndim), axis, keepdims)


def amin_forward(x, *, axis, keepdims):
    out = np.min(x, axis=axis, keepdims=keepdims)
    return out, Extreme(x == restore_axes(out, axis, keepdims, x.ndim), axis, keepdims)


def extreme_backward(dout, saved):
    reached, axis, keepdims = saved
    ties = reached.sum(axis=axis, keepdims=True)
    ties = np.where(ties == 0, np.nan, ties).astype(dout.dtype)  # nothing equals a NaN: its gradient is NaN too
    return (reached * (restore_axes(dout, axis, keepdims, reached.ndim) / ties),)


AMAX = Op("amax", amax_forward, extreme_backward)
AMIN = Op("amin", amin_forward, extreme_backward)


def _extreme(op: Op, x: Any, axis: Axis, keepdims: bool, dim: Axis) -> Tensor:
    x = x if isinstance(x, Tensor) else tensor(x)
    axis = reduced_axis(op.name, axis, dim, x.ndim)
    refuse_nothing(op.name, x.shape, axis, "maximum" if op is AMAX else "minimum")
    return op(x, axis=axis, keepdims=keepdims)


def amax(x: Tensor, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> Tensor:
    """The maximum over `axis` (an int, a tuple, or None for all); equal maxima share its gradient evenly."""
    return _extreme(AMAX, x, axis, keepdims or keepdim, dim)


def amin(x: Tensor, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> Tensor:
    """The minimum over `axis` (an int, a tuple, or None for all); equal minima share its gradient evenly."""
    return _extreme(AMIN, x, axis, keepdims or keepdim, dim)
