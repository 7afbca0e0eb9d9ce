"""Mean squared error, the loss of a regression.

    loss = 1/n sum_i (x_i - t_i)^2,        dx_i = 2/n (x_i - t_i),   dt_i = -dx_i

It is written with three operations, whose backwards multiply to the derivative above.
"""

from __future__ import annotations

from typing import Any

from minillm.autograd import Tensor
from minillm.errors import InputError, ShapeError
from minillm.ops.arithmetic import sub
from minillm.ops.reduce import mean, sum


def mse_loss(x: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """(x - target)^2, its mean, or its sum.

    Shapes: x and target (...), the same: a target (N,) against (N, 1) would be stretched to (N, N) without a word.
    reduction: "mean", "sum", or "none" for (...).
    Raises: ShapeError where the shapes differ; InputError for an unknown reduction.
    """
    if reduction not in ("mean", "sum", "none"):
        raise InputError(f"mse_loss: reduction is {reduction!r}; choose 'mean', 'sum' or 'none'")
    difference = sub(x, target)
    shapes = {getattr(operand, "shape", ()) for operand in (x, target)}
    if shapes != {difference.shape}:
        raise ShapeError(f"mse_loss: x has shape {x.shape}, but target has shape {getattr(target, 'shape', ())}")
    squares = difference * difference  # (...)
    return {"mean": mean, "sum": sum}[reduction](squares) if reduction != "none" else squares
