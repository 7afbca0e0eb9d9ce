"""Mean squared error of n numbers x against their targets t, the loss of a regression.

    difference_i = x_i - t_i        square_i = difference_i^2        loss = sum(square) / n

Backward, with dloss the gradient of the loss:

    dsquare_i = dloss / n    ddifference_i = 2 difference_i dsquare_i    dx_i = ddifference_i    dt_i = -ddifference_i

It is made of three operations, whose backwards are these lines from left to right.
"""

from __future__ import annotations

from typing import Any

from minillm.autograd import Tensor
from minillm.errors import InputError, ShapeError
from minillm.ops.arithmetic import sub
from minillm.ops.reduce import mean, sum


def mse_loss(x: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """The squares (x - target)^2, their mean, or their sum.

    Shapes: x and target (...), the same: a target (N,) against (N, 1) would be stretched to (N, N) without a word.
    reduction: "mean", "sum", or "none" for (...).
    Saves: x - target.
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
