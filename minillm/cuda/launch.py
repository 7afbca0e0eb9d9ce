"""How kernels that walk over rows or elements are launched: threads and blocks, and sums over rows."""

from __future__ import annotations

import numpy as np

from minillm.backend import Array
from minillm.cuda import WARP, get_kernel

SUMMED_ROWS = 512  # of a block that adds up its rows 32 at a time, at most
THREADS = 256  # of a block that takes elements as they come
BLOCKS = 2048  # that take rows in turn: they fill any GPU, and few are those whose sums are then added up
SHARED_LIMIT = 64 * 1024  # bytes of shared memory that a block can have on every GPU
CHUNK = 64  # rows of a block that adds up columns


def blocks_for(elements: int, of_a_thread: int) -> int:
    """How many blocks of THREADS take all elements, up to a number that fills any GPU several times over."""
    return min(1 << 13, -(-elements // (of_a_thread * THREADS)))


def blocks_that_sum(rows: int) -> int:
    """How many blocks take rows in turn and add them up: BLOCKS, or what leaves a block SUMMED_ROWS."""
    return max(min(rows, BLOCKS), -(-rows // SUMMED_ROWS))


def threads_of_row(x: Array) -> int:
    """One for every 16 bytes of a row, in whole warps, as far as they go."""
    return min(512, -(-x.shape[-1] * x.itemsize // 512) * WARP)


def shared_bytes(x: Array, sums: int) -> int:
    """What a block takes to keep `sums` sums for each column: as many as its threads meet, in float at least."""
    at_a_time = threads_of_row(x) * 16 // x.itemsize
    return sums * -(-x.shape[-1] // at_a_time) * at_a_time * max(4, x.itemsize)


def chunk_of(rows: int) -> int:
    """How many rows each block takes: CHUNK, or what a grid of at most 65535 such blocks needs."""
    return max(CHUNK, -(-rows // 65535))


def sum_rows(x: Array, dtype: np.dtype) -> Array:
    """The sum over the rows of x (rows, columns), in `dtype`: many rows are first added up in chunks, side by side."""
    if x.size == 0:
        return np.zeros_like(x, shape=x.shape[1], dtype=dtype)
    rows, columns = x.shape
    exact = np.promote_types(x.dtype, np.float32)
    last = rows <= 2 * CHUNK and x.dtype == exact  # the last stage alone rounds
    chunk = rows if last else chunk_of(rows)
    out = np.empty_like(x, shape=(-(-rows // chunk), columns), dtype=dtype if last else exact)
    kernel = get_kernel("column_sums.cu", "column_sums", x.dtype, out.dtype)
    grid = (-(-columns * x.itemsize // 512), len(out))
    kernel(grid, (WARP, 16), (x, out, np.int64(rows), np.int32(chunk), np.int32(columns)))
    return out[0] if last else sum_rows(out, dtype)
