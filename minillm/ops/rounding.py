"""Signs, absolute values and rounding, elementwise.

    y = |x|        dx = dy sign(x), which is 0 at 0

sign, floor, ceil, round and trunc are flat between their steps: their gradient is 0, not absent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.ops.create import as_tensor

__all__ = ["abs", "absolute", "ceil", "floor", "round", "sign", "trunc"]


class Input(NamedTuple):
    """Everything that the forward keeps for the backward."""

    x: Array  # (...)


def signs(x):
    """-1, 0 or 1 in x's dtype; 0 for NaN, as in PyTorch."""
    return (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)  # (...)


def abs_forward(x):
    y = np.abs(x)  # (...)
    return y, Input(x)


def abs_backward(dy, saved):
    dx = dy * signs(saved.x)  # (...)
    return (dx,)


ABS = Op("abs", abs_forward, abs_backward)


def abs(x: Any) -> Tensor:
    """|x|, elementwise; the gradient at 0 is 0. Saves: a reference to x."""
    return ABS(as_tensor(x))


absolute = abs


def steps_forward(x, *, function):
    y = function(x)  # (...)
    return y, None


def steps_backward(dy, saved):
    dx = np.zeros_like(dy)  # (...)
    return (dx,)


SIGN, FLOOR, CEIL, ROUND, TRUNC = (
    Op(name, steps_forward, steps_backward) for name in ("sign", "floor", "ceil", "round", "trunc")
)


def sign(x: Any) -> Tensor:
    """-1, 0 or 1, elementwise, with a zero gradient."""
    return SIGN(as_tensor(x), function=signs)


def floor(x: Any) -> Tensor:
    """The largest whole number that is not above x, with a zero gradient."""
    return FLOOR(as_tensor(x), function=np.floor)


def ceil(x: Any) -> Tensor:
    """The smallest whole number that is not below x, with a zero gradient."""
    return CEIL(as_tensor(x), function=np.ceil)


def round(x: Any, decimals: int = 0) -> Tensor:
    """x rounded to `decimals` decimals, a half to the even neighbour, with a zero gradient."""
    return ROUND(as_tensor(x), function=lambda x: np.round(x, decimals))


def trunc(x: Any) -> Tensor:
    """The whole number towards zero, with a zero gradient."""
    return TRUNC(as_tensor(x), function=np.trunc)
