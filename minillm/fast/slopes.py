"""The CPU's pair of any activation: the forward computes the slope dy/dx with the value, and keeps it in place of x.

While x is in cache, half of the slope is known already, and the backward is then one product, dx = dy slope. Without
gradients no slope is computed. A function `value_and_slope(x, y, slope)` writes y = f(x), and slope = f'(x) where there
is room for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minillm.backend import Array, as_rows, row_blocks, sum_over_blocks
from minillm.grad_mode import is_grad_enabled
from minillm.sums import column_sums

ValueAndSlope = Callable[[Array, Array, Array], None]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    slope: Array  # (...), dy/dx; empty where no gradient will be asked for


def empty_slope(y: Array) -> Array:
    """The array for a slope like y, which is empty where no gradient will be asked for."""
    return np.empty_like(y, shape=None if is_grad_enabled() else 0)


def forward(value_and_slope: ValueAndSlope, x: Array, bias: Array | None = None) -> tuple[Array, Saved]:
    """y = f(x), or f(x + bias), and the slope."""
    y = np.empty_like(x, order="C")
    slope = empty_slope(y)
    x_rows, y_rows, slope_rows = as_rows(x), as_rows(y), as_rows(slope)

    def block(rows: slice) -> None:
        z = x_rows[rows] if bias is None else x_rows[rows] + bias
        value_and_slope(z, y_rows[rows], slope_rows[rows])

    row_blocks(block, y_rows)
    return y, Saved(slope)


def backward(dy: Array, slope: Array) -> Array:
    """dx = dy slope."""
    dx = np.empty_like(slope)
    dy_rows, slope_rows, dx_rows = as_rows(dy), as_rows(slope), as_rows(dx)
    row_blocks(lambda rows: np.multiply(dy_rows[rows], slope_rows[rows], out=dx_rows[rows]), dx_rows)
    return dx


def backward_with_bias(dy: Array, slope: Array) -> tuple[Array, Array]:
    """dx = dy slope, and dbias, the sum of its rows, while they are in cache."""
    dx = np.empty_like(slope)
    dy_rows, slope_rows, dx_rows = as_rows(dy), as_rows(slope), as_rows(dx)

    def block(rows: slice) -> tuple[Array]:
        np.multiply(dy_rows[rows], slope_rows[rows], out=dx_rows[rows])
        return (column_sums(dx_rows[rows]),)

    (dbias,) = sum_over_blocks(block, dx_rows)
    return dx, dbias


def write_limits(far: float, x: Array, y: Array, slope: Array) -> None:
    """Beyond +-far, where the formulas would be infinity times 0: y = x and slope 1 above, both 0 below."""
    above, below = x > far, x < -far
    np.copyto(y, x, where=above)
    np.copyto(y, -0.0, where=below)
    if slope.size:
        np.copyto(slope, 1, where=above)
        np.copyto(slope, 0, where=below)
