"""Rotary position embedding on a CPU: the formulas of ops/rope.py, written where the result is to be.

The first axis of x is cut into blocks, unless it is that of the positions.
"""

from __future__ import annotations

import numpy as np

from minillm.backend import Array, row_blocks
from minillm.ops.rope import Saved, pairs


def forward(x, *, cos, sin, layout):
    """x with each pair of channels turned by its angle."""
    return turn(x, cos, sin, layout), Saved(cos, sin, layout)


def backward(dy, saved):
    """dy turned by the same angles, the other way round."""
    return (turn(dy, saved.cos, -saved.sin, saved.layout),)  # the other way round


def turn(x: Array, cos: Array, sin: Array, layout: str) -> Array:
    """x with each pair of channels turned."""
    y = np.empty_like(x)

    def block(items: slice) -> None:
        (x1, x2), (y1, y2) = pairs(x[items], layout), pairs(y[items], layout)
        np.subtract(x1 * cos, x2 * sin, out=y1)
        np.add(x1 * sin, x2 * cos, out=y2)

    if x.ndim > 2:
        row_blocks(block, y)
    else:
        block(slice(None))
    return y
