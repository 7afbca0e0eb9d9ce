"""The exponential of a large array, in row blocks on every thread."""

from __future__ import annotations

import numpy as np

from minillm.backend import elementwise
from minillm.ops.power import Output


def forward(x):
    y = elementwise(np.exp, x)
    return y, Output(y)


def backward(dy, saved):
    return (elementwise(np.multiply, dy, saved.y),)
