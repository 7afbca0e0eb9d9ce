"""Look-up of one row of a table for each id.

Forward: y_n = W[ids_n]. In reverse, row i of W gets the sum of all dy_n with ids_n = i. The ids are sorted, so that the
rows of one id follow each other and are summed at once (`np.add.at` is slower, and adds one after the other: see
minillm/sums.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm import backend
from minillm.autograd import Into, Op, Tensor
from minillm.backend import Array, as_array, as_rows, contiguous
from minillm.device import like
from minillm.errors import InputError, check_index, check_shapes
from minillm.kernels import WARP, get_kernel
from minillm.sums import add_rows

WARPS = 8  # of a block of the kernels: one for each id


class Saved(NamedTuple):
    """The ids, the shape of the table, and the id whose row gets no gradient."""

    ids: Array
    shape: tuple[int, int]
    padding_idx: int | None = None


def embedding_forward(weight, ids, *, padding_idx=None):
    return np.take(weight, ids, axis=0), Saved(ids, weight.shape, padding_idx)


def without_padding(dout: Array, saved: Saved) -> Array:
    """The gradient with zeros where the id is the one of padding."""
    if saved.padding_idx is None:
        return dout
    return np.where((saved.ids == saved.padding_idx)[..., None], np.zeros_like(dout, shape=()), dout)


def embedding_backward(dout, saved, into=(None, None)):
    dout = without_padding(dout, saved)
    dweight = _gradient_so_far(dout, saved, into[0])
    ids, rows = saved.ids.reshape(-1), as_rows(dout)
    add_rows(dweight, ids, rows)
    return dweight, None


def _gradient_so_far(dout: Array, saved: Saved, into: Into | None) -> Array:
    """Where the gradient of the table goes: what is there to be added to, or zeros."""
    if into is None:
        return np.zeros_like(dout, shape=saved.shape, order="C")
    if not into.add:
        into.array[...] = 0
    return into.array


def embedding_forward_cuda(weight, ids, *, padding_idx=None):
    if ids.size == 0 or weight.size == 0:
        return NotImplemented
    weight, ids = contiguous(weight), contiguous(ids.astype(np.int64, copy=False))
    columns = weight.shape[1]
    out = np.empty_like(weight, shape=(*ids.shape, columns))
    kernel = get_kernel("embedding.cu", "embedding_forward", weight.dtype)
    numbers = (np.int64(len(weight)), np.int64(ids.size), np.int32(columns))
    kernel(-(-ids.size // WARPS), WARPS * WARP, (weight, ids, out, *numbers))
    return out, Saved(ids, weight.shape, padding_idx)


def embedding_backward_cuda(dout, saved, into=(None, None)):
    dout = without_padding(dout, saved)
    dweight = _gradient_so_far(dout, saved, into[0])
    table, ids, columns = contiguous(dweight), saved.ids.reshape(-1), saved.shape[1]
    order = backend.stable_argsort(ids)
    kernel = get_kernel("embedding.cu", "embedding_backward", table.dtype)
    grid = (-(-ids.size // WARPS), -(-columns * table.itemsize // 512))
    numbers = (np.int64(len(table)), np.int64(ids.size), np.int32(columns))
    kernel(grid, WARPS * WARP, (contiguous(dout), ids[order], order, table, *numbers))
    if table is not dweight:  # a copy, because the leaf's gradient is not contiguous
        dweight[...] = table
    return dweight, None


EMBEDDING = Op(
    "embedding",
    embedding_forward,
    embedding_backward,
    cuda=(embedding_forward_cuda, embedding_backward_cuda),
    writes_into=True,
)


def embedding(ids: Any, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """y = weight[ids], one row of the table for each id.

    Shapes: ids (...) of integers in [0, V), weight (V, C); result (..., C).
    padding_idx: an id whose row gets no gradient; -1 is the last, as in PyTorch.
    Saves: the ids.
    Raises: InputError for an id outside the table, DtypeError for ids that are no integers.
    """
    ids = ids.data if isinstance(ids, Tensor) else as_array(ids)
    size = check_shapes("embedding", weight=("V C", weight))["V"]
    check_index("embedding", ids, size, "token id")
    if padding_idx is not None:
        if not -size <= padding_idx < size:
            raise InputError(f"embedding: padding_idx {padding_idx} is out of range; expected {-size} to {size - 1}")
        padding_idx %= size
    return EMBEDDING(weight, like(ids, weight.data), padding_idx=padding_idx)
