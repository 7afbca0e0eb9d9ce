"""Elements picked by NumPy's indexing: integers, slices, None, `...`, index arrays, booleans.

    y = x[key]          dx = 0, and then dx[key] += dy          x (I, ...), y (N, ...), as NumPy picks

An index array may name an element several times; its gradients add up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.device import like
from minillm.errors import DtypeError, InputError, ShapeError, check_whole
from minillm.ops.axes import one_axis
from minillm.sums import add_at

__all__ = ["getitem", "narrow", "select"]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    shape: tuple[int, ...]  # of x
    key: Any


def getitem_forward(x, *, key):
    y = x[key]  # (N, ...)
    return y, Saved(x.shape, key)


def getitem_backward(dy, saved):
    shape, key = saved
    dx = np.zeros_like(dy, shape=shape, order="C")  # (I, ...)
    if names_repeat(key):
        add_at(dx, key, dy)
    else:
        dx[key] = dy
    return (dx,)


def names_repeat(key) -> bool:
    """True if a key may name an element twice: only index arrays do."""
    parts = key if isinstance(key, tuple) else (key,)
    return any(hasattr(part, "dtype") and part.dtype != bool for part in parts)


GETITEM = Op("getitem", getitem_forward, getitem_backward)


def getitem(x: Tensor, key: Any) -> Tensor:
    """x[key] with NumPy's indexing: integers, slices, None, ..., and index or boolean arrays. Saves: the key."""
    return GETITEM(x, key=index_key(key, x.data))


def index_key(key: Any, array: Array) -> Any:
    """An index with its arrays where the array is: copies, so that they may change before the backward."""
    parts = [
        np.asarray(part, None if part else np.intp) if isinstance(part, (list, tuple, range)) else part
        for part in (key if isinstance(key, tuple) else (key,))
    ]
    parts = [part.data if isinstance(part, Tensor) else part for part in parts]
    for part in parts:
        if hasattr(part, "dtype") and part.dtype.kind not in "iub":
            raise DtypeError(f"getitem: an index has dtype {part.dtype}; give whole numbers or booleans")
    parts = [like(part.copy(), array) if hasattr(part, "dtype") else part for part in parts]
    return tuple(parts) if isinstance(key, tuple) else parts[0]


def select(x: Tensor, dim: int, index: int) -> Tensor:
    """The slice of x at one index along `dim`, an axis that the result has not: x[:, index] for dim 1."""
    axis = one_axis("select", dim, x.ndim)
    place = check_whole("select", "index", index)
    if not -x.shape[axis] <= place < x.shape[axis]:
        raise InputError(f"select: index {place} is out of range; axis {axis} has size {x.shape[axis]}")
    return getitem(x, (*(slice(None),) * axis, place))


def narrow(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """The part of x of `length` from `start` on along `dim`: x[:, start : start + length] for dim 1."""
    axis = one_axis("narrow", dim, x.ndim)
    size, first, count = (x.shape[axis], check_whole("narrow", "start", start), check_whole("narrow", "length", length))
    first += size if first < 0 else 0
    if not 0 <= first <= first + count <= size:
        raise ShapeError(f"narrow: {count} from {start} on are no part of axis {axis} with size {size}")
    return getitem(x, (*(slice(None),) * axis, slice(first, first + count)))
