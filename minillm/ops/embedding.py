"""Look-up of one row of a table for each id.

Forward: y_n = weight[ids_n], where weight is (V, C) and y_n is (C,). Backward: row i of dweight is the sum of all dy_n
with ids_n = i.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_array
from minillm.device import like
from minillm.errors import InputError, check_index, check_shapes
from minillm.sums import add_at


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    ids: Array  # (...), integers
    shape: tuple[int, int]  # (V, C)
    padding_idx: int | None = None  # the id whose row gets no gradient


def embedding_forward(weight, ids, *, padding_idx=None):
    y = weight[ids]  # (..., C)
    return y, Saved(ids, weight.shape, padding_idx)


def embedding_backward(dy, saved):
    ids, (rows, channels), padding_idx = saved
    dweight = np.zeros_like(dy, shape=(rows, channels))  # (V, C)
    counted = ids != padding_idx  # (...), all of them where there is no padding
    add_at(dweight, ids[counted], dy[counted])  # row i gets the sum of all dy_n with ids_n = i
    return dweight, None


EMBEDDING = Op("embedding", embedding_forward, embedding_backward)


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
