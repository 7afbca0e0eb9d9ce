"""SiLU on a CPU: the formulas of ops/silu.py, a block of rows at a time; the slope is kept, not x."""

from __future__ import annotations

import numpy as np

from minillm.backend import Array
from minillm.fast import slopes
from minillm.fast.slopes import write_limits
from minillm.ops.silu import FAR
from minillm.sums import is_moderate


def forward(x):
    """y = x sigmoid(x), in the shape of x."""
    return slopes.forward(value_and_slope, x)


def backward(dy, saved):
    """dx = dy times the slope."""
    return (slopes.backward(dy, saved.slope),)


def value_and_slope(x: Array, y: Array, slope: Array) -> None:
    """y = x s; the slope is s + y (1 - s)."""
    s = np.exp(-x)
    s += 1
    np.divide(1, s, out=s)
    np.multiply(x, s, out=y)
    if slope.size:
        write_slope(slope, s, y)
    if not is_moderate(x):
        write_limits(FAR, x, y, slope)


def write_slope(slope: Array, s: Array, y: Array) -> None:
    """s + y (1 - s)."""
    np.subtract(1, s, out=slope)
    slope *= y
    slope += s
