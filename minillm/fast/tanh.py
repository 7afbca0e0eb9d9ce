"""The hyperbolic tangent of a large array, in row blocks on every thread, with one pass of memory in each direction."""

from __future__ import annotations

import numpy as np

from minillm.backend import elementwise
from minillm.ops.power import Output


def forward(x):
    """y = tanh x, in the shape of x."""
    y = elementwise(np.tanh, x)
    return y, Output(y)


def backward(dy, saved):
    """dx = dy (1 - y^2)."""
    return (elementwise(gradient, saved.y, dy),)


def gradient(y, dy, out=None):
    """dy (1 - y^2)."""
    square = np.multiply(y, y, out=out)
    slope = np.subtract(1, square, out=out)
    return np.multiply(slope, dy, out=out)
