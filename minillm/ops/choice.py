"""Choices between operands, elementwise. The gradient of an element goes to the operand that it was taken from.

    y = a where the condition holds, else b
    y = the larger (smaller) of a and b; two that are equal get half of the gradient each
    y = x limited to [low, high]: x passes its gradient on within, the limits included; beyond, the limit gets it

A tie has no one slope: half is what a difference on both sides measures.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_array
from minillm.device import like
from minillm.ops.arithmetic import Operands
from minillm.ops.broadcast import stretched
from minillm.ops.create import as_tensor
from minillm.ops.operands import in_one_dtype, is_number, operands

__all__ = ["clamp", "clamp_max", "clamp_min", "clip", "maximum", "minimum", "where"]


class Choice(NamedTuple):
    """Everything that the forward keeps for the backward."""

    condition: Array  # (...), booleans
    a_is_number: bool
    b_is_number: bool


class Limited(NamedTuple):
    """The arrays that the forward keeps: x, and its limits, each an array, a number, or None for no limit."""

    x: Array  # (...)
    low: Any  # (...)
    high: Any  # (...)


def where_forward(condition, a, b):
    y = np.where(condition, a, b)  # (...)
    return y, Choice(condition, is_number(a), is_number(b))


def where_backward(dy, saved):
    condition, a_is_number, b_is_number = saved
    da = None if a_is_number else np.where(condition, dy, 0)  # (...)
    db = None if b_is_number else np.where(condition, 0, dy)  # (...)
    return None, da, db


WHERE = Op("where", where_forward, where_backward)


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where the condition holds, else y, elementwise with broadcasting. Saves: the condition, a byte an element."""
    condition = condition.data if isinstance(condition, Tensor) else as_array(condition)
    x, y = operands(x, y, "where")
    for choice in (x, y):
        if isinstance(choice, Tensor):
            condition = like(condition, choice.data)
    return WHERE(*stretched("where", condition.astype(bool, copy=False), x, y))


def maximum_forward(a, b):
    y = np.maximum(a, b)  # (...)
    return y, Operands(a, b)


def maximum_backward(dy, saved):
    return split_between(dy, saved, np.less)  # (...) each


MAXIMUM = Op("maximum", maximum_forward, maximum_backward)


def maximum(x: Any, y: Any) -> Tensor:
    """The larger of x and y, elementwise with broadcasting; NaN where either is. Saves: references to both."""
    return MAXIMUM(*stretched("maximum", *operands(x, y, "maximum")))


def minimum_forward(a, b):
    y = np.minimum(a, b)  # (...)
    return y, Operands(a, b)


def minimum_backward(dy, saved):
    return split_between(dy, saved, np.greater)  # (...) each


MINIMUM = Op("minimum", minimum_forward, minimum_backward)


def minimum(x: Any, y: Any) -> Tensor:
    """The smaller of x and y, elementwise with broadcasting; NaN where either is. Saves: references to both."""
    return MINIMUM(*stretched("minimum", *operands(x, y, "minimum")))


def split_between(dy, saved, loses):
    """The gradient for the operand that does not lose, halved where both are equal. Beside a NaN neither loses."""
    a, b = saved
    share = np.where(np.equal(a, b), dy / 2, dy)  # (...)
    da = None if is_number(a) else np.where(loses(a, b), 0, share)  # (...)
    db = None if is_number(b) else np.where(loses(b, a), 0, share)  # (...)
    return da, db


def clip_forward(x, low, high):
    y = np.clip(x, low, high)  # (...)
    return y, Limited(x, low, high)


def clip_backward(dy, saved):
    inside, below, above = sides(*saved)
    dx = np.where(inside, dy, 0)  # (...)
    dlow = None if is_number(saved.low) else np.where(below, dy, 0)  # (...)
    dhigh = None if is_number(saved.high) else np.where(above, dy, 0)  # (...)
    return dx, dlow, dhigh


def sides(x, low, high):
    """Which of x, low and high the output of clip is. Of two limits that are crossed it is the upper one."""
    inside, below, above = np.ones_like(x, bool), np.zeros_like(x, bool), np.zeros_like(x, bool)  # (...)
    if low is not None:
        inside, below = inside & (x >= low), x < low  # (...)
    if high is not None:
        inside, above = inside & (x <= high), x > high  # (...)
    if low is not None and high is not None:
        crossed = np.less(high, low)  # (...)
        below, above = below & np.less(low, high), above | crossed  # (...)
    return inside, below, above


CLIP = Op("clip", clip_forward, clip_backward)


def clip(x: Any, min: Any = None, max: Any = None) -> Tensor:
    """x limited to [min, max], each a number, a tensor that broadcasts against x, or None for no limit.

    The gradient goes to x where it is inside, the limits included, else to the limit that it met.
    Saves: references to all three.
    """
    x = as_tensor(x)
    low, high = (None if limit is None else operands(x, limit)[1] for limit in (min, max))
    return CLIP(*stretched("clip", *in_one_dtype(x, low, high)))


clamp = clip


def clamp_min(x: Any, min: Any) -> Tensor:
    """x, but nowhere below min."""
    return clip(x, min)


def clamp_max(x: Any, max: Any) -> Tensor:
    """x, but nowhere above max."""
    return clip(x, None, max)
