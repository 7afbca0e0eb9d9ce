"""The linear layer on a GPU: cuBLAS for the products, kernels/column_sums.cu for the bias.

Generating a token multiplies a few rows with the weight, which kernels/decode.cu reads once.
"""

from __future__ import annotations

import numpy as np

from minillm.backend import Product, as_rows, contiguous, matmuls
from minillm.cuda import get_kernel
from minillm.cuda.launch import sum_rows
from minillm.ops.linear import Saved

KERNEL = "column_sums"
GEMV_ROWS = (1, 2, 4, 8)  # numbers of rows of x for which decode.cu has a kernel


def forward(x, weight, bias):
    """y = x weight^T + bias, (..., out), for x (..., in)."""
    rows = x.size // x.shape[-1] if x.size else 0
    if rows not in GEMV_ROWS or x.dtype != weight.dtype or not weight.flags.c_contiguous or not len(weight):
        (y,) = matmuls(Product(as_rows(x), weight.T, bias=bias))  # (rows, out)
    else:
        y = np.empty_like(x, shape=(rows, len(weight)), order="C")
        sizes = np.int32(len(weight)), np.int32(x.shape[-1])
        gemv = get_kernel("decode.cu", "gemv", x.dtype, rows)
        gemv(-(-len(weight) // 4), 128, (contiguous(x), weight, y, *sizes))
        if bias is not None:
            np.add(y, bias, out=y)
    return y.reshape(*x.shape[:-1], len(weight)), Saved(x, weight, bias is not None)


def backward(dy, saved, into=(None, None, None)):
    """dx (..., in), dweight (out, in) and dbias (out,)."""
    x, weight, has_bias = saved
    dy_rows, x_rows = contiguous(as_rows(dy)), as_rows(x)
    dx, dweight = matmuls(Product(dy_rows, weight), Product(dy_rows.T, x_rows, *(into[1] or ())))
    return dx.reshape(x.shape), dweight, sum_rows(dy_rows, dy.dtype) if has_bias else None
