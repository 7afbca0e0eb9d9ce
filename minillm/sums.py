"""Sums of many float32 numbers, accurate to seven digits, at the speed of a matrix product with ones.

To add n numbers one after the other rounds n times: a running sum of 10^6 is so large that the next number loses its
last digits, every time in the same direction if the numbers are alike. NumPy adds a contiguous row in pairs (its error
grows with log n), but the rows of a matrix one after the other; a BLAS adds everything one after the other, in 16 to 64
sums side by side. So this file adds in two levels: the BLAS adds a few numbers at a time, in float32; these sums, too
few to cost time, are added in float64.

    sum_over(x, axis)    any axes of any array            column_sums(x), row_sums(x), vecdot(a, b)    for matrices
    add_rows(...)        rows added at given indices      add_at(...)                                  elements, too

Sums of 16-bit numbers are computed in float32 or float64 throughout; the caller rounds them once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np

from minillm import backend
from minillm.device import Array, is_on_gpu

FEW = 32  # numbers to add one after the other in float32: the error is at most 5e-7
FOUR = 4  # a BLAS takes this many columns together, and then four rows at a time
BLOCK = 128  # rows that the BLAS adds at once: error at most 3e-7 (5e-7 for twice as many)
ROW = 2048  # numbers of a row that the BLAS adds at once, in 64 sums side by side
ONES = {np.dtype(t): np.ones(ROW, t) for t in (np.float32, np.float64)}


def _ones(count: int, dtype: np.dtype) -> Array:
    return ONES[dtype][:count] if dtype in ONES and count <= ROW else np.ones(count, dtype)


# ---- sums over any axes ---------------------------------------------------------------------------------------------


def sum_over(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """Compute np.sum in at least float32, accurately for any count; the caller rounds it to fewer bits."""
    if is_on_gpu(x):
        return _on_gpu(x, axis, keepdims)
    if x.dtype != np.float32:
        if x.dtype.itemsize > 2 or x.dtype.kind in "iub":
            return np.sum(x, axis=axis, keepdims=keepdims)
        return np.asarray(np.sum(x, axis=axis, keepdims=keepdims, dtype=np.float64)).astype(np.float32)
    if x.flags.c_contiguous and (axis is None or axis == -1 or axis == x.ndim - 1):
        return np.sum(x, axis=axis, keepdims=keepdims)  # np.sum adds a contiguous array in pairs
    axes = range(x.ndim) if axis is None else [a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,))]
    terms = math.prod(x.shape[a] for a in axes)
    if terms <= FEW or x.size == 0:
        return np.sum(x, axis=axis, keepdims=keepdims)
    if x.flags.c_contiguous and set(axes) == set(range(len(axes))):  # the first axes: the rows of a matrix
        total = _sum_of_rows(x.reshape(1, terms, x.size // terms))
        return total.reshape((1,) * len(axes) * keepdims + x.shape[len(axes) :])
    return _sum_in_memory_order(x, set(axes), keepdims)


def _sum_in_memory_order(x: Array, axes: set[int], keepdims: bool) -> Array:
    """The sum of float32 over `axes`, one run of neighbours in memory after the other, the last first."""
    # A stretched axis repeats numbers without memory: over it, a sum is a product.
    stretched = [a for a in range(x.ndim) if x.strides[a] == 0 and x.shape[a] > 1]
    once = x[tuple(slice(0, 1) if a in stretched else slice(None) for a in range(x.ndim))]
    order = sorted(range(x.ndim), key=lambda a: -abs(x.strides[a]))
    total = np.ascontiguousarray(once.transpose(order))
    runs = [(summed, math.prod(once.shape[a] for a in run)) for summed, run in groupby(order, axes.__contains__)]
    sizes = [size for _, size in runs]
    for i in reversed(range(len(runs))):
        if runs[i][0]:
            total = total.reshape(math.prod(sizes[:i]), sizes[i], math.prod(sizes[i + 1 :]))
            total = total.sum(axis=1) if total.shape[2] == 1 else _sum_of_rows(total)
            sizes[i] = 1
    kept = [1 if a in axes else once.shape[a] for a in order]
    total = total.reshape(kept).transpose(np.argsort(order))
    total = total * total.dtype.type(math.prod(x.shape[a] for a in stretched if a in axes))
    total = np.broadcast_to(total, [1 if a in axes else size for a, size in enumerate(x.shape)])
    return total if keepdims else total.reshape([size for a, size in enumerate(x.shape) if a not in axes])


def _sum_of_rows(x: Array) -> Array:
    """The sums over the middle axis of x (L, rows, columns)."""
    rows, columns = x.shape[1:]
    if columns % FOUR and rows > FEW:  # the BLAS would add the last columns one row after the other
        whole = rows - rows % FOUR
        total = _sum_of_rows(x[:, :whole].reshape(len(x), -1, FOUR * columns))
        total = total.reshape(len(x), FOUR, columns).sum(axis=1, dtype=np.float64)
        return (total + x[:, whole:].sum(axis=1)).astype(x.dtype)
    if rows <= 2 * BLOCK:
        return np.matmul(_ones(rows, x.dtype), x)
    whole = rows - rows % BLOCK
    blocks = np.matmul(_ones(BLOCK, x.dtype), x[:, :whole].reshape(len(x), -1, BLOCK, columns))
    total = blocks.sum(axis=1, dtype=np.float64)
    if whole < rows:
        total += np.matmul(_ones(rows - whole, x.dtype), x[:, whole:])
    return total.astype(x.dtype)


def _on_gpu(x: Array, axis: Any, keepdims: bool = False) -> Array:
    """Sum with CuPy: float32 in float64, as memory is the bottleneck; CuPy adds 16-bit numbers in float32 by itself."""
    if x.dtype != np.float32:
        return x.sum(axis=axis, keepdims=keepdims)
    return x.sum(axis=axis, keepdims=keepdims, dtype=np.float64).astype(x.dtype)


# ---- sums over the rows, or the columns, of a matrix ----------------------------------------------------------------


def column_sums(x: Array) -> Array:
    """The sum over the rows of x (rows, columns)."""
    if is_on_gpu(x):
        return _on_gpu(x, 0)
    if x.dtype.itemsize < 4:
        return x.sum(axis=0, dtype=np.float64).astype(x.dtype)
    if not x.flags.c_contiguous and (x.shape[1] % FOUR or not _as_blas_reads(x)):
        x = x.copy()
    return _sum_of_rows(x[None])[0]


def _as_blas_reads(x: Array) -> bool:
    """True if a BLAS takes this matrix without a copy, as its rows or its columns are contiguous; NumPy would add the
    rows of any other matrix one after the other."""
    near, far = sorted(x.strides)
    return near == x.itemsize and far >= near * (x.shape[1] if x.strides[1] == near else x.shape[0])


def row_sums(x: Array) -> Array:
    """The sum over the last axis, kept with size 1. A product with ones takes a quarter of np.sum's time."""
    if is_on_gpu(x):
        return _on_gpu(x, -1, keepdims=True)
    return vecdot(x, _ones(x.shape[-1], x.dtype))[..., None]


