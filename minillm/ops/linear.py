"""The linear layer y = x weight^T + bias.

`weight` is (out, in), PyTorch's layout: each of its rows holds the weights of one output channel. With the rows of x as
N examples, X (N, in) and Y (N, out), Y = X weight^T + 1 bias^T, where 1 is a column of N ones. By the rules of the
matrix product (ops/matmul.py)

    dX = dY weight     (N, in)        dweight = dY^T X     (out, in)        dbias = sum over the rows of dY     (out,)

A layer whose weight and bias are frozen has the first of these alone: ops/frozen_linear.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_rows, matmul
from minillm.errors import check_floating, check_shapes
from minillm.ops.frozen_linear import FROZEN_LINEAR


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    x: Array  # (..., in)
    weight: Array  # (out, in)
    has_bias: bool


def linear_forward(x, weight, bias):
    y = matmul(x, weight.T)  # (..., out)
    if bias is not None:
        y = y + bias  # (..., out)
    return y, Saved(x, weight, bias is not None)


def linear_backward(dy, saved):
    x, weight, has_bias = saved
    x_rows, dy_rows = as_rows(x), as_rows(dy)  # (N, in), (N, out)
    dx = matmul(dy, weight)  # (..., in)
    dweight = matmul(dy_rows.T, x_rows)  # (out, in)
    dbias = dy_rows.sum(axis=0) if has_bias else None  # (out,)
    return dx, dweight, dbias


LINEAR = Op("linear", linear_forward, linear_backward)


def linear(x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    """y = x weight^T + bias.

    Shapes: x (..., in), weight (out, in), bias (out,) or None; result (..., out).
    Saves: x and a reference to the weight; where neither weight nor bias needs a gradient, the reference alone.
    Raises: ShapeError naming both sizes where they differ.
    """
    check_shapes("linear", x=("... in", x), weight=("out in", weight), bias=("out", bias))
    check_floating("linear", x=x, weight=weight, bias=bias)
    trained = any(isinstance(one, Tensor) and one.requires_grad for one in (weight, bias))
    return LINEAR(x, weight, bias) if trained else FROZEN_LINEAR(x, weight, bias)
