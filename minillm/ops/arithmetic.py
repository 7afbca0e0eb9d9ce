"""Elementwise arithmetic. For one element, each rule is a line of school calculus times dy, the gradient of the result:

    y = a + b      da = dy              db = dy
    y = a - b      da = dy              db = -dy
    y = -x         dx = -dy
    y = a b        da = dy b            db = dy a
    y = a / b      da = dy / b          db = -dy a / b^2

Tensors of two shapes are stretched to one before (see broadcast.py). A Python number has no gradient: None.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.errors import DtypeError
from minillm.ops.broadcast import stretched
from minillm.ops.operands import in_float32, is_boolean, is_number, operand, operands

__all__ = ["add", "div", "lerp", "mul", "neg", "sub"]


class Operands(NamedTuple):
    """Everything that the forward keeps for the backward: two operands, each an array or a Python number."""

    a: Any  # (...)
    b: Any  # (...)


def add_forward(a, b):
    y = np.add(a, b)  # (...)
    return y, None


def add_backward(dy, saved):
    return dy, dy  # (...), (...)


ADD = Op("add", add_forward, add_backward, aliases=True)


def add(x: Any, y: Any) -> Tensor:
    """x + y, elementwise with broadcasting."""
    return ADD(*stretched("add", *operands(x, y, "add")))


def sub_forward(a, b):
    y = np.subtract(a, b)  # (...)
    return y, None


def sub_backward(dy, saved):
    return dy, -dy  # (...), (...)


SUB = Op("sub", sub_forward, sub_backward, aliases=True)


def sub(x: Any, y: Any) -> Tensor:
    """x - y, elementwise with broadcasting."""
    x, y = operands(x, y, "sub")
    if is_boolean(x) and is_boolean(y):
        raise DtypeError("sub: both operands are booleans, which have no difference; write x ^ y, or x & ~y")
    return SUB(*stretched("sub", x, y))


def neg_forward(x):
    y = np.negative(x)  # (...)
    return y, None


def neg_backward(dy, saved):
    return (-dy,)  # (...)


NEG = Op("neg", neg_forward, neg_backward)


def neg(x: Any) -> Tensor:
    """-x, elementwise."""
    x = operand(x, "neg")
    if is_boolean(x):
        raise DtypeError("neg: the operand holds booleans, which have no negative; write ~x for not")
    return NEG(x)


def mul_forward(a, b):
    y = np.multiply(a, b)  # (...)
    return y, Operands(a, b)


def mul_backward(dy, saved):
    a, b = saved
    da = None if is_number(a) else dy * b  # (...)
    db = None if is_number(b) else dy * a  # (...)
    return da, db


MUL = Op("mul", mul_forward, mul_backward)


def mul(x: Any, y: Any) -> Tensor:
    """x y, elementwise with broadcasting. Saves: references to both."""
    return MUL(*stretched("mul", *operands(x, y, "mul")))


def div_forward(a, b):
    y = np.divide(a, b)  # (...)
    return y, Operands(a, b)


def div_backward(dy, saved):
    a, b = saved
    da = None if is_number(a) else dy / b  # (...)
    db = None if is_number(b) else -dy * (a / b / b)  # (...), not a / b^2: b^2 may overflow, or be 0
    return da, db


DIV = Op("div", div_forward, div_backward)


def div(x: Any, y: Any) -> Tensor:
    """x / y, elementwise with broadcasting; the quotient of two whole numbers is float32. Saves: references to both."""
    x, y = operands(x, y, "div")
    if all(one.dtype.kind in "iub" for one in (x, y) if hasattr(one, "dtype")):
        x, y = in_float32(x, y)
    return DIV(*stretched("div", x, y))


def lerp(x: Any, end: Any, weight: Any) -> Tensor:
    """x + weight (end - x): from x at weight 0 to end at weight 1."""
    return x + weight * (end - x)
