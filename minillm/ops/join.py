"""Tensors joined: along an axis that they have (concat), or along a new one (stack). Each gets its part of dy back.

concat:  y = [x_1, x_2, ...] along an axis      dx_k = the part of dy at the place of x_k
stack:   y[k] = x_k, for axis 0                 dx_k = dy[k]

Shapes: K arrays x_k, for concat (..., n_k, ...), for stack (...) each.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor, tensor
from minillm.errors import DtypeError, ShapeError
from minillm.ops.axes import first_axis
from minillm.ops.operands import in_one_dtype
from minillm.ops.reshape import reshape

__all__ = ["cat", "concat", "concatenate", "hstack", "stack", "vstack"]


class Joined(NamedTuple):
    """Everything that the forward keeps for the backward."""

    bounds: list[int]  # where the parts begin and end along the axis
    axis: int


class Stacked(NamedTuple):
    """Everything that the forward keeps for the backward."""

    axis: int


def concat_forward(*arrays, axis):
    y = np.concatenate(arrays, axis)  # (..., n_1 + n_2 + ..., ...)
    bounds = np.cumsum([0, *(x.shape[axis] for x in arrays)]).tolist()  # (K + 1,)
    return y, Joined(bounds, axis)


def concat_backward(dy, saved):
    return tuple(cut(dy, saved.bounds, saved.axis))  # K times (..., n_k, ...)


def cut(x, bounds, axis):
    """The pieces of x between neighbouring bounds along an axis."""
    before = (slice(None),) * axis
    return [x[(*before, slice(start, stop))] for start, stop in pairwise(bounds)]


CONCAT = Op("concat", concat_forward, concat_backward, aliases=True)


def tensors_of(function: str, tensors: Any) -> list[Tensor]:
    """The tensors to join, as a list of Tensors of one dtype, from any iterable of Tensors, arrays and numbers.

    Raises: DtypeError for a single Tensor or array, or what cannot be iterated over; ShapeError for none.
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
    chosen = first_axis("concat", axis, first.ndim, dim)
    for position, x in enumerate(given):
        if x.ndim != first.ndim or any(
            a != b for i, (a, b) in enumerate(zip(x.shape, first.shape, strict=True)) if i != chosen
        ):
            raise ShapeError(
                f"concat: tensor {position} has shape {x.shape}, which does not fit {first.shape} along axis {chosen}"
            )
    return CONCAT(*given, axis=chosen)


cat = concatenate = concat


def stack_forward(*arrays, axis):
    y = np.stack(arrays, axis)  # (K, ...)
    return y, Stacked(axis)


def stack_backward(dy, saved):
    return tuple(np.moveaxis(dy, saved.axis, 0))  # K times (...)


STACK = Op("stack", stack_forward, stack_backward, aliases=True)


def stack(tensors: Iterable[Any], axis: int | None = None, *, dim: int | None = None) -> Tensor:
    """Join tensors of one shape along a new axis (default 0)."""
    given = tensors_of("stack", tensors)
    if any(x.shape != given[0].shape for x in given):
        raise ShapeError(f"stack: the tensors have shapes {[x.shape for x in given]}; give all of one shape")
    return STACK(*given, axis=first_axis("stack", axis, given[0].ndim + 1, dim))


def hstack(tensors: Any) -> Tensor:
    """Tensors beside each other: along axis 1; vectors and numbers along axis 0."""
    given = [x if x.ndim else reshape(x, 1) for x in tensors_of("hstack", tensors)]
    return concat(given, 0 if given[0].ndim == 1 else 1)


def vstack(tensors: Any) -> Tensor:
    """Tensors below each other: along axis 0, a vector being one row."""
    given = [x if x.ndim > 1 else reshape(x, 1, -1) for x in tensors_of("vstack", tensors)]
    return concat(given, 0)
