"""Operations that move elements and compute nothing: reshape, transpose, index, join, cut, repeat, to.

The output is a rearrangement of the input, so the gradient is rearranged back; where one input element appears
several times in the output (index_select, broadcast), its gradients are summed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor, snapshot, tensor
from minillm.backend import Array, as_array
from minillm.device import device_of, like, to_device
from minillm.dtypes import device_and_dtype
from minillm.errors import DtypeError, ShapeError, check_index, check_whole
from minillm.ops.arithmetic import in_one_dtype, unbroadcast
from minillm.ops.reduce import choose_axis, one_axis
from minillm.sums import add_at, add_rows


class Shape(NamedTuple):
    """The shape that went in."""

    shape: tuple[int, ...]


class Axes(NamedTuple):
    """A permutation of the axes."""

    axes: tuple[int, ...]


class Indexed(NamedTuple):
    """The shape that went in, and what was picked from it."""

    shape: tuple[int, ...]
    key: Any


class Pieces(NamedTuple):
    """Where the pieces of an axis begin and end, and their shapes."""

    axis: int
    bounds: list[int]
    shapes: list[tuple[int, ...]]


# --- reshape, transpose --------------------------------------------------------------------------------------------


def reshape_forward(x, *, shape):
    return x.reshape(shape), Shape(x.shape)


def reshape_backward(dout, saved):
    return (dout.reshape(saved.shape),)


RESHAPE = Op("reshape", reshape_forward, reshape_backward, aliases=True)


def whole_sizes(function: str, sizes: tuple, name: str = "a size") -> tuple[int, ...]:
    """Sizes given one by one, or as one tuple or list, as Python ints; DtypeError for what are no whole numbers."""
    given = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    return tuple(check_whole(function, name, size) for size in given)


def reshape(x: Tensor, *shape: Any) -> Tensor:
    """The same elements in another shape: `x.reshape(2, -1)` or `x.reshape((2, -1))`."""
    wanted = whole_sizes("reshape", shape)
    known = int(np.prod([size for size in wanted if size != -1]))
    if (
        min(wanted, default=0) < -1
        or wanted.count(-1) > 1
        or (known != x.numel() if -1 not in wanted else known == 0 or x.numel() % known)
    ):
        raise ShapeError(f"reshape: {x.numel()} elements of shape {x.shape} do not fit the shape {wanted}")
    return RESHAPE(x, shape=wanted)


def transpose_forward(x, *, axes):
    return x.transpose(axes), Axes(axes)


def transpose_backward(dout, saved):
    return (dout.transpose(np.argsort(saved.axes)),)


TRANSPOSE = Op("transpose", transpose_forward, transpose_backward, aliases=True)


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Swap two axes."""
    for axis in (dim0, dim1):
        choose_axis("transpose", axis, None, x.ndim)
    axes = list(range(x.ndim))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return TRANSPOSE(x, axes=tuple(axes))


def permute(x: Tensor, *axes: Any) -> Tensor:
    """Put the axes into the given order: `x.permute(0, 2, 1)`."""
    order = whole_sizes("permute", axes, "an axis")
    order = tuple(axis + x.ndim if axis < 0 else axis for axis in order)
    if sorted(order) != list(range(x.ndim)):
        raise ShapeError(f"permute: {axes} is no permutation of the {x.ndim} axes of shape {x.shape}")
    return TRANSPOSE(x, axes=order)


# --- index ---------------------------------------------------------------------------------------------------------


def getitem_forward(x, *, key):
    return x[key], Indexed(x.shape, key)


def getitem_backward(dout, saved):
    dx = np.zeros_like(dout, shape=saved.shape, order="C")
    parts = saved.key if isinstance(saved.key, tuple) else (saved.key,)
    if any(hasattr(part, "dtype") and part.dtype != bool for part in parts):
        add_at(dx, saved.key, dout)  # an index array may name an element twice
    else:
        dx[saved.key] = dout
    return (dx,)


GETITEM = Op("getitem", getitem_forward, getitem_backward)


