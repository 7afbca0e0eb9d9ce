"""An axis cut into pieces; the gradients of the pieces are joined again, with zeros where a piece has none.

y_1, y_2, ... = the pieces of x along an axis          dx = [dy_1, dy_2, ...] along it

Shapes: x (..., n, ...), y_k (..., n_k, ...), and n is the sum of all n_k.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.errors import ShapeError, check_whole
from minillm.ops.axes import first_axis, one_axis
from minillm.ops.join import cut
from minillm.ops.reshape import squeeze

__all__ = ["chunk", "split", "unbind"]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    shapes: list[tuple[int, ...]]  # of the pieces
    axis: int


def split_forward(x, *, bounds, axis):
    pieces = cut(x, bounds, axis)  # (..., n_k, ...) each
    return tuple(pieces), Saved([piece.shape for piece in pieces], axis)


def split_backward(dy, saved):
    shapes, axis = saved
    arrived = next(part for part in dy if part is not None)  # (..., n_k, ...)
    parts = [
        np.zeros_like(arrived, shape=shape) if part is None else part for part, shape in zip(dy, shapes, strict=True)
    ]  # (..., n_k, ...) each
    dx = np.concatenate(parts, axis)  # (..., n, ...)
    return (dx,)


SPLIT = Op("split", split_forward, split_backward)


def split(x: Tensor, split_size_or_sections: Any, axis: int | None = None, *, dim: int | None = None) -> tuple:
    """Cut an axis (default 0) into pieces: each of one size (the last may be smaller), or of the listed sizes."""
    chosen = first_axis("split", axis, x.ndim, dim)
    size = x.shape[chosen]
    if isinstance(split_size_or_sections, (Tensor, str)) or not hasattr(split_size_or_sections, "__iter__"):
        step = check_whole("split", "the size of a piece", split_size_or_sections)
        if step < 1:
            raise ShapeError(f"split: the size of a piece is {step}; give 1 or more")
        sizes = [min(step, size - start) for start in range(0, size, step)] or [0]
    else:
        sizes = [check_whole("split", "the size of a piece", section) for section in split_size_or_sections]
        if sum(sizes) != size or min(sizes, default=-1) < 0:
            raise ShapeError(f"split: the sections {sizes} sum to {sum(sizes)}, but axis {chosen} has size {size}")
    return SPLIT(x, bounds=np.cumsum([0, *sizes]).tolist(), axis=chosen)


def chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple:
    """An axis cut into `chunks` equal pieces; where it does not divide, the last is smaller, or some are missing."""
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
