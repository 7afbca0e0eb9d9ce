"""The linear layer on a CPU: both products of the backward are handed to the threads together.

A hand-over takes as long as a product of 256 x 256 matrices, so it is paid once. dweight is written, or added, where
the weight's gradient is to be, which saves a pass over it.
"""

from __future__ import annotations

from minillm.backend import Product, as_rows, matmuls
from minillm.ops.linear import Saved
from minillm.sums import column_sums


def forward(x, weight, bias):
    """y = x weight^T + bias, (..., out), for x (..., in)."""
    (y,) = matmuls(Product(as_rows(x), weight.T, bias=bias))  # (rows, out)
    return y.reshape(*x.shape[:-1], len(weight)), Saved(x, weight, bias is not None)  # (..., out)


def backward(dy, saved, into=(None, None, None)):
    """dx (..., in), dweight (out, in) and dbias (out,)."""
    x, weight, has_bias = saved
    dy_rows, x_rows = as_rows(dy), as_rows(x)  # (rows, out), (rows, in)
    products = Product(dy_rows, weight), Product(dy_rows.T, x_rows, *(into[1] or ()))
    dx, dweight = matmuls(*products)  # (rows, in), (out, in)
    dbias = column_sums(dy_rows) if has_bias else None  # (out,)
    return dx.reshape(x.shape), dweight, dbias
