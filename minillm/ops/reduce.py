"""Sums, means and maxima over axes.

Each reduction stretches its gradient back over the axes that it removed: for a sum, every element that went in gets
the gradient of the sum; for a mean, 1/n of it; for a maximum, only the elements that reach it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.errors import ShapeError
from minillm.sums import sum_over

Axis = int | tuple[int, ...] | None


class Reduced(NamedTuple):
    """The shape that went in, and the axes that were removed."""

    shape: tuple[int, ...]
    axis: Axis
    keepdims: bool


class Maximum(NamedTuple):
    """Where the maximum is, shared out among ties."""

    share: Array
    axis: Axis
    keepdims: bool


def choose_axis(function: str, axis: Any, dim: Any, ndim: int) -> Any:
    """`axis` or PyTorch's `dim`, whichever was given, checked against the number of dimensions."""
    if dim is not None:
        if axis is not None:
            raise ShapeError(f"{function}: both axis={axis} and dim={dim} were given; give one of them")
        axis = dim
    for one in axis if isinstance(axis, (tuple, list)) else [] if axis is None else [axis]:
        if not -ndim <= one < ndim:
            raise ShapeError(f"{function}: axis {one} is out of range for a tensor with {ndim} dimensions")
    return tuple(axis) if isinstance(axis, list) else axis


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


def sum(x: Tensor, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> Tensor:
    """The sum over `axis` (an int, a tuple, or None for all); `dim` and `keepdim` are PyTorch's names for the same."""
    return SUM(x, axis=choose_axis("sum", axis, dim, x.ndim), keepdims=keepdims or keepdim)


def mean_forward(x, *, axis, keepdims):
    total = sum_over(x, axis, keepdims)
    mean = total / (x.size // total.size)
    return mean if x.dtype.kind in "iub" else mean.astype(x.dtype, copy=False), Reduced(x.shape, axis, keepdims)


def mean_backward(dout, saved):
    share = restore_axes(dout, saved.axis, saved.keepdims, len(saved.shape))
    count = math.prod(saved.shape) // share.size  # of elements that went into each mean: it may overflow 16 bits
    share = np.divide(share, count, dtype=np.promote_types(share.dtype, np.float32)).astype(share.dtype, copy=False)
    return (np.broadcast_to(share, saved.shape),)


MEAN = Op("mean", mean_forward, mean_backward, aliases=True)


def mean(x: Tensor, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> Tensor:
    """The mean over `axis` (an int, a tuple, or None for all)."""
    axis = choose_axis("mean", axis, dim, x.ndim)
    if 0 in x.shape:
        raise ShapeError(f"mean: the tensor has shape {x.shape}, and no elements have no mean")
    return MEAN(x, axis=axis, keepdims=keepdims or keepdim)


def max_forward(x, *, axis, keepdims):
    out = np.max(x, axis=axis, keepdims=keepdims)
    share = (x == restore_axes(out, axis, keepdims, x.ndim)).astype(x.dtype)
    share = (share / sum_over(share, axis, keepdims=True)).astype(x.dtype, copy=False)
    return out, Maximum(share, axis, keepdims)


def max_backward(dout, saved):
    return (saved.share * restore_axes(dout, saved.axis, saved.keepdims, saved.share.ndim),)


MAX = Op("max", max_forward, max_backward)


def max(x: Tensor, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> Tensor:
    """The maximum over `axis`; equal maxima share its gradient evenly, as in torch.amax."""
    axis = choose_axis("max", axis, dim, x.ndim)
    if 0 in x.shape:
        raise ShapeError(f"max: the tensor has shape {x.shape}, and no elements have no maximum")
    return MAX(x, axis=axis, keepdims=keepdims or keepdim)
