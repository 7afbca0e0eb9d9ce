"""Picking by index arrays of x's own number of axes, writing to such places, and picking by masks.

gather picks along one axis, at every place of `index` an element of its own:

    out[i, j] = x[i, index[i, j]]          for axis 1, and so on for other axes and more of them

so the gradient of x[i, k] is the sum of dout[i, j] over all j with index[i, j] = k. scatter writes where gather reads:

    scatter:     out = x, but out[i, index[i, j]]  = src[i, j]      dx = dout, 0 where written    dsrc = gather(dout)
    scatter_add: out = x, and out[i, index[i, j]] += src[i, j]      dx = dout                     dsrc = gather(dout)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor, tensor
from minillm.backend import Array, as_array
from minillm.device import like
from minillm.errors import DtypeError, InputError, ShapeError, check_index, check_whole
from minillm.ops.arithmetic import in_one_dtype, where
from minillm.ops.reduce import Axis, choose_axis, one_axis
from minillm.ops.shape import broadcast_to, getitem, index_array, reshape
from minillm.sums import add_at

__all__ = [
    "count_nonzero", "gather", "index_add", "masked_fill", "masked_select", "narrow", "nonzero", "one_hot", "scatter",
    "scatter_add", "select", "take", "take_along_dim",
]  # fmt: skip


class Places(NamedTuple):
    """The shape that went in, and the places in it that were read or written: one index array for each axis."""

    shape: tuple[int, ...]
    key: tuple[Array, ...]


def places(index: Array, axis: int) -> tuple[Array, ...]:
    """The key of x[i, index[i, j]]: `index` on its axis, on every other the place of the element itself."""
    own = np.ogrid[tuple(slice(n) for n in index.shape)] if index.ndim else ()
    return tuple(index if i == axis else like(place, index) for i, place in enumerate(own))


def _checked_index(function: str, x: Tensor, dim: Any, index: Any) -> tuple[Array, int]:
    """A copy of the index, on x's device, and the axis; raises for an index that reaches outside of x."""
    axis = one_axis(function, dim, x.ndim or 1)
    ids = index_array(function, index)
    size = x.shape or (1,)
    if ids.ndim != x.ndim or any(n > size[i] for i, n in enumerate(ids.shape) if i != axis):
        raise ShapeError(
            f"{function}: index has shape {ids.shape}, but x has shape {x.shape}; "
            f"give as many axes as x has, and none larger than x's but axis {axis}"
        )
    check_index(function, ids, size[axis], "index")
    return like(np.array(ids, np.intp) if isinstance(ids, np.ndarray) else ids.copy(), x.data), axis


# --- gather, scatter -----------------------------------------------------------------------------------------------


def gather_forward(x, *, key):
    return x[key], Places(x.shape, key)


def gather_backward(dout, saved):
    dx = np.zeros_like(dout, shape=saved.shape, order="C")
    add_at(dx, saved.key, dout)
    return (dx,)


GATHER = Op("gather", gather_forward, gather_backward)


def gather(x: Tensor, dim: int, index: Any) -> Tensor:
    """x[i, index[i, j]] for dim 1, and so on: at every place of `index`, the element of x that it names along `dim`.

    Shapes: x and index have the same number of axes; index is no larger than x but along `dim`; result as index.
    """
    ids, axis = _checked_index("gather", x, dim, index)
    return GATHER(x, key=places(ids, axis))


def scatter_forward(x, src, *, key):
    out = x.copy()
    out[key] = src
    return out, Places(x.shape, key)


def scatter_backward(dout, saved):
    dx = as_array(dout).copy()  # NumPy's results without axes are numbers, not arrays
    dx[saved.key] = 0
    return dx, dout[saved.key]


SCATTER = Op("scatter", scatter_forward, scatter_backward)


def scatter(x: Tensor, dim: int, index: Any, src: Any) -> Tensor:
    """x with the elements that `gather(x, dim, index)` would read replaced by `src`, a tensor or a number.

    Where `index` names a place twice, one of the two is there, and it is not said which.
    """
    ids, axis = _checked_index("scatter", x, dim, index)
    return SCATTER(x, _source("scatter", x, ids, src), key=places(ids, axis))


def scatter_add_forward(x, src, *, key):
    out = x.copy()
    add_at(out, key, src)
    return out, Places(x.shape, key)


def scatter_add_backward(dout, saved):
    return dout, dout[saved.key]


SCATTER_ADD = Op("scatter_add", scatter_add_forward, scatter_add_backward, aliases=True)


def scatter_add(x: Tensor, dim: int, index: Any, src: Any) -> Tensor:
    """x with `src` added to the elements that `gather(x, dim, index)` would read; a place named twice gets both."""
    ids, axis = _checked_index("scatter_add", x, dim, index)
    return SCATTER_ADD(x, _source("scatter_add", x, ids, src), key=places(ids, axis))


def _source(function: str, x: Tensor, ids: Array, src: Any) -> Tensor:
    """What is written, of the index's shape: a number everywhere, or the first part of a larger tensor."""
    src = src if isinstance(src, Tensor) else tensor(src, dtype=x.dtype, device=x.device)
    if src.dtype != x.dtype:
        raise DtypeError(f"{function}: src has dtype {src.dtype}, but x has dtype {x.dtype}; convert one of them")
    if src.ndim == 0:
        return broadcast_to(src, ids.shape)
    if src.ndim != ids.ndim or any(n < m for n, m in zip(src.shape, ids.shape, strict=True)):
        raise ShapeError(f"{function}: src has shape {src.shape}, which does not cover index {ids.shape}")
    return src if src.shape == ids.shape else getitem(src, tuple(slice(n) for n in ids.shape))


