"""x // y and x % y: the quotient rounded down, and what is left over.

    x % y = x - y floor(x / y)

which has the sign of y. Between the jumps of the floor it is a straight line in x and in y:

    dx = dout        dy = -dout floor(x / y)

The floor itself is flat between its jumps, so x // y has no gradient at all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.device import is_on_gpu
from minillm.errors import InputError
from minillm.ops.arithmetic import operands, shape_of, unbroadcast


class Saved(NamedTuple):
    """Both operands, each an array or a Python number."""

    x: Any
    y: Any


def remainder_forward(x, y):
    with np.errstate(divide="ignore", invalid="ignore"):  # x % 0 is NaN
        return np.remainder(x, y), Saved(x, y)


def remainder_backward(dout, saved):
    x, y = saved
    dx = unbroadcast(dout, shape_of(x))
    dy = None
    if shape_of(y) is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            dy = unbroadcast(-dout * np.floor_divide(x, y), y.shape)
    return dx, dy


REMAINDER = Op("remainder", remainder_forward, remainder_backward, aliases=True)


def remainder(x: Any, y: Any) -> Tensor:
    """x % y = x - y floor(x / y), elementwise with broadcasting; it has the sign of y, as in Python.

    Raises: InputError for whole numbers modulo 0.
    """
    return REMAINDER(*_divisible("remainder", x, y))


def floor_divide(x: Any, y: Any) -> Tensor:
    """x // y = floor(x / y), elementwise with broadcasting. It has no gradient: it is flat between its jumps.

    Raises: InputError for whole numbers divided by 0.
    """
    x, y = _divisible("floor_divide", x, y)
    with np.errstate(divide="ignore", invalid="ignore"):  # 1 // 0 is infinite, 0 // 0 NaN
        return Tensor(np.floor_divide(*(one.data if isinstance(one, Tensor) else one for one in (x, y))))


def _divisible(function: str, x: Any, y: Any) -> tuple[Any, Any]:
    x, y = operands(x, y, function)
    divisor = y.data if isinstance(y, Tensor) else y
    dtypes = [one.dtype for one in (x, y) if hasattr(one, "dtype")]
    if all(dtype.kind in "iub" for dtype in dtypes) and not is_on_gpu(divisor) and np.any(np.equal(divisor, 0)):
        raise InputError(f"{function}: whole numbers are divided by 0; divide floats, where that is infinite or NaN")
    return x, y
