"""Axes in another order: y = x with its axes permuted, and the gradient goes through the inverse permutation.

y = x.transpose(axes): axis i of y is axis axes[i] of x.    dx = dy.transpose(inverse), with inverse[axes[i]] = i

For axes (2, 0, 1): x (I, J, K), y (K, I, J).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.errors import ShapeError
from minillm.ops.axes import Axis, choose_axis, several_axes, whole_sizes

__all__ = ["moveaxis", "movedim", "permute", "swapaxes", "swapdims", "t", "transpose"]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    axes: tuple[int, ...]


def transpose_forward(x, *, axes):
    y = x.transpose(axes)  # (K, I, J)
    return y, Saved(axes)


def transpose_backward(dy, saved):
    inverse = np.argsort(saved.axes)  # (number of axes,)
    dx = dy.transpose(inverse)  # (I, J, K)
    return (dx,)


TRANSPOSE = Op("transpose", transpose_forward, transpose_backward, aliases=True)


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Swap two axes."""
    for axis in (dim0, dim1):
        choose_axis("transpose", axis, None, x.ndim)
    axes = list(range(x.ndim))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return TRANSPOSE(x, axes=tuple(axes))


swapaxes = swapdims = transpose


def permute(x: Tensor, *axes: Any) -> Tensor:
    """Put the axes into the given order: `x.permute(0, 2, 1)`."""
    order = whole_sizes("permute", axes, "an axis")
    order = tuple(axis + x.ndim if axis < 0 else axis for axis in order)
    if sorted(order) != list(range(x.ndim)):
        raise ShapeError(f"permute: {axes} is not a permutation of the {x.ndim} axes of shape {x.shape}")
    return TRANSPOSE(x, axes=order)


def movedim(x: Tensor, source: Axis, destination: Axis) -> Tensor:
    """Axes `source` (an int or a tuple) moved to the places `destination`; the others keep their order."""
    start, end = several_axes("movedim", (source,), x.ndim), several_axes("movedim", (destination,), x.ndim)
    if len(start) != len(end):
        raise ShapeError(f"movedim: source {source} names {len(start)} axes, but destination {destination} {len(end)}")
    order = [axis for axis in range(x.ndim) if axis not in start]
    for place, axis in sorted(zip(end, start, strict=True)):
        order.insert(place, axis)
    return permute(x, order) if x.ndim else x


moveaxis = movedim


def t(x: Tensor) -> Tensor:
    """A matrix transposed; a vector or a number as it is."""
    if x.ndim > 2:
        raise ShapeError(f"t: the tensor has shape {x.shape}; write x.transpose(-1, -2) for the matrices in it")
    return transpose(x, 0, 1) if x.ndim == 2 else x
