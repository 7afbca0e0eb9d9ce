"""Elements picked, and written, at an index array of x's own number of axes.

gather picks along one axis, at every place of `index` an element of its own:

    y[i, j] = x[i, index[i, j]]          for axis 1, and so on for other axes and more of them

with x (I, K), and index and y (I, J);

so the gradient of x[i, k] is the sum of dy[i, j] over all j with index[i, j] = k. scatter writes where gather reads:

    scatter:     y = x, but y[i, index[i, j]]  = src[i, j]      dx = dy, 0 where written    dsrc = gather(dy)
    scatter_add: y = x, and y[i, index[i, j]] += src[i, j]      dx = dy                     dsrc = gather(dy)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor, tensor
from minillm.backend import Array, as_array
from minillm.device import like
from minillm.errors import DtypeError, ShapeError, check_index
from minillm.ops.axes import Axis, one_axis
from minillm.ops.broadcast import broadcast_to
from minillm.ops.getitem import getitem
from minillm.ops.index_select import from_front, index_array
from minillm.ops.operands import in_one_dtype
from minillm.ops.reshape import reshape
from minillm.sums import add_at

__all__ = ["gather", "index_add", "scatter", "scatter_add", "take_along_dim"]


class Places(NamedTuple):
    """Everything that the forward keeps for the backward."""

    shape: tuple[int, ...]  # of x
    key: tuple[Array, ...]  # the places in x that were read or written: an index array for each axis


def gather_forward(x, *, key):
    y = x[key]  # (I, J)
    return y, Places(x.shape, key)


def gather_backward(dy, saved):
    dx = np.zeros_like(dy, shape=saved.shape, order="C")  # (I, K)
    add_at(dx, saved.key, dy)  # an element that was read twice gets the sum
    return (dx,)


GATHER = Op("gather", gather_forward, gather_backward)


def gather(x: Tensor, dim: int, index: Any) -> Tensor:
    """x[i, index[i, j]] for dim 1, and so on: at every place of `index`, the element of x that it names along `dim`.

    Shapes: x and index have the same number of axes; index is no larger than x but along `dim`; result as index.
    Saves: the index.
    """
    ids, axis = _checked_index("gather", x, dim, index)
    return GATHER(x, key=places(ids, axis))


def scatter_forward(x, src, *, key):
    y = x.copy()  # (I, K)
    y[key] = src
    return y, Places(x.shape, key)


def scatter_backward(dy, saved):
    dx = as_array(dy).copy()  # (I, K); NumPy's results without axes are numbers, not arrays
    dx[saved.key] = 0
    dsrc = dy[saved.key]  # (I, J)
    return dx, dsrc


SCATTER = Op("scatter", scatter_forward, scatter_backward)


def scatter(x: Tensor, dim: int, index: Any, src: Any) -> Tensor:
    """x with the elements that `gather(x, dim, index)` would read replaced by `src`, a tensor or a number.

    Where `index` names a place twice, one of the two is there, and it is not said which. Saves: the index.
    """
    ids, axis = _checked_index("scatter", x, dim, index)
    return SCATTER(x, _source("scatter", x, ids, src), key=places(ids, axis))


def scatter_add_forward(x, src, *, key):
    y = x.copy()  # (I, K)
    add_at(y, key, src)
    return y, Places(x.shape, key)


def scatter_add_backward(dy, saved):
    dsrc = dy[saved.key]  # (I, J)
    return dy, dsrc


SCATTER_ADD = Op("scatter_add", scatter_add_forward, scatter_add_backward, aliases=True)


def scatter_add(x: Tensor, dim: int, index: Any, src: Any) -> Tensor:
    """x with `src` added to the elements that `gather(x, dim, index)` would read; a place named twice gets both.

    Saves: the index.
    """
    ids, axis = _checked_index("scatter_add", x, dim, index)
    return SCATTER_ADD(x, _source("scatter_add", x, ids, src), key=places(ids, axis))


# --- their arguments -----------------------------------------------------------------------------------------------


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


def _source(function: str, x: Tensor, ids: Array, src: Any) -> Tensor:
    """The values to write, in the index's shape: a number everywhere, or the first part of a larger tensor."""
    src = src if isinstance(src, Tensor) else tensor(src, dtype=x.dtype, device=x.device)
    if src.dtype != x.dtype:
        raise DtypeError(f"{function}: src has dtype {src.dtype}, but x has dtype {x.dtype}; convert one of them")
    if src.ndim == 0:
        return broadcast_to(src, ids.shape)
    if src.ndim != ids.ndim or any(n < m for n, m in zip(src.shape, ids.shape, strict=True)):
        raise ShapeError(f"{function}: src has shape {src.shape}, which does not cover index {ids.shape}")
    return src if src.shape == ids.shape else getitem(src, tuple(slice(n) for n in ids.shape))


# --- made of these -------------------------------------------------------------------------------------------------


def take_along_dim(x: Tensor, indices: Any, dim: Axis = None) -> Tensor:
    """`gather` with negative indices and broadcasting, for the indices of argsort, say; without dim, x is flattened."""
    ids = index_array("take_along_dim", indices)
    if dim is None:
        return gather(reshape(x, x.numel()), 0, from_front(ids.reshape(-1), x.numel()))
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
    return gather(broadcast_to(x, wide), axis, np.broadcast_to(from_front(ids, x.shape[axis]), long))


def index_add(x: Tensor, dim: int, index: Any, source: Any) -> Tensor:
    """x with the slices of `source` added to its slices at `index` along `dim`; repeats add up."""
    axis = one_axis("index_add", dim, x.ndim)
    ids = index_array("index_add", index).reshape(-1)
    source = in_one_dtype(x, source)[1]
    column = ids.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return scatter_add(x, axis, np.broadcast_to(column, source.shape), source)
