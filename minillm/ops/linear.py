"""The linear layer y = x W^T + b.

W is (out, in), PyTorch's layout: each row of W holds the weights of one output channel. With the rows of x as N
examples, Y = X W^T + 1 b^T, and by the rules of the matrix product (ops/matmul.py)

    dX = dY W        dW = dY^T X        db = sum over the rows of dY
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm import backend
from minillm.autograd import Op, Tensor
from minillm.backend import Array, Product, as_rows, contiguous
from minillm.errors import check_floating, check_shapes
from minillm.kernels import get_kernel
from minillm.ops.launch import sum_rows
from minillm.sums import column_sums

GEMV_ROWS = (1, 2, 4, 8)  # of x, for which decode.cu reads the weight once, as generating a token does


class Saved(NamedTuple):
    """The input and the weight; whether there was a bias."""

    x: Array
    weight: Array
    has_bias: bool


def linear_forward(x, weight, bias):
    (out,) = backend.matmuls(Product(as_rows(x), weight.T, bias=bias))  # (rows, out)
    return out.reshape(*x.shape[:-1], len(weight)), Saved(x, weight, bias is not None)


def linear_forward_cuda(x, weight, bias):
    rows = x.size // x.shape[-1] if x.size else 0
    if rows not in GEMV_ROWS or x.dtype != weight.dtype or not weight.flags.c_contiguous or not len(weight):
        return linear_forward(x, weight, bias)
    out = np.empty_like(x, shape=(rows, len(weight)), order="C")
    sizes = np.int32(len(weight)), np.int32(x.shape[-1])
    gemv = get_kernel("decode.cu", "gemv", x.dtype, rows)
    gemv(-(-len(weight) // 4), 128, (contiguous(x), weight, out, *sizes))
    if bias is not None:
        np.add(out, bias, out=out)
    return out.reshape(*x.shape[:-1], len(weight)), Saved(x, weight, bias is not None)


def linear_backward(dout, saved, into=(None, None, None)):
    dy, x = as_rows(dout), as_rows(saved.x)
    # dW is written, or added, where the gradient is to be.
    dx, dweight = backend.matmuls(Product(dy, saved.weight), Product(dy.T, x, *(into[1] or ())))
    return dx.reshape(saved.x.shape), dweight, column_sums(dy) if saved.has_bias else None


def linear_backward_cuda(dout, saved, into=(None, None, None)):
    if not saved.has_bias:
        return linear_backward(dout, saved, into)
    dy = contiguous(as_rows(dout))
    dx, dweight, _ = linear_backward(dy, saved._replace(has_bias=False), into)
    return dx, dweight, sum_rows(dy, dy.dtype)


LINEAR = Op(
    "linear",
    linear_forward,
    linear_backward,
    cuda=(linear_forward_cuda, linear_backward_cuda),
    kernel="column_sums",
    writes_into=True,
)


def linear(x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    """y = x W^T + b.

    Shapes: x (..., in), weight (out, in), bias (out,) or None; result (..., out).
    Saves: x and a reference to the weight.
    Raises: ShapeError naming both sizes where they differ.
    """
    check_shapes("linear", x=("... in", x), weight=("out in", weight), bias=("out", bias))
    check_floating("linear", x=x, weight=weight, bias=bias)
    return LINEAR(x, weight, bias)
