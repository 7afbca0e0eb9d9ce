"""Look-up of rows on a CPU: the backward adds the rows where the table's gradient is to be.

The ids are sorted, so that the rows of one id follow each other and are summed at once (see sums.add_rows): `np.add.at`
is slower, and adds one after the other, which loses digits in float32.
"""

from __future__ import annotations

import numpy as np

from minillm.backend import Array, as_rows
from minillm.leaves import Into
from minillm.ops.embedding import Saved
from minillm.sums import add_rows


def forward(weight, ids, *, padding_idx=None):
    """y (..., C), the rows of weight (V, C) that the ids (...) name."""
    return np.take(weight, ids, axis=0), Saved(ids, weight.shape, padding_idx)  # (..., C)


def backward(dy, saved, into=(None, None)):
    """dweight (V, C): at each row the sum of dy (..., C) over the places of its id."""
    dy_counted = without_padding(dy, saved)  # (..., C)
    dweight = gradient_so_far(dy, saved, into[0])  # (V, C)
    add_rows(dweight, saved.ids.reshape(-1), as_rows(dy_counted))
    return dweight, None


def without_padding(dy: Array, saved: Saved) -> Array:
    """The gradient with zeros where the id is the one of padding."""
    if saved.padding_idx is None:
        return dy
    return np.where((saved.ids == saved.padding_idx)[..., None], np.zeros_like(dy, shape=()), dy)


def gradient_so_far(dy: Array, saved: Saved, into: Into | None) -> Array:
    """The array (V, C) for the table's gradient: the one that is there to be added to, or zeros."""
    if into is None:
        return np.zeros_like(dy, shape=saved.shape, order="C")
    if not into.add:
        into.array[...] = 0
    return into.array
