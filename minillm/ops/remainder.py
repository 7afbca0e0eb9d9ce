"""y = a % b, what is left over of a division, and a // b, the quotient rounded down.

    y = a - b floor(a / b)

which has the sign of b. Between the jumps of the floor it is a straight line in a and in b:

    da = dy        db = -dy floor(a / b)

The floor itself is flat between its jumps, so a // b has no gradient at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.device import is_on_gpu
from minillm.errors import InputError
from minillm.grad_mode import quiet
from minillm.ops.arithmetic import Operands
from minillm.ops.broadcast import stretched
from minillm.ops.operands import is_number, operands

__all__ = ["floor_divide", "remainder"]


def remainder_forward(a, b):
    y = np.remainder(a, b)  # (...)
    return y, Operands(a, b)


def remainder_backward(dy, saved):
    a, b = saved
    db = None if is_number(b) else -dy * np.floor_divide(a, b)  # (...)
    return dy, db


REMAINDER = Op("remainder", remainder_forward, remainder_backward, aliases=True)


def remainder(x: Any, y: Any) -> Tensor:
    """x % y = x - y floor(x / y), elementwise with broadcasting; it has the sign of y, as in Python.

    Saves: references to both.
    Raises: InputError for whole numbers modulo 0.
    """
    return REMAINDER(*stretched("remainder", *_divisible("remainder", x, y)))


def floor_divide(x: Any, y: Any) -> Tensor:
    """x // y = floor(x / y), elementwise with broadcasting. It has no gradient: it is flat between its jumps.

    Raises: InputError for whole numbers divided by 0.
    """
    x, y = _divisible("floor_divide", x, y)
    with quiet():  # 1.0 // 0 is infinite, 0.0 // 0 is NaN
        return Tensor(np.floor_divide(*(one.data if isinstance(one, Tensor) else one for one in (x, y))))


def _divisible(function: str, x: Any, y: Any) -> tuple[Any, Any]:
    x, y = operands(x, y, function)
    divisor = y.data if isinstance(y, Tensor) else y
    dtypes = [one.dtype for one in (x, y) if hasattr(one, "dtype")]
    if all(dtype.kind in "iub" for dtype in dtypes) and not is_on_gpu(divisor) and np.any(np.equal(divisor, 0)):
        raise InputError(f"{function}: whole numbers are divided by 0; divide floats, where that is infinite or NaN")
    return x, y
