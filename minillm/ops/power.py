"""Powers and roots, elementwise.

    y = a^b          da = dy b a^(b - 1)          db = dy a^b ln a
    y = sqrt(x)      dx = dy / (2 y)

Where the power is constant its slope is 0, though the formulas above may say 0 times infinity: a^0 = 1 for every a, and
0^b = 0 for every b > 0 (and 0^0 = 1).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.ops.arithmetic import Operands
from minillm.ops.broadcast import stretched
from minillm.ops.create import as_tensor
from minillm.ops.operands import floats, is_number, operands

__all__ = ["pow", "reciprocal", "rsqrt", "sqrt", "square"]


class Output(NamedTuple):
    """Everything that the forward keeps for the backward."""

    y: Array  # (...)


def pow_forward(a, b):
    y = np.power(a, b)  # (...)
    return y, Operands(a, b)


def pow_backward(dy, saved):
    a, b = saved
    da = None if is_number(a) else dy * slope_of_base(a, b)  # (...)
    db = None if is_number(b) else dy * slope_of_exponent(a, b, dy.dtype)  # (...)
    return da, db


def slope_of_base(a, b):
    """b a^(b - 1), but 0 for b = 0."""
    if is_number(b):
        return b * np.power(a, b - 1) if b else np.zeros_like(a)  # (...)
    return np.where(np.equal(b, 0), 0, b * np.power(a, b - 1))  # (...)


def slope_of_exponent(a, b, dtype):
    """a^b ln a, but 0 for a = 0 and b >= 0."""
    constant = np.logical_and(np.equal(a, 0), np.greater_equal(b, 0))  # (...)
    return np.where(constant, 0, np.power(a, b) * np.log(a, dtype=dtype))  # (...)


POW = Op("pow", pow_forward, pow_backward)


def pow(x: Any, y: Any) -> Tensor:
    """x to the power y, elementwise with broadcasting; the gradient of y needs x >= 0. Saves: references to both."""
    return POW(*stretched("pow", *operands(x, y, "pow")))


def sqrt_forward(x):
    y = np.sqrt(x)  # (...)
    return y, Output(y)


def sqrt_backward(dy, saved):
    dx = dy / (2 * saved.y)  # (...)
    return (dx,)


SQRT = Op("sqrt", sqrt_forward, sqrt_backward)


def sqrt(x: Any) -> Tensor:
    """The square root, elementwise. Saves: the result."""
    return SQRT(floats(x, "sqrt"))


def square(x: Any) -> Tensor:
    """x^2, elementwise."""
    x = as_tensor(x)
    return x * x


def reciprocal(x: Any) -> Tensor:
    """1 / x, elementwise."""
    return 1 / floats(x, "reciprocal")


def rsqrt(x: Any) -> Tensor:
    """1 / sqrt(x), elementwise."""
    return 1 / sqrt(floats(x, "rsqrt"))
