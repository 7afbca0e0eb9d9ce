"""Layer normalisation (Ba, Kiros, Hinton 2016, arXiv:1607.06450).

Forward, for one row x of C channels:

    mean = 1/C sum x,   var = 1/C sum (x - mean)^2,   rstd = 1 / sqrt(var + eps)
    norm = (x - mean) rstd
    y    = norm * weight + bias

Backward. Let dnorm = dy * weight. mean and rstd depend on every x_j:

    d norm_i / d x_j = rstd (1[i=j] - 1/C) - norm_i norm_j rstd / C

(the first part from x_i - mean; the second from d rstd / d x_j = -rstd^3 (x_j - mean) / C = -rstd^2 norm_j / C).
Summing dnorm_i over i:

    dx      = rstd (dnorm - mean(dnorm) - norm mean(dnorm * norm))
    dweight = sum over rows of dy * norm
    dbias   = sum over rows of dy

norm is computed again from x, mean and rstd: it costs two passes in cache and saves an array as large as x.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_rows, contiguous, row_blocks, sum_over_blocks
from minillm.errors import check_floating, check_shapes
from minillm.kernels import get_kernel
from minillm.ops.launch import BLOCKS, SHARED_LIMIT, shared_bytes, sum_rows, threads_of_row


class Saved(NamedTuple):
    """The input, the weight, and two numbers per row."""

    x: Array
    weight: Array
    mean: Array
    rstd: Array
    has_bias: bool


def layernorm_forward(x, weight, bias, *, eps):
    out = np.empty_like(x, order="C")
    x_rows, y = as_rows(x), as_rows(out)
    mean, rstd = np.empty_like(x, shape=(2, len(y), 1))

    def formula(rows):
        np.mean(x_rows[rows], axis=-1, keepdims=True, out=mean[rows])
        norm = x_rows[rows] - mean[rows]
        variance = np.vecdot(norm, norm)[:, None] / norm.shape[-1]
        np.divide(1, np.sqrt(variance + eps), out=rstd[rows])
        norm *= rstd[rows]
        np.multiply(norm, weight, out=y[rows])
        if bias is not None:
            y[rows] += bias

    row_blocks(formula, y)
    return out, Saved(x, weight, mean, rstd, bias is not None)


def layernorm_backward(dout, saved):
    x, weight, mean, rstd, has_bias = saved
    dx = np.empty_like(x, order="C")
    x_rows, dy, dx_rows = as_rows(x), as_rows(dout), as_rows(dx)
    channels = x.shape[-1]

    def formula(rows):
        norm = x_rows[rows] - mean[rows]
        norm *= rstd[rows]
        dweight = np.einsum("nc,nc->c", dy[rows], norm)
        dbias = dy[rows].sum(axis=0)
        dnorm = np.multiply(dy[rows], weight, out=dx_rows[rows])
        projection = np.vecdot(dnorm, norm)[:, None] / channels
        dnorm -= dnorm.mean(axis=-1, keepdims=True)
        norm *= projection
        dnorm -= norm
        dnorm *= rstd[rows]
        return dweight, dbias

    dweight, dbias = sum_over_blocks(formula, dy)
    return dx, dweight, dbias if has_bias else None


def layernorm_forward_cuda(x, weight, bias, *, eps):
    b = np.zeros_like(weight) if bias is None else contiguous(bias)
    if x.size == 0 or {weight.dtype, b.dtype} != {x.dtype} or shared_bytes(x, sums=2) > SHARED_LIMIT:
        return NotImplemented
    x, weight = contiguous(x), contiguous(weight)
    rows, columns = as_rows(x).shape
    out = np.empty_like(x)
    mean, rstd = np.empty_like(x, shape=(2, rows), dtype=np.promote_types(x.dtype, np.float32))
    arguments = (x, weight, b, out, mean, rstd, np.int64(rows), np.int32(columns), mean.dtype.type(eps))
    kernel = get_kernel("layernorm.cu", "layernorm_forward", x.dtype)
    kernel(min(rows, BLOCKS), threads_of_row(x), arguments)
    return out, Saved(x, weight, mean, rstd, bias is not None)


def layernorm_backward_cuda(dout, saved):
    x, weight, mean, rstd, has_bias = saved
    rows, columns = as_rows(x).shape
    dx = np.empty_like(x)
    partial = np.empty_like(mean, shape=(min(rows, BLOCKS), 2 * columns))  # each block's sums over its rows
    arguments = (contiguous(dout), x, weight, mean, rstd, dx, partial, np.int64(rows), np.int32(columns))
    kernel = get_kernel("layernorm.cu", "layernorm_backward", x.dtype)
    kernel(len(partial), threads_of_row(x), arguments, shared_bytes(x, sums=2))
    dweight, dbias = sum_rows(partial, x.dtype).reshape(2, columns)
    return dx, dweight, dbias if has_bias else None


LAYERNORM = Op(
    "layernorm",
    layernorm_forward,
    layernorm_backward,
    cuda=(layernorm_forward_cuda, layernorm_backward_cuda),
)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last axis.

    Shapes: x (..., C), weight (C,), bias (C,) or None.
    Units: eps is in units of x squared; the variance is that of the population (divided by C).
    Saves: a reference to x, and two numbers per row.
    Raises: ShapeError, such as `layer_norm: weight has C=512, but x has C=768`.
    Source: Ba, Kiros, Hinton 2016, equation 4.
    """
    check_shapes("layer_norm", x=("... C", x), weight=("C", weight), bias=("C", bias))
    check_floating("layer_norm", x=x, weight=weight, bias=bias)
    return LAYERNORM(x, weight, bias, eps=eps)
