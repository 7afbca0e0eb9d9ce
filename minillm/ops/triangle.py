"""The triangles and diagonals of matrices, the last two axes.

y = the part of x below (tril) or above (triu) a diagonal, 0 elsewhere          dx = that part of dy
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor, is_grad_enabled
from minillm.errors import ShapeError, check_whole
from minillm.ops.axes import one_axis
from minillm.ops.choice import where
from minillm.ops.getitem import getitem
from minillm.ops.pad import pad
from minillm.ops.reshape import unsqueeze
from minillm.ops.transpose import movedim

__all__ = ["diag", "diagonal", "trace", "tril", "triu"]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    k: int  # the diagonal that bounds the triangle: 0 is the main one, 1 the one above it


def tril_forward(x, *, k):
    y = np.tril(x, k)  # (..., M, N)
    return y, Saved(k)


def tril_backward(dy, saved):
    dx = np.tril(dy, saved.k)  # (..., M, N)
    return (dx,)


TRIL = Op("tril", tril_forward, tril_backward)


def triu_forward(x, *, k):
    y = np.triu(x, k)  # (..., M, N)
    return y, Saved(k)


def triu_backward(dy, saved):
    dx = np.triu(dy, saved.k)  # (..., M, N)
    return (dx,)


TRIU = Op("triu", triu_forward, triu_backward)


def tril(x: Tensor, diagonal: int = 0) -> Tensor:
    """The lower triangle of the last two axes, up to the given diagonal (0 is the main one), and 0 above."""
    return _triangle(TRIL, x, diagonal)


def triu(x: Tensor, diagonal: int = 0) -> Tensor:
    """The upper triangle of the last two axes, from the given diagonal (0 is the main one) on, and 0 below."""
    return _triangle(TRIU, x, diagonal)


def _triangle(op: Op, x: Tensor, diagonal: int) -> Tensor:
    if x.ndim < 2:
        raise ShapeError(f"{op.name}: the tensor has shape {x.shape}; a triangle needs two axes")
    return op(x, k=check_whole(op.name, "diagonal", diagonal))


def diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The elements x[i, i + offset] of two axes, which become one, the last; a view where nothing is recorded."""
    first, second = (one_axis("diagonal", dim, x.ndim) for dim in (dim1, dim2))
    if first == second:
        raise ShapeError(f"diagonal: dim1={dim1} and dim2={dim2} are the same axis of shape {x.shape}")
    k = check_whole("diagonal", "offset", offset)
    if not (x.requires_grad and is_grad_enabled()):
        view = x.detach()
        view.data = x.data.diagonal(k, first, second)
        if isinstance(view.data, np.ndarray):  # which NumPy makes read-only
            view.data.flags.writeable = x.data.flags.writeable
        return view
    rows = np.arange(max(0, min(x.shape[first] - max(0, -k), x.shape[second] - max(0, k)))) + max(0, -k)
    return getitem(movedim(x, (first, second), (-2, -1)), (..., rows, rows + k))


def _diagonal_of(x: Tensor, offset: int) -> Tensor:
    return diagonal(x, offset)


def diag(x: Tensor, diagonal: int = 0) -> Tensor:
    """The matrix with a vector on its diagonal, and 0 elsewhere; or, where x is a matrix, its diagonal."""
    if x.ndim == 2:
        return _diagonal_of(x, diagonal)
    if x.ndim != 1:
        raise ShapeError(f"diag: the tensor has shape {x.shape}; give a vector or a matrix")
    k = check_whole("diag", "diagonal", diagonal)
    placed = unsqueeze(pad(x, (0, abs(k))), -1 if k >= 0 else 0)
    return where(np.eye(x.numel() + abs(k), k=k, dtype=bool), placed, 0)


def trace(x: Tensor) -> Tensor:
    """The sum of a matrix's diagonal."""
    if x.ndim != 2:
        raise ShapeError(f"trace: the tensor has shape {x.shape}; give a matrix")
    return diagonal(x).sum()
