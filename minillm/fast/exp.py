"""The exponential of a large array, in row blocks on every thread."""

from __future__ import annotations

import numpy as np

from minillm.backend import elementwise
from minillm.ops.power import Output


def forward(x):
    """y = e^x, in the shape of x."""
    y = elementwise(np.exp, x)
    return y, Output(y)


def backward(dy, saved):
    """dx = dy y."""
    return (elementwise(np.multiply, dy, saved.y),)