# --- other ways to pick --------------------------------------------------------------------------------------------


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
        check_index("take", np.where(ids < 0, ids + size, ids), size, "index")
    return getitem(reshape(x, -1) if size else reshape(x, 0), Tensor(ids))


def take_along_dim(x: Tensor, indices: Any, dim: Axis = None) -> Tensor:
    """`gather` with negative indices and broadcasting, such as the indices of argsort; without dim, of all of x."""
    ids = index_array("take_along_dim", indices)
    if dim is None:
        return gather(reshape(x, x.numel()), 0, _from_front(ids.reshape(-1), x.numel()))
    axis = one_axis("take_along_dim", dim, x.ndim)
    if ids.ndim != x.ndim:
        raise ShapeError(f"take_along_dim: indices have shape {ids.shape}, but x has {x.ndim} axes; give as many")
    # Beside the axis both broadcast; along it each keeps its own size.
    try:
        beside = np.broadcast_shapes(*([1 if i == axis else n for i, n in enumerate(y.shape)] for y in (x, ids)))
    except ValueError:
        raise ShapeError(
            f"take_along_dim: indices have shape {ids.shape}, which does not fit {x.shape} beside axis {axis}"
        ) from None
    wide, long = ((*beside[:axis], y.shape[axis], *beside[axis + 1 :]) for y in (x, ids))
    return gather(broadcast_to(x, wide), axis, np.broadcast_to(_from_front(ids, x.shape[axis]), long))


def _from_front(ids: Array, size: int) -> Array:
    return np.where(ids < 0, ids + size, ids)


def select(x: Tensor, dim: int, index: int) -> Tensor:
    """The slice of x at one index along `dim`, which is gone from the result: x[:, index] for dim 1."""
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


# --- masks ---------------------------------------------------------------------------------------------------------


def _mask(function: str, mask: Any, x: Tensor) -> Array:
    mask = mask.data if isinstance(mask, Tensor) else as_array(mask)
    if mask.dtype != bool:
        raise DtypeError(f"{function}: mask has dtype {mask.dtype}; give booleans, such as mask == 0 or mask.bool()")
    try:
        np.broadcast_shapes(mask.shape, x.shape)
    except ValueError:
        raise ShapeError(f"{function}: mask has shape {mask.shape}, which does not fit x of shape {x.shape}") from None
    return like(mask, x.data)


def masked_fill(x: Tensor, mask: Any, value: Any) -> Tensor:
    """x with `value` (a number, or a tensor without axes) where the mask holds; x gets no gradient there.

    Raises: DtypeError for a mask that is not of booleans, or a value that x's integers cannot hold.
    """
    mask = _mask("masked_fill", mask, x)
    value = value if isinstance(value, Tensor) else as_array(value)
    if value.ndim:
        raise ShapeError(f"masked_fill: value has shape {value.shape}; give a number, or use where(mask, value, x)")
    if x.dtype.kind in "iub" and value.dtype.kind not in "iub":
        raise DtypeError(
            f"masked_fill: x has dtype {x.dtype}, which does not hold {value.item()}; convert x to float32"
        )
    return where(mask, value.to(x.dtype) if isinstance(value, Tensor) else value.astype(x.dtype), x)


def masked_select(x: Tensor, mask: Any) -> Tensor:
    """The elements of x where the mask holds, in one row."""
    mask = _mask("masked_select", mask, x)
    shape = np.broadcast_shapes(mask.shape, x.shape)
    return getitem(broadcast_to(x, shape), np.broadcast_to(mask, shape))


def nonzero(x: Any, as_tuple: bool = False) -> Any:
    """Where x is not 0: a row of indices for each such element, or, as a tuple, one index tensor for each axis."""
    found = np.nonzero(x.data if isinstance(x, Tensor) else as_array(x))
    return tuple(map(Tensor, found)) if as_tuple else Tensor(np.stack(found, -1))


def count_nonzero(x: Any, axis: Axis = None, *, dim: Axis = None) -> Tensor:
    """How many elements over `axis` are not 0, in int64."""
    x = x if isinstance(x, Tensor) else tensor(x)
    return Tensor(np.asarray((x.data != 0).sum(axis=choose_axis("count_nonzero", axis, dim, x.ndim))))


def one_hot(ids: Any, num_classes: int = -1) -> Tensor:
    """For each id a row of `num_classes` zeros with a 1 at the id, in int64; by default one more than the largest id.

    Shapes: ids (...), result (..., num_classes).
    """
    index = index_array("one_hot", ids)
    classes = check_whole("one_hot", "num_classes", num_classes)
    if classes < 0 and not index.size:
        raise InputError("one_hot: there are no ids to tell the number of classes from; give num_classes")
    classes = int(index.max()) + 1 if classes < 0 else classes
    check_index("one_hot", index, classes, "id")
    return Tensor((index[..., None] == like(np.arange(classes), index)).astype(np.int64))


def index_add(x: Tensor, dim: int, index: Any, source: Any) -> Tensor:
    """x with the slices of `source` added to its slices at `index` along `dim`; repeats add up."""
    axis = one_axis("index_add", dim, x.ndim)
    ids = index_array("index_add", index).reshape(-1)
    source = in_one_dtype(x, source)[1]
    column = ids.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return scatter_add(x, axis, np.broadcast_to(column, source.shape), source)
