"""Look-up of rows by kernels/embedding.cu; the ids are sorted first, so that one warp sums all rows of an id."""

from __future__ import annotations

import numpy as np

from minillm.backend import contiguous, stable_argsort
from minillm.cuda import WARP, get_kernel
from minillm.fast.embedding import gradient_so_far, without_padding
from minillm.ops.embedding import Saved

WARPS = 8  # warps of a block; each takes one id


def forward(weight, ids, *, padding_idx=None):
    """y (..., C), the rows of weight (V, C) that the ids (...) name."""
    if ids.size == 0 or weight.size == 0:
        return NotImplemented
    weight, ids = contiguous(weight), contiguous(ids.astype(np.int64, copy=False))
    columns = weight.shape[1]
    y = np.empty_like(weight, shape=(*ids.shape, columns))
    kernel = get_kernel("embedding.cu", "embedding_forward", weight.dtype)
    sizes = (np.int64(len(weight)), np.int64(ids.size), np.int32(columns))
    kernel(-(-ids.size // WARPS), WARPS * WARP, (weight, ids, y, *sizes))
    return y, Saved(ids, weight.shape, padding_idx)


def backward(dy, saved, into=(None, None)):
    """dweight (V, C): at each row the sum of dy (..., C) over the places of its id."""
    dy = without_padding(dy, saved)
    dweight = gradient_so_far(dy, saved, into[0])
    table, ids, columns = contiguous(dweight), saved.ids.reshape(-1), saved.shape[1]
    order = stable_argsort(ids)
    kernel = get_kernel("embedding.cu", "embedding_backward", table.dtype)
    grid = (-(-ids.size // WARPS), -(-columns * table.itemsize // 512))
    sizes = (np.int64(len(table)), np.int64(ids.size), np.int32(columns))
    kernel(grid, WARPS * WARP, (contiguous(dy), ids[order], order, table, *sizes))
    if table is not dweight:  # a copy, because the leaf's gradient is not contiguous
        dweight[...] = table
    return dweight, None
