"""The order of elements: where the largest and the smallest are, the k largest, and sorting.

Which element is at which place is found without a gradient; the values are then picked there by `gather`, so each
gets the gradient of the place it went to. NaN counts as larger than any number, as in PyTorch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Tensor
from minillm.backend import Array, stable_argsort
from minillm.errors import ShapeError, check_whole
from minillm.ops.axes import last_axis, refuse_nothing
from minillm.ops.choice import maximum, minimum
from minillm.ops.create import as_tensor
from minillm.ops.gather import gather
from minillm.ops.reduce import amax, amin
from minillm.ops.reshape import squeeze

__all__ = ["argmax", "argmin", "argsort", "max", "median", "min", "sort", "topk"]


class ValuesAndIndices(NamedTuple):
    """The values picked along an axis, and their indices."""

    values: Tensor
    indices: Tensor


def _order(x: Array, axis: int, descending: bool) -> Array:
    """The indices that sort x along an axis, equal elements in the order in which they came."""
    if x.ndim == 0:
        return np.zeros_like(x, np.intp)
    if not descending:
        return np.moveaxis(stable_argsort(np.moveaxis(x, axis, -1)), -1, axis)
    # Counted and sorted from the end, an ascending order is a descending one in which equal elements keep theirs.
    return x.shape[axis] - 1 - np.flip(_order(np.flip(x, axis), axis, False), axis)


def _arg(function: str, x: Any, axis: Any, keepdims: bool, dim: Any) -> Tensor:
    x = as_tensor(x)
    chosen = None if x.ndim == 0 or (axis is None and dim is None) else last_axis(function, axis, x.ndim, dim)
    refuse_nothing(function, x.shape, chosen, {"argmax": "maximum", "argmin": "minimum"}[function])
    place = np.asarray(getattr(np, function)(x.data, axis=chosen), like=x.data)
    if keepdims:
        place = place.reshape((1,) * x.ndim) if chosen is None else np.expand_dims(place, chosen)
    return Tensor(place)


def argmax(
    x: Tensor, axis: int | None = None, keepdims: bool = False, *, dim: int | None = None, keepdim: bool = False
) -> Tensor:
    """The index of the largest element along `axis`, the first of equal ones; without axis, that in flattened x."""
    return _arg("argmax", x, axis, keepdims or keepdim, dim)


def argmin(
    x: Tensor, axis: int | None = None, keepdims: bool = False, *, dim: int | None = None, keepdim: bool = False
) -> Tensor:
    """The index of the smallest element along `axis`, the first of equal ones; without axis, that in flattened x."""
    return _arg("argmin", x, axis, keepdims or keepdim, dim)


def _picked(x: Tensor, index: Tensor, axis: int, keepdims: bool) -> ValuesAndIndices:
    """The values at `index`, of size 1 along the axis."""
    values = gather(x, axis, index)
    return (
        ValuesAndIndices(values, index) if keepdims else ValuesAndIndices(squeeze(values, axis), squeeze(index, axis))
    )


def max(x: Tensor, axis: Any = None, keepdims: bool = False, *, dim: Any = None, keepdim: bool = False) -> Any:
    """The maximum, as torch.max: of all elements; along one axis, a named tuple (values, indices); or of two tensors.

    Along an axis the gradient goes to the first of equal maxima, over all it is shared. `amax` has the maximum over
    an axis, or several, as one tensor.
    """
    return _extreme("max", x, axis, keepdims or keepdim, dim)


def min(x: Tensor, axis: Any = None, keepdims: bool = False, *, dim: Any = None, keepdim: bool = False) -> Any:
    """The minimum, as torch.min: of all elements; along one axis, a named tuple (values, indices); or of two tensors.

    Along an axis the gradient goes to the first of equal minima, over all it is shared. `amin` has the minimum over
    an axis, or several, as one tensor.
    """
    return _extreme("min", x, axis, keepdims or keepdim, dim)


def _extreme(function: str, x: Any, axis: Any, keepdims: bool, dim: Any) -> Any:
    x = as_tensor(x)
    whole, of_two, place = {"max": (amax, maximum, argmax), "min": (amin, minimum, argmin)}[function]
    if isinstance(axis, Tensor) and (axis.ndim or axis.dtype.kind not in "iu"):  # else an axis in a tensor
        return of_two(x, axis)
    if axis is None and dim is None:
        refuse_nothing(function, x.shape, None, f"{function}imum")
        return whole(x, None, keepdims)
    if isinstance(axis, (tuple, list)) or isinstance(dim, (tuple, list)):
        raise ShapeError(f"{function}: over several axes there is no one index; write a{function}(x, {axis or dim})")
    chosen = last_axis(function, axis, x.ndim, dim)
    refuse_nothing(function, x.shape or (1,), chosen, f"{function}imum")
    return _picked(x, place(x, chosen, True), chosen, keepdims)


def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> ValuesAndIndices:
    """The k largest (or smallest) elements along an axis, best first, and where they are: (values, indices).

    Equal elements come in their order in x. `sorted` is there for PyTorch's sake: they always are.
    """
    x = as_tensor(x)
    axis, count = last_axis("topk", dim, x.ndim), check_whole("topk", "k", k)
    size = (x.shape or (1,))[axis]
    if not 0 <= count <= size:
        raise ShapeError(f"topk: k is {count}, but axis {axis} has size {size}; give 0 to {size}")
    order = _order(x.data, axis, largest)
    index = Tensor(order[(slice(None),) * axis + (slice(count),)] if x.ndim else order)
    return ValuesAndIndices(gather(x, axis, index), index)


def sort(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> ValuesAndIndices:
    """x sorted along an axis, and where each element was: (values, indices). Equal elements keep their order."""
    x = as_tensor(x)
    axis = last_axis("sort", dim, x.ndim)
    index = Tensor(_order(x.data, axis, descending))
    return ValuesAndIndices(gather(x, axis, index), index)


def argsort(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The indices that sort x along an axis; equal elements keep their order."""
    x = as_tensor(x)
    return Tensor(_order(x.data, last_axis("argsort", dim, x.ndim), descending))


def median(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The middle element, the lower of two, as torch.median: of all, or along an axis as (values, indices)."""
    x = as_tensor(x)
    refuse_nothing("median", x.shape, dim if x.ndim else None, "median")
    if dim is None:
        return median(x.reshape(-1), 0).values
    axis = last_axis("median", dim, x.ndim)
    order = _order(x.data, axis, False)
    if not x.ndim:
        return ValuesAndIndices(x, Tensor(order))
    missing = np.isnan(x.data).any(axis, keepdims=True)
    middle, last = (np.take(order, [place], axis) for place in ((x.shape[axis] - 1) // 2, -1))
    return _picked(x, Tensor(np.where(missing, last, middle)), axis, keepdim)
