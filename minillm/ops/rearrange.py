"""Everyday shapes by PyTorch's names. Most are an operation of shape.py with its arguments worked out.

Those of their own move elements or leave some out, and their gradients go back the same way:

    roll:        elements move along axes, and those that fall off come in at the other end; dx rolls back
    pad:         values are put around x, or a rim is cut off; dx is the part of dout that came from x, 0 for the rim
    tril, triu:  the part of a matrix below (above) a diagonal, 0 elsewhere; dx is that part of dout
    clone:       a copy; dx = dout
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor, is_grad_enabled
from minillm.errors import DtypeError, InputError, ShapeError, check_whole
from minillm.ops.arithmetic import where
from minillm.ops.reduce import Axis, choose_axis, one_axis
from minillm.ops.shape import (
    broadcast_to,
    concat,
    getitem,
    index_select,
    permute,
    reshape,
    split,
    tensors_of,
    transpose,
    whole_sizes,
)

__all__ = [
    "chunk", "clone", "contiguous", "diag", "diagonal", "expand", "expand_as", "flatten", "flip", "hstack",
    "moveaxis", "movedim", "pad", "ravel", "repeat", "repeat_interleave", "reshape_as", "roll", "squeeze", "t",
    "tile", "trace", "tril", "triu", "unbind", "unflatten", "unsqueeze", "view", "view_as", "vstack",
]  # fmt: skip


class Moved(NamedTuple):
    """How far elements were rolled, along which axes."""

    shifts: tuple[int, ...]
    axes: tuple[int, ...]


class Framed(NamedTuple):
    """The shape that went in, the part of it that was kept, and where that part is in the output."""

    shape: tuple[int, ...]
    kept: tuple[slice, ...]
    inside: tuple[slice, ...]


class Diagonal(NamedTuple):
    """The diagonal that bounds what was kept: 0 is the main one, 1 the one above it."""

    k: int


def _axis(function: str, dim: Any, ndim: int) -> int:
    """An axis from the front; a number without axes lets itself be asked for its first or last, as in PyTorch."""
    return one_axis(function, dim, ndim or 1)


def _axes(function: str, dims: tuple, ndim: int) -> tuple[int, ...]:
    chosen = choose_axis(function, whole_sizes(function, dims, "axis"), None, max(1, ndim))
    return tuple(axis % max(1, ndim) for axis in chosen)


# --- other shapes of the same elements -----------------------------------------------------------------------------


def view(x: Tensor, *shape: Any) -> Tensor:
    """The same elements in another shape, as `reshape`: a view where the memory allows it, else a copy."""
    if len(shape) == 1 and not isinstance(shape[0], (int, tuple, list, np.integer, Tensor)):
        raise DtypeError(f"view: {shape[0]!r} is no shape; to convert elements write x.to({shape[0]!r})")
    return reshape(x, *shape)


def view_as(x: Tensor, other: Tensor) -> Tensor:
    """x in the shape of another tensor with as many elements."""
    return reshape(x, other.shape)


reshape_as = view_as


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The axes from `start_dim` to `end_dim` made into one; all by default."""
    first, last = _axis("flatten", start_dim, x.ndim), _axis("flatten", end_dim, x.ndim)
    if first > last:
        raise ShapeError(f"flatten: start_dim={start_dim} comes after end_dim={end_dim} in shape {x.shape}")
    return reshape(x, *x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])


def ravel(x: Tensor) -> Tensor:
    """All elements in one row."""
    return flatten(x)


def unflatten(x: Tensor, dim: int, sizes: Any) -> Tensor:
    """One axis cut into several of the given sizes, one of which may be -1."""
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
    axes = range(x.ndim) if dim is None else _axes("squeeze", (dim,), x.ndim)
    return reshape(x, tuple(size for axis, size in enumerate(x.shape) if axis not in axes or size != 1))


def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """x with a new axis of size 1 at `dim`."""
    axis = one_axis("unsqueeze", dim, x.ndim + 1)
    return reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))


def movedim(x: Tensor, source: Axis, destination: Axis) -> Tensor:
    """Axes `source` (an int or a tuple) moved to the places `destination`; the others keep their order."""
    start, end = _axes("movedim", (source,), x.ndim), _axes("movedim", (destination,), x.ndim)
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


def clone_forward(x):
    return x.copy(order="C"), None


def clone_backward(dout, saved):
    return (dout,)


CLONE = Op("clone", clone_forward, clone_backward, aliases=True)


def clone(x: Tensor) -> Tensor:
    """A copy, through which the gradient passes."""
    return CLONE(x)


def contiguous(x: Tensor) -> Tensor:
    """x itself if its elements lie in memory in order, else a copy in which they do."""
    return x if x.data.flags.c_contiguous else CLONE(x)


