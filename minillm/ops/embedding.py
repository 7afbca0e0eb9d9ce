"""Look-up of one row of a table for each id.

Forward: y_n = W[ids_n]. In reverse, row i of W gets the sum of all dy_n with ids_n = i. Two ways to add them up, equal
but for the order of the sum, each the faster one somewhere (`np.add.at` is slower than both):

- one row at a time, in the order of the ids: best for long rows;
- sort the rows by id and sum each run at once: best for short rows and few distinct ids.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_rows
from minillm.errors import check_index, check_shapes

LONG_ROW = 512  # channels from which one row at a time is faster; measured by benchmarks/ops.py


class Saved(NamedTuple):
    """The ids, and the shape of the table."""

    ids: Array
    shape: tuple[int, int]


def embedding_forward(weight, ids):
    return np.take(weight, ids, axis=0), Saved(ids, weight.shape)


def embedding_backward(dout, saved, into=(None, None)):
    if into[0] is None:
        dweight = np.zeros_like(dout, shape=saved.shape, order="C")
    else:
        dweight = into[0].array
        if not into[0].add:
            dweight[...] = 0
    ids, rows = saved.ids.reshape(-1), as_rows(dout)
    if saved.shape[1] >= LONG_ROW:
        add_rows_one_by_one(dweight, ids, rows)
    else:
        add_rows_sorted(dweight, ids, rows)
    return dweight, None


def add_rows_one_by_one(table: Array, ids: Array, rows: Array) -> None:
    """table[ids[n]] += rows[n], in order."""
    for i, row in zip(ids.tolist(), rows, strict=True):
        table[i] += row


def add_rows_sorted(table: Array, ids: Array, rows: Array) -> None:
    """The same, each table row once: the rows of one id are brought together and summed."""
    if not ids.size:
        return
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    table[ordered[starts]] += np.add.reduceat(rows[order], starts, axis=0)


EMBEDDING = Op("embedding", embedding_forward, embedding_backward, writes_into=True)


def embedding(ids: Any, weight: Tensor) -> Tensor:
    """y = weight[ids], one row of the table for each id.

    Shapes: ids (...) of integers in [0, V), weight (V, C); result (..., C).
    Saves: the ids.
    Raises: InputError for an id outside the table, DtypeError for ids that are no integers.
    """
    ids = ids.data if isinstance(ids, Tensor) else np.asarray(ids)
    size = check_shapes("embedding", weight=("V C", weight))["V"]
    check_index("embedding", ids, size, "token id")
    return EMBEDDING(weight, ids)
