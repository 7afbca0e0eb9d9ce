"""Launches of kernels that walk over rows or elements: threads and blocks, sums over rows, norms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minillm.backend import Array, as_rows
from minillm.cuda import WARP, get_kernel

SUMMED_ROWS = 512  # of a block that adds up its rows 32 at a time, at most
THREADS = 256  # of a block that takes elements as they come
BLOCKS = 2048  # that take rows in turn: they fill any GPU, and few are those whose sums are then added up
SHARED_LIMIT = 64 * 1024  # bytes of shared memory that a block can have on every GPU
CHUNK = 64  # rows of a block that adds up columns


def blocks_for(elements: int, of_a_thread: int) -> int:
    """The number of blocks of THREADS that take all elements, up to a number that fills any GPU several times over."""
    return min(1 << 13, -(-elements // (of_a_thread * THREADS)))


def blocks_that_sum(rows: int) -> int:
    """The number of blocks that add up rows in turn: BLOCKS, and more where one would get over SUMMED_ROWS rows."""
    return max(min(rows, BLOCKS), -(-rows // SUMMED_ROWS))


def threads_of_row(x: Array) -> int:
    """The threads of a block that takes a row: one for every 16 bytes of it, in whole warps, and 512 at most."""
    return min(512, -(-x.shape[-1] * x.itemsize // 512) * WARP)


def launch_rows(file: str, name: str, arrays: Sequence[Array], *settings: np.generic) -> None:
    """Launch a kernel with a block for each row of the first array (rows, columns), up to 2^20 blocks.

    Its arguments are the arrays, the numbers of rows and columns, and the settings.
    """
    rows, columns = arrays[0].shape
    kernel = get_kernel(file, name, arrays[0].dtype)
    sizes = np.int64(rows), np.int32(columns)
    kernel(min(rows, 1 << 20), threads_of_row(arrays[0]), (*arrays, *sizes, *settings))


def shared_bytes(x: Array, sums: int) -> int:
    """Shared-memory bytes of a block for `sums` accumulators per column, in float at least."""
    at_a_time = threads_of_row(x) * 16 // x.itemsize
    return sums * -(-x.shape[-1] // at_a_time) * at_a_time * max(4, x.itemsize)


def chunk_of(rows: int) -> int:
    """The number of rows of a block: CHUNK, or what a grid of at most 65535 such blocks needs."""
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


# ---- norms: kernels/layernorm.cu and kernels/rmsnorm.cu -------------------------------------------------------------


def norm_fits(x: Array, *others: Array | None, sums: int) -> bool:
    """True if the kernels of a norm take these arrays, with `sums` sums for each column in the backward."""
    alike = all(other is None or other.dtype == x.dtype for other in others)
    return alike and x.size > 0 and shared_bytes(x, sums) <= SHARED_LIMIT


def launch_norm_forward(file: str, name: str, *arrays: Array, eps: float) -> None:
    """Launch a forward. `arrays` are the kernel's, contiguous: x is the first, rstd the last."""
    x, rstd = arrays[0], arrays[-1]
    rows, columns = as_rows(x).shape
    kernel = get_kernel(file, name, x.dtype)
    kernel(min(rows, BLOCKS), threads_of_row(x), (*arrays, np.int64(rows), np.int32(columns), rstd.dtype.type(eps)))


def launch_norm_backward(file: str, name: str, *arrays: Array, sums: int) -> tuple[Array, Array]:
    """Launch a backward; returns dx and the gradients of the parameters, (sums, columns).

    `arrays` are the kernel's, contiguous: dy is the first, rstd the last. Each block leaves the sums over its rows in
    `partial`.
    """
    dy, rstd = arrays[0], arrays[-1]
    rows, columns = as_rows(dy).shape
    dx = np.empty_like(dy)
    partial = np.empty_like(rstd, shape=(blocks_that_sum(rows), sums * columns))
    kernel = get_kernel(file, name, dy.dtype)
    sizes = np.int64(rows), np.int32(columns)
    kernel(len(partial), threads_of_row(dy), (*arrays, dx, partial, *sizes), shared_bytes(dy, sums))
    return dx, sum_rows(partial, dy.dtype).reshape(sums, columns)
