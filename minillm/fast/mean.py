"""Means on a CPU, right to seven digits in float32 however many elements they add (see sums.py)."""

from __future__ import annotations

from minillm.ops.reduce import Reduced
from minillm.ops.reduce import mean_backward as backward
from minillm.sums import sum_over

__all__ = ["backward", "forward"]


def forward(x, *, axis, keepdims):
    """y is the mean of x along the axes, in the dtype of x; its shape lacks them, or has 1 there with keepdims."""
    total = sum_over(x, axis, keepdims)
    y = (total / (x.size // (total.size or 1))).astype(x.dtype, copy=False)
    return y, Reduced(x.shape, axis, keepdims)