def vecdot(a: Array, b: Array) -> Array:
    """The sum of a b over the last axis, which is not kept."""
    if is_on_gpu(a):
        return _on_gpu(a * b, -1)  # CuPy has no vecdot
    size = a.shape[-1]
    if size <= ROW:
        return np.vecdot(a, b)
    whole = size - size % ROW
    parts = [x[..., :whole].reshape(*x.shape[:-1], -1, ROW) for x in (a, b)]
    total = np.vecdot(*parts).sum(axis=-1, dtype=np.float64)
    if whole < size:
        total += np.vecdot(a[..., whole:], b[..., whole:])
    return total.astype(np.result_type(a, b))


def is_moderate(x: Array) -> bool:
    """True if certainly every |x| is below 10^12, so that cubes do not overflow and limits at infinity do not matter.

    On a GPU it is always False, because an answer would mean waiting for the GPU.
    """
    if is_on_gpu(x):
        return False
    numbers = x.reshape(-1)
    return float(np.dot(numbers, numbers)) < 1e24


# ---- sums added at given indices ------------------------------------------------------------------------------------

LONG_ROW = 512  # channels from which single rows are added faster one at a time; measured by benchmarks/ops.py
SHORT_ROW = 64  # channels up to which an id's rows are too short for a call of their own
GATHERED = 1024  # rows that are gathered at a time


def add_rows(table: Array, ids: Array, rows: Array) -> None:
    """table[ids[n]] += rows[n] for all n, where ids (n,) may name a row of the table several times."""
    if is_on_gpu(rows):
        _add_on_gpu(table, ids, rows)
    elif rows.shape[1] == 1 and len(table) <= 16 * len(ids):
        table += np.bincount(ids.astype(np.intp), rows[:, 0], len(table))[:, None].astype(table.dtype)
    elif len(ids):
        order = backend.stable_argsort(ids)
        ordered = ids[order]
        begins = np.ones(len(ids), bool)
        np.not_equal(ordered[1:], ordered[:-1], out=begins[1:])
        starts = np.flatnonzero(begins)  # start of each run of one id
        add_runs = _add_short_rows if rows.shape[1] <= SHORT_ROW else _add_long_rows
        lengths = np.empty_like(starts)
        np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
        lengths[-1] = len(ids) - starts[-1]
        add_runs(table, ordered[starts], rows, order, starts, lengths)