def getitem(x: Tensor, key: Any) -> Tensor:
    """x[key] with NumPy's indexing: integers, slices, None, ..., and index or boolean arrays."""
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


def index_select_forward(x, *, index, axis):
    return np.take(x, index, axis=axis), Indexed(x.shape, (index, axis))


def index_select_backward(dout, saved):
    index, axis = saved.key
    # With the axis in front, the rows of dout that came from row i of x are summed into row i of dx.
    rows = np.moveaxis(dout, range(axis, axis + index.ndim), range(index.ndim))
    size, others = saved.shape[axis], saved.shape[:axis] + saved.shape[axis + 1 :]
    dx: Array = np.zeros_like(dout, shape=(size, math.prod(others)), order="C")
    add_rows(dx, index.reshape(-1), rows.reshape(index.size, dx.shape[1]))
    return (np.moveaxis(dx.reshape(size, *others), 0, axis),)


INDEX_SELECT = Op("index_select", index_select_forward, index_select_backward)


def index_select(x: Tensor, dim: int, index: Any) -> Tensor:
    """The slices of x at `index` along one axis, repeats allowed.

    Shapes: x (..., N, ...), index (...) of integers in [0, N); the axis of size N is replaced by the index's axes, of
    which there may be any number, where PyTorch takes one.
    """
    axis = _one_axis("index_select", dim, None, x.ndim)
    ids = index_array("index_select", index)
    check_index("index_select", ids, x.shape[axis], "index")
    return INDEX_SELECT(x, index=like(ids, x.data), axis=axis)


def index_array(function: str, index: Any) -> Array:
    """A copy of an index, which may change before the backward: a Tensor, an array, a number or a list.

    An empty list is of integers.

    Raises: DtypeError for what are no integers.
    """
    ids = index.data if isinstance(index, Tensor) else as_array(index)
    if ids.size == 0 and isinstance(index, (list, tuple)):
        ids = ids.astype(np.intp)
    if ids.dtype.kind not in "iu":
        raise DtypeError(f"{function}: index must be integers, but the array has dtype {ids.dtype}")
    return snapshot(ids)


# --- join, cut -----------------------------------------------------------------------------------------------------


def concat_forward(*arrays, axis):
    bounds = np.cumsum([0, *(x.shape[axis] for x in arrays)]).tolist()
    return np.concatenate(arrays, axis), Pieces(axis, bounds, [x.shape for x in arrays])


def concat_backward(dout, saved):
    return tuple(_pieces(dout, saved.axis, saved.bounds))


CONCAT = Op("concat", concat_forward, concat_backward, aliases=True)


def tensors_of(function: str, tensors: Any) -> list[Tensor]:
    """What is to be joined as a list of Tensors of one dtype: from any iterable of Tensors, arrays and numbers.

    Raises: DtypeError for a single Tensor or array, or what is no iterable; ShapeError for none.
    """
    if isinstance(tensors, Tensor) or hasattr(tensors, "dtype") or not hasattr(tensors, "__iter__"):
        raise DtypeError(f"{function}: tensors is a {type(tensors).__name__}; give a list of tensors")
    given = list(tensors)
    device = next((x.device for x in given if isinstance(x, Tensor)), "cpu")  # where arrays and numbers go
    given = [x if isinstance(x, Tensor) else tensor(x, device=device) for x in given]
    if not given:
        raise ShapeError(f"{function}: no tensors were given; give at least one")
    return list(in_one_dtype(*given))


def concat(tensors: Iterable[Any], axis: int | None = None, *, dim: int | None = None) -> Tensor:
    """Join tensors along an existing axis (default 0); all other sizes must agree.

    The result has the dtype that holds all of them. As in PyTorch, tensors of shape (0,) join anything.
    """
    given = tensors_of("concat", tensors)
    given = [x for x in given if x.shape != (0,)] or given[:1]
    first = given[0]
    chosen = _one_axis("concat", axis, dim, first.ndim)
    for position, x in enumerate(given):
        if x.ndim != first.ndim or any(
            a != b for i, (a, b) in enumerate(zip(x.shape, first.shape, strict=True)) if i != chosen
        ):
            raise ShapeError(
                f"concat: tensor {position} has shape {x.shape}, which does not fit {first.shape} along axis {chosen}"
            )
    return CONCAT(*given, axis=chosen)


