"""Exponentials and logarithms, elementwise.

y = e^x             dx = dy y
y = e^x - 1         dx = dy e^x
y = ln x            dx = dy / x
y = log2 x          dx = dy / (x ln 2), since log2 x = ln x / ln 2; and so for log10
y = ln(1 + x)       dx = dy / (1 + x)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.ops.choice import maximum
from minillm.ops.operands import floats
from minillm.ops.power import Output
from minillm.ops.rounding import abs

__all__ = ["exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "logaddexp", "logit"]


class Input(NamedTuple):
    """Everything that the forward keeps for the backward."""

    x: Array  # (...)


def exp_forward(x):
    y = np.exp(x)  # (...)
    return y, Output(y)


def exp_backward(dy, saved):
    dx = dy * saved.y  # (...)
    return (dx,)


EXP = Op("exp", exp_forward, exp_backward)


def exp(x: Any) -> Tensor:
    """e to the power x, elementwise. Saves: the result."""
    return EXP(floats(x, "exp"))


def expm1_forward(x):
    y = np.expm1(x)  # (...)
    return y, Input(x)


def expm1_backward(dy, saved):
    dx = dy * np.exp(saved.x)  # (...)
    return (dx,)


EXPM1 = Op("expm1", expm1_forward, expm1_backward)


def expm1(x: Any) -> Tensor:
    """e^x - 1, elementwise, exact where x is so small that e^x rounds to 1. Saves: a reference to x."""
    return EXPM1(floats(x, "expm1"))


def log_forward(x):
    y = np.log(x)  # (...)
    return y, Input(x)


def log_backward(dy, saved):
    dx = dy / saved.x  # (...)
    return (dx,)


LOG = Op("log", log_forward, log_backward)


def log(x: Any) -> Tensor:
    """The natural logarithm, elementwise. Saves: a reference to x."""
    return LOG(floats(x, "log"))


def log2_forward(x):
    y = np.log2(x)  # (...)
    return y, Input(x)


def log2_backward(dy, saved):
    dx = dy / (saved.x * math.log(2))  # (...)
    return (dx,)


LOG2 = Op("log2", log2_forward, log2_backward)


def log2(x: Any) -> Tensor:
    """The logarithm to base 2, elementwise. Saves: a reference to x."""
    return LOG2(floats(x, "log2"))


def log10_forward(x):
    y = np.log10(x)  # (...)
    return y, Input(x)


def log10_backward(dy, saved):
    dx = dy / (saved.x * math.log(10))  # (...)
    return (dx,)


LOG10 = Op("log10", log10_forward, log10_backward)


def log10(x: Any) -> Tensor:
    """The logarithm to base 10, elementwise. Saves: a reference to x."""
    return LOG10(floats(x, "log10"))


def log1p_forward(x):
    y = np.log1p(x)  # (...)
    return y, Input(x)


def log1p_backward(dy, saved):
    dx = dy / (1 + saved.x)  # (...)
    return (dx,)


LOG1P = Op("log1p", log1p_forward, log1p_backward)


def log1p(x: Any) -> Tensor:
    """ln(1 + x), elementwise, exact where x is so small that 1 + x rounds to 1. Saves: a reference to x."""
    return LOG1P(floats(x, "log1p"))


# --- made of others ------------------------------------------------------------------------------------------------


def exp2(x: Any) -> Tensor:
    """2 to the power x, elementwise."""
    return exp(floats(x, "exp2") * math.log(2))


def logaddexp(x: Any, y: Any) -> Tensor:
    """ln(e^x + e^y), elementwise, without overflow for finite numbers: the larger, and what the smaller adds."""
    x, y = floats(x, "logaddexp"), floats(y, "logaddexp")
    return maximum(x, y) + log1p(exp(-abs(x - y)))


def logit(x: Any) -> Tensor:
    """ln(x / (1 - x)), the inverse of the sigmoid."""
    x = floats(x, "logit")
    return log(x) - log1p(-x)
