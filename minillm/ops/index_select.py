"""Slices along one axis, picked by an index. For axis 0 and an index of one axis,

    y[n] = x[index[n]]          dx[i] = sum of dy[n] over all n with index[n] = i

with x (I, ...), index (N,) and y (N, ...); for other axes, and an index of several axes, likewise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor, snapshot
from minillm.backend import Array, as_array
from minillm.device import like
from minillm.errors import DtypeError, InputError, ShapeError, check_index
from minillm.ops.axes import first_axis, one_axis
from minillm.ops.getitem import getitem
from minillm.ops.reshape import flatten, reshape
from minillm.sums import add_at

__all__ = ["index_select", "repeat_interleave", "take"]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    shape: tuple[int, ...]  # of x
    index: Array  # whole numbers
    axis: int


def index_select_forward(x, *, index, axis):
    y = np.take(x, index, axis=axis)  # (N, ...)
    return y, Saved(x.shape, index, axis)


def index_select_backward(dy, saved):
    shape, index, axis = saved
    dx = np.zeros_like(dy, shape=shape, order="C")  # (I, ...)
    add_at(dx, (*(slice(None),) * axis, index), dy)  # a slice that the index names twice gets the sum
    return (dx,)


INDEX_SELECT = Op("index_select", index_select_forward, index_select_backward)


def index_select(x: Tensor, dim: int, index: Any) -> Tensor:
    """The slices of x at `index` along one axis, repeats allowed.

    Shapes: x (..., N, ...), index (...) of integers in [0, N); the axis of size N is replaced by the index's axes, of
    which there may be any number, where PyTorch takes one.
    Saves: the index.
    """
    axis = first_axis("index_select", dim, x.ndim)
    ids = index_array("index_select", index)
    check_index("index_select", ids, x.shape[axis], "index")
    return INDEX_SELECT(x, index=like(ids, x.data), axis=axis)


def index_array(function: str, index: Any) -> Array:
    """A copy of an index, which may change before the backward: a Tensor, an array, a number or a list.

    An empty list holds integers.
    Raises: DtypeError for what holds no integers.
    """
    ids = index.data if isinstance(index, Tensor) else as_array(index)
    if ids.size == 0 and isinstance(index, (list, tuple)):
        ids = ids.astype(np.intp)
    if ids.dtype.kind not in "iu":
        raise DtypeError(f"{function}: index must be integers, but the array has dtype {ids.dtype}")
    return snapshot(ids)


def from_front(ids: Array, size: int) -> Array:
    """Indices with the negative ones, which count from the end, counted from the front."""
    return np.where(ids < 0, ids + size, ids)


def take(x: Tensor, index: Any, axis: Any = None, *, dim: Any = None) -> Tensor:
    """The elements of x at `index`, counted through x as if it were one long row, as torch.take does.

    Shapes: x any, index any; result as index. Negative indices count from the end.
    Raises: InputError where an axis is given, as NumPy's take would: that is `x.index_select(axis, index)`.
    """
    if axis is not None or dim is not None:
        chosen = axis if dim is None else dim
        raise InputError(
            f"take: it counts through all of x, as torch.take does; along axis {chosen} write "
            f"x.index_select({chosen}, index)"
        )
    ids = index_array("take", index)
    size = x.numel()
    if isinstance(ids, np.ndarray):
        check_index("take", from_front(ids, size), size, "index")
    return getitem(reshape(x, -1) if size else reshape(x, 0), Tensor(ids))


def repeat_interleave(x: Tensor, repeats: Any, dim: int | None = None) -> Tensor:
    """Each slice along `dim` repeated, one after the other: [a, b] becomes [a, a, b, b] with repeats = 2.

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
