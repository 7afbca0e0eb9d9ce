"""SwiGLU on a CPU: the formulas of ops/swiglu.py, a block of rows at a time; both slopes are kept, not gate and up."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.backend import Array, as_rows, elementwise, row_blocks
from minillm.fast.silu import value_and_slope
from minillm.fast.slopes import empty_slope


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward; both are empty where no gradient will be asked for."""

    gate_slope: Array  # (...), dy/dgate = up silu'(gate)
    up_slope: Array  # (...), dy/dup = silu(gate)


def forward(gate, up):
    """y = silu(gate) up, in the shape of both."""
    y = np.empty_like(gate, order="C", dtype=np.promote_types(gate.dtype, up.dtype))
    gate_slope, up_slope = empty_slope(y), empty_slope(y)
    arrays = [as_rows(array) for array in (gate, up, y, gate_slope, up_slope)]

    def block(rows: slice) -> None:
        gate, up, y, gate_slope, up_slope = (array[rows] for array in arrays)
        h = up_slope if up_slope.size else y
        value_and_slope(gate, h, gate_slope)
        np.multiply(h, up, out=y)
        if gate_slope.size:
            gate_slope *= up

    row_blocks(block, arrays[2])
    return y, Saved(gate_slope, up_slope)


def backward(dy, saved):
    """dgate and dup, in the shape of dy."""
    dgate = elementwise(np.multiply, dy, saved.gate_slope)
    dup = elementwise(np.multiply, dy, saved.up_slope)
    return dgate, dup
