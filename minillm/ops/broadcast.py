"""Broadcasting: an array of a smaller shape is read as a larger one, each element in many places.

    y[i, j] = x[j]          dx[j] = sum over i of dy[i, j]          x (J,), y (I, J)

One element of x goes into many elements of y, so its gradient is the sum of theirs: over every axis that is new or that
had size 1. Functions of two operands stretch both to one shape by this operation first (see `stretched`), so their own
backwards are those of one element, and this file alone sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.errors import ShapeError
from minillm.ops.axes import total_of, whole_sizes
from minillm.ops.reshape import reshape
from minillm.ops.to import clone

__all__ = ["broadcast_to", "expand", "expand_as", "repeat", "tile"]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    shape: tuple[int, ...]  # of x


def broadcast_forward(x, *, shape):
    y = np.broadcast_to(x, shape)  # (I, J), without memory of its own
    return y, Saved(x.shape)


def broadcast_backward(dy, saved):
    dx = unbroadcast(dy, saved.shape)  # (J,)
    return (dx,)


def unbroadcast(gradient, shape):
    """Sum a gradient over the axes along which an array of `shape` was stretched."""
    if gradient.shape == shape:
        return gradient
    return total_of(gradient, stretched_axes(shape, gradient.shape)).reshape(shape)  # shape


def stretched_axes(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of `wanted` along which an array of `shape` is repeated: the new ones in front, and those of size 1."""
    new = len(wanted) - len(shape)
    return (*range(new), *(new + i for i, size in enumerate(shape) if size == 1 and wanted[new + i] != 1))


BROADCAST = Op("broadcast", broadcast_forward, broadcast_backward, aliases=True)


def stretched(function: str, *operands: Any) -> tuple:
    """The operands of an elementwise function; those that need a gradient are stretched to the shape of its result.

    Raises: ShapeError for shapes that do not broadcast.
    """
    if len(operands) == 2:  # the usual cases first
        x, y = operands
        if isinstance(x, Tensor) and (type(y) is float or (isinstance(y, Tensor) and x.data.shape == y.data.shape)):
            return operands
    shapes = [x.shape for x in operands if hasattr(x, "shape")]
    if all(shape == shapes[0] for shape in shapes):
        return operands
    try:
        wanted = np.broadcast_shapes(*shapes)
    except ValueError:
        raise ShapeError(f"{function}: the shapes {' and '.join(map(str, shapes))} do not broadcast") from None
    return tuple(
        BROADCAST(x, shape=wanted) if isinstance(x, Tensor) and x.requires_grad and x.shape != wanted else x
        for x in operands
    )


def broadcast_to(x: Tensor, *shape: Any) -> Tensor:
    """x stretched to `shape` by NumPy's rules; takes no memory."""
    wanted = whole_sizes("broadcast_to", shape)
    try:
        fits = np.broadcast_shapes(x.shape, wanted) == wanted
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"broadcast_to: shape {x.shape} cannot be stretched to {wanted}")
    return BROADCAST(x, shape=wanted)


def expand(x: Tensor, *sizes: Any) -> Tensor:
    """x stretched along axes of size 1, and along new ones in front; -1 keeps a size. Takes no memory."""
    wanted = whole_sizes("expand", sizes)
    new = len(wanted) - x.ndim
    own = (None,) * new + x.shape
    if new < 0 or any(size == -1 and here is None for size, here in zip(wanted, own, strict=True)):
        raise ShapeError(f"expand: shape {x.shape} cannot be stretched to {wanted}")
    return broadcast_to(x, tuple(here if size == -1 else size for size, here in zip(wanted, own, strict=True)))


def expand_as(x: Tensor, other: Tensor) -> Tensor:
    """x stretched to the shape of another tensor."""
    return expand(x, other.shape)


def tile(x: Tensor, *dims: Any) -> Tensor:
    """x repeated along each axis by the given number; with fewer numbers than axes, they belong to the last axes."""
    times = whole_sizes("tile", dims, "a number of repeats")
    if min(times, default=0) < 0:
        raise ShapeError(f"tile: the numbers of repeats are {times}; give 0 or more")
    times = (1,) * (x.ndim - len(times)) + times
    shape = (1,) * (len(times) - x.ndim) + x.shape
    if all(r == 1 for r in times):
        return reshape(clone(x), shape)  # a copy, as with more repeats
    # An axis of size n and r repeats is an axis (r, n), of which r is stretched from 1.
    apart = reshape(x, [size for n in shape for size in (1, n)])
    apart = broadcast_to(apart, [size for r, n in zip(times, shape, strict=True) for size in (r, n)])
    return reshape(apart, [r * n for r, n in zip(times, shape, strict=True)])


def repeat(x: Tensor, *sizes: Any) -> Tensor:
    """x repeated along each axis by the given number, new axes first; `tile` with a number for every axis."""
    times = whole_sizes("repeat", sizes, "a number of repeats")
    if len(times) < x.ndim:
        raise ShapeError(f"repeat: {times} has fewer numbers than shape {x.shape} has axes; give one for each axis")
    return tile(x, times)
