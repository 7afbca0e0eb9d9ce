"""Sine, cosine and tangent, elementwise.

y = sin x      dx = dy cos x
y = cos x      dx = -dy sin x
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.ops.exponential import Input
from minillm.ops.operands import floats

__all__ = ["cos", "sin", "tan"]


def sin_forward(x):
    y = np.sin(x)  # (...)
    return y, Input(x)


def sin_backward(dy, saved):
    dx = dy * np.cos(saved.x)  # (...)
    return (dx,)


SIN = Op("sin", sin_forward, sin_backward)


def sin(x: Any) -> Tensor:
    """The sine of x in radians, elementwise. Saves: a reference to x."""
    return SIN(floats(x, "sin"))


def cos_forward(x):
    y = np.cos(x)  # (...)
    return y, Input(x)


def cos_backward(dy, saved):
    dx = -dy * np.sin(saved.x)  # (...)
    return (dx,)


COS = Op("cos", cos_forward, cos_backward)


def cos(x: Any) -> Tensor:
    """The cosine of x in radians, elementwise. Saves: a reference to x."""
    return COS(floats(x, "cos"))


def tan(x: Any) -> Tensor:
    """The tangent of x in radians, elementwise."""
    return sin(x) / cos(x)
