"""The axes and sizes that public functions are given, checked and in one form."""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.errors import ShapeError, check_whole

Axis = int | tuple[int, ...] | None


def choose_axis(function: str, axis: Any, dim: Any, ndim: int) -> Any:
    """`axis` or PyTorch's `dim`, whichever was given, checked against the number of dimensions."""
    if dim is None and type(axis) is int and -ndim <= axis < ndim:  # nearly always, and in a tenth of the time
        return axis
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


def first_axis(function: str, axis: Any, ndim: int, dim: Any = None) -> int:
    """A single axis, counted from the front; the first where none was given."""
    return one_axis(function, 0 if axis is None and dim is None else axis, ndim, dim)


def last_axis(function: str, axis: Any, ndim: int, dim: Any = None) -> int:
    """A single axis, counted from the front; the last where none was given. A number counts as having one axis."""
    return one_axis(function, -1 if axis is None and dim is None else axis, ndim or 1, dim)


def reduced_axis(function: str, axis: Any, dim: Any, ndim: int) -> Any:
    """`choose_axis` for a reduction, where a number without axes may be asked for its first or last, as in PyTorch."""
    chosen = choose_axis(function, axis, dim, ndim or 1)
    return chosen if ndim else None


def several_axes(function: str, dims: tuple, ndim: int) -> tuple[int, ...]:
    """Axes given one by one or as one tuple, counted from the front; a number without axes counts as having one."""
    chosen = choose_axis(function, whole_sizes(function, dims, "axis"), None, max(1, ndim))
    return tuple(axis % max(1, ndim) for axis in chosen)


def refuse_nothing(function: str, shape: tuple[int, ...], axis: Axis, what: str) -> None:
    """Raise ShapeError where no element is left to make a result of."""
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    if any(shape[one] == 0 for one in axes):
        raise ShapeError(f"{function}: the tensor has shape {shape}, and no elements have no {what}")


def whole_sizes(function: str, sizes: tuple, name: str = "a size") -> tuple[int, ...]:
    """Sizes given one by one, or as one tuple or list, as Python ints; DtypeError for what are no whole numbers."""
    given = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    return tuple([size if type(size) is int else check_whole(function, name, size) for size in given])


def total_of(x, axis, keepdims=False):
    """The sum, rounded to the dtype of x; 16-bit elements are added up in float32. Booleans are counted."""
    if x.dtype.kind in "iub" or x.dtype.itemsize > 2:
        return x.sum(axis=axis, keepdims=keepdims)  # (..., ...)
    return x.sum(axis=axis, keepdims=keepdims, dtype=np.float32).astype(x.dtype)  # (..., ...)
