"""Another shape for the same elements in the same order: y = x, and the gradient gets x's shape back, dx = dy.

For two axes: x (I, J), y (K, L), with I J = K L.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.errors import DtypeError, ShapeError
from minillm.ops.axes import Axis, one_axis, several_axes, whole_sizes

__all__ = ["flatten", "ravel", "reshape", "reshape_as", "squeeze", "unflatten", "unsqueeze", "view", "view_as"]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    shape: tuple[int, ...]  # of x


def reshape_forward(x, *, shape):
    y = x.reshape(shape)  # (K, L)
    return y, Saved(x.shape)


def reshape_backward(dy, saved):
    dx = dy.reshape(saved.shape)  # (I, J)
    return (dx,)


RESHAPE = Op("reshape", reshape_forward, reshape_backward, aliases=True)


def reshape(x: Tensor, *shape: Any) -> Tensor:
    """The elements of x in another shape: `x.reshape(2, -1)` or `x.reshape((2, -1))`."""
    wanted = whole_sizes("reshape", shape)
    known = math.prod(size for size in wanted if size != -1)
    if (
        min(wanted, default=0) < -1
        or wanted.count(-1) > 1
        or (known != x.numel() if -1 not in wanted else known == 0 or x.numel() % known)
    ):
        raise ShapeError(f"reshape: {x.numel()} elements of shape {x.shape} do not fit the shape {wanted}")
    return RESHAPE(x, shape=wanted)


def view(x: Tensor, *shape: Any) -> Tensor:
    """The elements of x in another shape, as `reshape`: a view where the memory allows it, else a copy."""
    if len(shape) == 1 and not isinstance(shape[0], (int, tuple, list, np.integer, Tensor)):
        raise DtypeError(f"view: {shape[0]!r} is not a shape; to convert elements write x.to({shape[0]!r})")
    return reshape(x, *shape)


def view_as(x: Tensor, other: Tensor) -> Tensor:
    """x in the shape of another tensor with as many elements."""
    return reshape(x, other.shape)


reshape_as = view_as


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The axes from `start_dim` to `end_dim` made into one; all by default."""
    first, last = (one_axis("flatten", dim, x.ndim or 1) for dim in (start_dim, end_dim))
    if first > last:
        raise ShapeError(f"flatten: start_dim={start_dim} comes after end_dim={end_dim} in shape {x.shape}")
    return reshape(x, *x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])


def ravel(x: Tensor) -> Tensor:
    """All elements in one row."""
    return flatten(x)


def unflatten(x: Tensor, dim: int, sizes: Any) -> Tensor:
    """The tensor with one axis cut into several of the given sizes, one of which may be -1."""
    axis = one_axis("unflatten", dim, x.ndim)
    parts = whole_sizes("unflatten", (sizes,))
    known = math.prod(size for size in parts if size != -1)
    if parts.count(-1) == 1 and known and x.shape[axis] % known == 0:
        parts = tuple(x.shape[axis] // known if size == -1 else size for size in parts)
    if min(parts, default=-1) < 0 or math.prod(parts) != x.shape[axis]:
        raise ShapeError(f"unflatten: axis {axis} has size {x.shape[axis]}, which is not the product of {parts}")
    return reshape(x, *x.shape[:axis], *parts, *x.shape[axis + 1 :])


def squeeze(x: Tensor, dim: Axis = None) -> Tensor:
    """x without its axes of size 1, or without those of `dim` (an int or a tuple) that have it."""
    axes = range(x.ndim) if dim is None else several_axes("squeeze", (dim,), x.ndim)
    return reshape(x, tuple(size for axis, size in enumerate(x.shape) if axis not in axes or size != 1))


def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """x with a new axis of size 1 at `dim`."""
    axis = one_axis("unsqueeze", dim, x.ndim + 1)
    return reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))