# --- repeats -------------------------------------------------------------------------------------------------------


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
    """x beside itself so many times along each axis, of which the last are named where there are fewer numbers."""
    times = whole_sizes("tile", dims, "a number of repeats")
    if min(times, default=0) < 0:
        raise ShapeError(f"tile: the numbers of repeats are {times}; give 0 or more")
    times = (1,) * (x.ndim - len(times)) + times
    if all(r == 1 for r in times):
        return reshape(clone(x), (1,) * (len(times) - x.ndim) + x.shape)  # as with more of them, a copy
    shape = (1,) * (len(times) - x.ndim) + x.shape
    # An axis of size n and r repeats is an axis (r, n), of which r is stretched from 1.
    apart = reshape(x, [size for n in shape for size in (1, n)])
    apart = broadcast_to(apart, [size for r, n in zip(times, shape, strict=True) for size in (r, n)])
    return reshape(apart, [r * n for r, n in zip(times, shape, strict=True)])


def repeat(x: Tensor, *sizes: Any) -> Tensor:
    """x beside itself so many times along each axis, new axes first; `tile` with a number for every axis."""
    times = whole_sizes("repeat", sizes, "a number of repeats")
    if len(times) < x.ndim:
        raise ShapeError(f"repeat: {times} has fewer numbers than shape {x.shape} has axes; give one for each axis")
    return tile(x, times)


def repeat_interleave(x: Tensor, repeats: Any, dim: int | None = None) -> Tensor:
    """Each slice along `dim` repeated so many times, one after the other: [a, b] becomes [a, a, b, b].

    repeats: a number, or one for each slice. Without dim, x is flattened first.
    """
    if dim is None:
        return repeat_interleave(flatten(x), repeats, 0)
    axis = one_axis("repeat_interleave", dim, x.ndim)
    counts = np.asarray(repeats.numpy() if isinstance(repeats, Tensor) else repeats)
    if counts.dtype.kind not in "iu" or counts.min(initial=0) < 0:
        raise DtypeError(f"repeat_interleave: repeats are {repeats!r}; give whole numbers, 0 or more")
    if counts.size != 1 and counts.shape != (x.shape[axis],):
        raise ShapeError(f"repeat_interleave: repeats have shape {counts.shape}, but axis {axis} has {x.shape[axis]}")
    return index_select(x, axis, np.repeat(np.arange(x.shape[axis]), counts.reshape(-1)))


# --- order along axes ----------------------------------------------------------------------------------------------


def flip(x: Tensor, *axes: Any, dims: Any = None) -> Tensor:
    """A copy of x with the order of elements reversed along the given axes: `flip(0, 1)` or `flip(dims=(0, 1))`."""
    if not axes and dims is None:
        raise ShapeError(f"flip: no axis is given for the shape {x.shape}; give at least one, such as flip(0)")
    chosen = _axes("flip", axes if dims is None else (dims,), x.ndim)
    return clone(getitem(x, tuple(slice(None, None, -1 if axis in chosen else None) for axis in range(x.ndim))))


def roll_forward(x, *, shifts, axes):
    return np.roll(x, shifts, axes), Moved(shifts, axes)


def roll_backward(dout, saved):
    return (np.roll(dout, tuple(-shift for shift in saved.shifts), saved.axes),)


ROLL = Op("roll", roll_forward, roll_backward)


def roll(x: Tensor, shifts: Any, dims: Axis = None) -> Tensor:
    """x with elements moved along axes, those that fall off coming in at the other end; without dims, flattened."""
    if dims is None:
        return reshape(roll(flatten(x), shifts, 0), x.shape)
    steps = whole_sizes("roll", (shifts,), "a shift")
    axes = tuple(one_axis("roll", axis, x.ndim) for axis in whole_sizes("roll", (dims,), "axis"))
    if len(steps) != len(axes):
        raise ShapeError(f"roll: there are {len(steps)} shifts, but {len(axes)} axes; give one shift for each axis")
    return ROLL(x, shifts=steps, axes=axes)


# --- around and within ---------------------------------------------------------------------------------------------


def pad_forward(x, *, shape, kept, inside, value):
    out = np.full_like(x, value, shape=shape, order="C")
    out[inside] = x[kept]
    return out, Framed(x.shape, kept, inside)


def pad_backward(dout, saved):
    dx = np.zeros_like(dout, shape=saved.shape, order="C")
    dx[saved.kept] = dout[saved.inside]
    return (dx,)


PAD = Op("pad", pad_forward, pad_backward)


