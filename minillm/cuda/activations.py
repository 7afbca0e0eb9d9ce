"""Launching kernels/activation.cuh: an activation f of each element, alone or after a bias is added.

`function` is the name of f in kernels/<file>. The arrays of an activation are made contiguous here; the forward keeps
its inputs, from which the backward computes everything again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.backend import Array, as_rows, contiguous
from minillm.cuda import WARP, get_kernel
from minillm.cuda.launch import THREADS, blocks_for, chunk_of, sum_rows


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    x: Array  # (...)
    function: str


class SavedWithBias(NamedTuple):
    """Everything that the forward keeps for the backward."""

    x: Array  # (..., C)
    bias: Array  # (C,)
    function: str


def forward(file: str, function: str, x: Array) -> Any:
    """y = f(x)."""
    if x.size == 0:
        return NotImplemented
    x = contiguous(x)
    y = np.empty_like(x)
    kernel = get_kernel(file, "activation_forward", x.dtype, function)
    kernel(blocks_for(x.size, 16 // x.itemsize), THREADS, (x, y, np.int64(x.size)))
    return y, Saved(x, function)


def backward(file: str, dy: Array, saved: Saved) -> tuple[Array]:
    """dx = dy f'(x)."""
    x, function = saved
    dx = np.empty_like(x)
    kernel = get_kernel(file, "activation_backward", x.dtype, function)
    kernel(blocks_for(x.size, 16 // x.itemsize), THREADS, (contiguous(dy), x, dx, np.int64(x.size)))
    return (dx,)


def forward_with_bias(file: str, function: str, x: Array, bias: Array) -> Any:
    """y = f(x + bias)."""
    if x.size == 0 or bias.dtype != x.dtype:
        return NotImplemented
    x, bias = contiguous(x), contiguous(bias)
    y = np.empty_like(x)
    grid, sizes = _grid_and_sizes(x)
    kernel = get_kernel(file, "bias_activation_forward", x.dtype, function)
    kernel(grid, (WARP, 8), (x, bias, y, *sizes))
    return y, SavedWithBias(x, bias, function)


def backward_with_bias(file: str, dy: Array, saved: SavedWithBias) -> tuple[Array, Array]:
    """dx = dy f'(x + bias), and dbias, the sum of its rows: first of each chunk of rows, then of the chunks."""
    x, bias, function = saved
    dx = np.empty_like(x)
    grid, sizes = _grid_and_sizes(x)
    partial = np.empty_like(x, shape=(grid[1], len(bias)), dtype=np.promote_types(x.dtype, np.float32))
    kernel = get_kernel(file, "bias_activation_backward", x.dtype, function)
    kernel(grid, (WARP, 8), (contiguous(dy), x, bias, dx, partial, *sizes))
    return dx, sum_rows(partial, x.dtype)


def _grid_and_sizes(x: Array) -> tuple[tuple[int, int], tuple]:
    rows, columns = as_rows(x).shape
    chunk = chunk_of(rows)
    grid = (-(-columns * x.itemsize // 512), -(-rows // chunk))
    return grid, (np.int64(rows), np.int32(chunk), np.int32(columns))
