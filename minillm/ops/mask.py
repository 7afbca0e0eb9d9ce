"""Functions of masks and of what is not 0, made of operations of other files."""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.autograd import Tensor
from minillm.backend import Array, as_array
from minillm.device import like
from minillm.errors import DtypeError, InputError, ShapeError, check_index, check_whole
from minillm.ops.axes import Axis, choose_axis
from minillm.ops.broadcast import broadcast_to
from minillm.ops.choice import where
from minillm.ops.create import as_tensor
from minillm.ops.getitem import getitem
from minillm.ops.index_select import index_array

__all__ = ["count_nonzero", "masked_fill", "masked_select", "nonzero", "one_hot"]


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

    Raises: DtypeError for a mask that does not hold booleans, or a value that x's integers cannot hold.
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
    """The places where x is not 0: a row of indices for each, or, as a tuple, one index tensor for each axis."""
    found = np.nonzero(x.data if isinstance(x, Tensor) else as_array(x))
    return tuple(map(Tensor, found)) if as_tuple else Tensor(np.stack(found, -1))


def count_nonzero(x: Any, axis: Axis = None, *, dim: Axis = None) -> Tensor:
    """The number of elements over `axis` that are not 0, in int64."""
    x = as_tensor(x)
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