def pad(x: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """x with `value` (0 by default) put around it: `pad` is (before, after) of the last axis, then of the one before.

    As in torch.nn.functional.pad: `pad(x, (1, 2))` puts one column on the left and two on the right, `(1, 2, 3, 4)`
    also three rows above and four below. A negative number cuts off.
    Raises: ShapeError for an odd number of them, too many, or more cut off than there is; InputError for other modes.
    """
    if mode != "constant":
        raise InputError(f"pad: mode is {mode!r}; only 'constant' is there")
    widths = whole_sizes("pad", (pad,), "a width")
    if len(widths) % 2 or len(widths) > 2 * x.ndim:
        raise ShapeError(f"pad: {widths} are no pairs (before, after) for up to {x.ndim} axes, the last axis first")
    pairs = [(0, 0)] * (x.ndim - len(widths) // 2) + list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    shape = tuple(n + before + after for n, (before, after) in zip(x.shape, pairs, strict=True))
    if any(n + min(before, 0) + min(after, 0) < 0 for n, (before, after) in zip(x.shape, pairs, strict=True)):
        raise ShapeError(f"pad: {widths} cuts off more than there is of shape {x.shape}")
    kept = tuple(slice(max(0, -before), n - max(0, -after)) for n, (before, after) in zip(x.shape, pairs, strict=True))
    inside = tuple(slice(max(0, a), n - max(0, b)) for n, (a, b) in zip(shape, pairs, strict=True))
    return PAD(x, shape=shape, kept=kept, inside=inside, value=value or 0)


def tril_forward(x, *, k):
    return np.tril(x, k), Diagonal(k)


def tril_backward(dout, saved):
    return (np.tril(dout, saved.k),)


TRIL = Op("tril", tril_forward, tril_backward)


def triu_forward(x, *, k):
    return np.triu(x, k), Diagonal(k)


def triu_backward(dout, saved):
    return (np.triu(dout, saved.k),)


TRIU = Op("triu", triu_forward, triu_backward)


def tril(x: Tensor, diagonal: int = 0) -> Tensor:
    """The lower triangle of the last two axes, up to the given diagonal (0 is the main one), and 0 above."""
    return _triangle(TRIL, x, diagonal)


def triu(x: Tensor, diagonal: int = 0) -> Tensor:
    """The upper triangle of the last two axes, from the given diagonal (0 is the main one) on, and 0 below."""
    return _triangle(TRIU, x, diagonal)


def _triangle(op: Op, x: Tensor, diagonal: int) -> Tensor:
    if x.ndim < 2:
        raise ShapeError(f"{op.name}: the tensor has shape {x.shape}; a triangle needs two axes")
    return op(x, k=check_whole(op.name, "diagonal", diagonal))


def diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The elements x[i, i + offset] of two axes, which become one, the last; a view where nothing is recorded."""
    first, second = (one_axis("diagonal", dim, x.ndim) for dim in (dim1, dim2))
    if first == second:
        raise ShapeError(f"diagonal: dim1={dim1} and dim2={dim2} are the same axis of shape {x.shape}")
    k = check_whole("diagonal", "offset", offset)
    if not (x.requires_grad and is_grad_enabled()):
        view = x.detach()
        view.data = x.data.diagonal(k, first, second)
        if isinstance(view.data, np.ndarray):  # which NumPy makes read-only
            view.data.flags.writeable = x.data.flags.writeable
        return view
    rows = np.arange(max(0, min(x.shape[first] - max(0, -k), x.shape[second] - max(0, k)))) + max(0, -k)
    return getitem(movedim(x, (first, second), (-2, -1)), (..., rows, rows + k))


def _diagonal_of(x: Tensor, offset: int) -> Tensor:
    return diagonal(x, offset)


def diag(x: Tensor, diagonal: int = 0) -> Tensor:
    """Of a vector the matrix with it on a diagonal, and 0 elsewhere; of a matrix that diagonal."""
    if x.ndim == 2:
        return _diagonal_of(x, diagonal)
    if x.ndim != 1:
        raise ShapeError(f"diag: the tensor has shape {x.shape}; give a vector or a matrix")
    k = check_whole("diag", "diagonal", diagonal)
    stretched = unsqueeze(pad(x, (0, abs(k))), -1 if k >= 0 else 0)
    return where(np.eye(x.numel() + abs(k), k=k, dtype=bool), stretched, 0)


def trace(x: Tensor) -> Tensor:
    """The sum of a matrix's diagonal."""
    if x.ndim != 2:
        raise ShapeError(f"trace: the tensor has shape {x.shape}; give a matrix")
    return diagonal(x).sum()


# --- pieces --------------------------------------------------------------------------------------------------------


def chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple:
    """An axis cut into so many equal pieces; where it does not divide, the last is smaller, or some are missing."""
    count = check_whole("chunk", "chunks", chunks)
    if count < 1:
        raise ShapeError(f"chunk: chunks is {count}; give 1 or more")
    axis = one_axis("chunk", dim, x.ndim)
    size = x.shape[axis]
    return split(x, -(-size // count), axis) if size else split(x, [0] * count, axis)


def unbind(x: Tensor, dim: int = 0) -> tuple:
    """All slices along an axis, without that axis."""
    axis = one_axis("unbind", dim, x.ndim)
    return tuple(squeeze(piece, axis) for piece in split(x, 1, axis)) if x.shape[axis] else ()


def hstack(tensors: Any) -> Tensor:
    """Tensors beside each other: along axis 1, or axis 0 of vectors and numbers."""
    given = [x if x.ndim else reshape(x, 1) for x in tensors_of("hstack", tensors)]
    return concat(given, 0 if given[0].ndim == 1 else 1)


def vstack(tensors: Any) -> Tensor:
    """Tensors below each other: along axis 0, a vector being one row."""
    given = [x if x.ndim > 1 else reshape(x, 1, -1) for x in tensors_of("vstack", tensors)]
    return concat(given, 0)
