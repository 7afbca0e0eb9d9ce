"""The sigmoid linear unit (Elfwing et al. 2017, arXiv:1702.03118), also called swish.

    s = 1 / (1 + e^-x)      the logistic function
    y = x s

Backward. x acts on y directly, and through s, whose slope is ds/dx = s (1 - s):

    dx = dy (s + x s (1 - s)) = dy s (1 + x (1 - s))

Far from 0, where s or 1 - s is 0 to every digit, x itself may be infinite and the product NaN: there the formulas take
the nearest x that is not so far.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.errors import check_floating

FAR = 1000  # e^-1000 is 0 in double precision


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    x: Array  # (...)
    s: Array  # (...)


def silu_forward(x):
    s = 1 / (1 + np.exp(-x))  # (...)
    y = np.maximum(x, -FAR) * s  # (...)
    return y, Saved(x, s)


def silu_backward(dy, saved):
    x, s = saved
    near = np.clip(x, -FAR, FAR)  # (...)
    dx = dy * s * (1 + near * (1 - s))  # (...)
    return (dx,)


SILU = Op("silu", silu_forward, silu_backward)


def silu(x: Tensor) -> Tensor:
    """x / (1 + e^-x), elementwise.

    Shapes: x and the result (...).
    Saves: the slope dy/dx, an array like x; on a GPU, a reference to x; by the plain formula, x and s.
    Raises: DtypeError where x is not floating.
    Source: Elfwing et al. 2017, section 2.
    """
    check_floating("silu", x=x)
    return SILU(x)