def _add_long_rows(table: Array, named: Array, rows: Array, order: Array, starts: Array, lengths: Array) -> None:
    """Add frequent ids one by one, as column sums; and the others, of at most FEW rows each, together."""
    often: list[int] = []
    runs: list[Array] = []
    seldom, places = named, order
    if lengths.max() > FEW:
        many = lengths > FEW
        often = named[many].tolist()
        runs = [order[a : a + n] for a, n in zip(starts[many].tolist(), lengths[many].tolist(), strict=True)]
        seldom, places, lengths = named[~many], order[np.repeat(~many, lengths)], lengths[~many]
        starts = np.cumsum(lengths) - lengths
    one_by_one = rows.shape[1] >= LONG_ROW and rows.dtype.itemsize >= 4

    def columns(start: int, stop: int) -> None:
        part, into = rows[:, start:stop], table[:, start:stop]
        for i, run in zip(often, runs, strict=True):
            pieces = (run[first : first + GATHERED] for first in range(0, len(run), GATHERED))
            into[i] += sum(column_sums(part[piece]).astype(np.float64) for piece in pieces)
        if len(seldom) and not one_by_one:
            into[seldom] += _reduceat(part[places], starts)

    if not one_by_one or runs:
        _over_columns(columns, rows)
    if one_by_one:
        for i, place in zip(np.repeat(seldom, lengths).tolist(), places.tolist(), strict=True):
            table[i] += rows[place]


def _add_short_rows(table: Array, named: Array, rows: Array, order: Array, starts: Array, lengths: Array) -> None:
    """Add all ids together: FEW rows of an id at a time, and then these sums."""
    first = None
    if lengths.max() > FEW:
        pieces = -(-lengths // FEW)  # number of pieces of each run
        first = np.cumsum(pieces) - pieces
        starts = np.repeat(starts - FEW * first, pieces) + FEW * np.arange(pieces.sum())

    def columns(start: int, stop: int) -> None:
        sums = _reduceat(rows[:, start:stop][order], starts)
        if first is not None:
            sums = np.add.reduceat(sums, first, axis=0, dtype=np.float64)
        table[named, start:stop] += sums

    _over_columns(columns, rows)


def _over_columns(function: Callable[[int, int], None], rows: Array) -> None:
    if rows.nbytes < backend.cutting.parallel_bytes:
        function(0, rows.shape[1])
    else:
        backend.parallel(function, rows.shape[1])


def _reduceat(rows: Array, starts: Array) -> Array:
    """The sums of runs of rows, in float32 at least."""
    return np.add.reduceat(rows, starts, axis=0, dtype=None if rows.dtype.itemsize >= 4 else np.float32)


def add_at(array: Array, index: Any, values: Array) -> None:
    """Compute array[index] += values, where the index may name an element several times; array is contiguous."""
    if is_on_gpu(array):
        _add_on_gpu(array, index, values)
        return
    # Row numbers of the indexed elements: the indexed axes are flattened into one, with all other axes behind it.
    parts = index if isinstance(index, tuple) else (index,)
    used = sum(part.ndim if np.asarray(part).dtype == bool else part is not None for part in parts)
    axes = array.shape if any(part is Ellipsis for part in parts) else array.shape[:used]
    ids: Any = 0
    for axis, size in enumerate(axes):
        step = math.prod(axes[axis + 1 :])
        number = (np.arange(size) * step).reshape(size, *(1 for _ in axes[axis + 1 :]))
        ids = ids + np.broadcast_to(number, axes)[index]
    row = math.prod(array.shape[len(axes) :])
    rows = np.broadcast_to(values, (*np.shape(ids), *array.shape[len(axes) :])).reshape(np.size(ids), row)
    add_rows(array.reshape(math.prod(axes), row), np.reshape(ids, -1), rows)


def _add_on_gpu(array: Array, index: Any, values: Array) -> None:
    """Add with atomic additions, in no particular order, in at least float32: CuPy has none for 16-bit numbers."""
    exact = np.promote_types(array.dtype, np.float32)
    total = array.astype(exact, copy=False)
    sys.modules["cupy"].add.at(total, index, values.astype(exact, copy=False))
    if total is not array:
        array[...] = total