def stack_forward(*arrays, axis):
    return np.stack(arrays, axis), Axes((axis,))


def stack_backward(dout, saved):
    return tuple(np.moveaxis(dout, saved.axes[0], 0))


STACK = Op("stack", stack_forward, stack_backward, aliases=True)


def stack(tensors: Iterable[Any], axis: int | None = None, *, dim: int | None = None) -> Tensor:
    """Join tensors of one shape along a new axis (default 0)."""
    given = tensors_of("stack", tensors)
    if any(x.shape != given[0].shape for x in given):
        raise ShapeError(f"stack: the tensors have shapes {[x.shape for x in given]}; give all of one shape")
    return STACK(*given, axis=_one_axis("stack", axis, dim, given[0].ndim + 1))


def split_forward(x, *, bounds, axis):
    pieces = _pieces(x, axis, bounds)
    return tuple(pieces), Pieces(axis, bounds, [piece.shape for piece in pieces])


def split_backward(douts, saved):
    arrived = next(dout for dout in douts if dout is not None)
    filled = [
        np.zeros_like(arrived, shape=shape) if dout is None else dout
        for dout, shape in zip(douts, saved.shapes, strict=True)
    ]
    return (np.concatenate(filled, saved.axis),)


SPLIT = Op("split", split_forward, split_backward)


def split(x: Tensor, split_size_or_sections: Any, axis: int | None = None, *, dim: int | None = None) -> tuple:
    """Cut an axis (default 0) into pieces: of one size (the last may be smaller), or of the listed sizes."""
    chosen = _one_axis("split", axis, dim, x.ndim)
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


def _one_axis(function: str, axis: int | None, dim: int | None, ndim: int) -> int:
    """The axis that was chosen, counted from the front; the first where none was."""
    return one_axis(function, 0 if axis is None and dim is None else axis, ndim, dim)


def _pieces(x: Array, axis: int, bounds: list[int]) -> list[Array]:
    before = (slice(None),) * axis
    return [x[(*before, slice(start, stop))] for start, stop in pairwise(bounds)]


# --- repeat --------------------------------------------------------------------------------------------------------


def broadcast_forward(x, *, shape):
    return np.broadcast_to(x, shape), Shape(x.shape)


def broadcast_backward(dout, saved):
    return (unbroadcast(dout, saved.shape),)


BROADCAST = Op("broadcast", broadcast_forward, broadcast_backward, aliases=True)


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


# --- another device or dtype ---------------------------------------------------------------------------------------


class Origin(NamedTuple):
    """Where the input was, and its dtype."""

    device: str
    dtype: np.dtype


def to_forward(x, *, device, dtype):
    return to_device(x.astype(dtype, copy=False), device), Origin(device_of(x), x.dtype)


def to_backward(dout, saved):
    return (to_device(dout, saved.device).astype(saved.dtype, copy=False),)


TO = Op("to", to_forward, to_backward, aliases=True)


def to(x: Tensor, *targets: Any, device: Any = None, dtype: Any = None) -> Tensor:
    """x on another device, of another dtype, or both: `x.to("cuda")`, `x.to("cuda", "bfloat16")`, `x.to(np.float64)`.

    They may come by name, or as another tensor, which has both. The gradient takes the way back.
    x itself where nothing changes.
    Raises: DeviceError for a device that is not there, DtypeError for what is neither a device nor a dtype.
    """
    named = tuple(one for one in (device, dtype) if one is not None)
    given = [(one.device, one.dtype) if isinstance(one, Tensor) else (one,) for one in (*targets, *named)]
    device, dtype = device_and_dtype(sum(given, ()))
    device, dtype = device or x.device, dtype or x.dtype
    if dtype == x.dtype and device in (x.device, x.device.partition(":")[0]):
        return x
    return TO(x, device=device, dtype=dtype)
