"""Broadcasting on a CPU: the sums of the backward are right to seven digits, however many they add (see sums.py)."""

from __future__ import annotations

from minillm.ops.broadcast import broadcast_forward as forward
from minillm.ops.broadcast import stretched_axes
from minillm.sums import sum_over

__all__ = ["backward", "forward", "unbroadcast"]


def backward(dy, saved):
    """dx: dy summed over the axes along which x was stretched."""
    return (unbroadcast(dy, saved.shape),)


def unbroadcast(gradient, shape):
    """Sum a gradient over the axes along which an array of `shape` was stretched."""
    if gradient.shape == shape:
        return gradient
    total = sum_over(gradient, stretched_axes(shape, gradient.shape))
    return total.astype(gradient.dtype, copy=False).reshape(shape)
