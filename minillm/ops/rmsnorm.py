"""Root-mean-square normalisation (Zhang, Sennrich 2019, arXiv:1910.07467): layer norm without the mean.

Forward, for one row x of C channels:

    rstd = 1 / sqrt(1/C sum x^2 + eps),   norm = x rstd,   y = norm * weight

Backward, with dnorm = dy * weight and d rstd / d x_j = -rstd^2 norm_j / C:

    dx      = rstd (dnorm - norm mean(dnorm * norm))
    dweight = sum over rows of dy * norm
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_rows, contiguous, row_blocks, sum_over_blocks
from minillm.cuda import get_kernel
from minillm.cuda.launch import BLOCKS, SHARED_LIMIT, blocks_that_sum, shared_bytes, sum_rows, threads_of_row
from minillm.errors import check_floating, check_shapes
from minillm.sums import column_sums, vecdot


class Saved(NamedTuple):
    """The input, the weight, and one number per row."""

    x: Array
    weight: Array
    rstd: Array


def rmsnorm_forward(x, weight, *, eps):
    out = np.empty_like(x, order="C")
    x_rows, y = as_rows(x), as_rows(out)
    rstd = np.empty_like(x, shape=(len(y), 1))

    def formula(rows):
        mean_square = vecdot(x_rows[rows], x_rows[rows])[:, None] / y.shape[-1]
        np.divide(1, np.sqrt(mean_square + eps), out=rstd[rows])
        np.multiply(x_rows[rows], rstd[rows], out=y[rows])
        y[rows] *= weight

    row_blocks(formula, y)
    return out, Saved(x, weight, rstd)


def rmsnorm_backward(dout, saved):
    x, weight, rstd = saved
    dx = np.empty_like(x, order="C")
    x_rows, dy, dx_rows = as_rows(x), as_rows(dout), as_rows(dx)
    channels = x.shape[-1]

    def formula(rows):
        norm = x_rows[rows] * rstd[rows]
        dweight = column_sums(np.multiply(dy[rows], norm, out=dx_rows[rows]))
        dnorm = np.multiply(dy[rows], weight, out=dx_rows[rows])
        norm *= vecdot(dnorm, norm)[:, None] / channels
        dnorm -= norm
        dnorm *= rstd[rows]
        return (dweight,)

    (dweight,) = sum_over_blocks(formula, dy)
    return dx, dweight


def rmsnorm_forward_cuda(x, weight, *, eps):
    if x.size == 0 or weight.dtype != x.dtype or shared_bytes(x, sums=1) > SHARED_LIMIT:
        return NotImplemented
    x, weight = contiguous(x), contiguous(weight)
    rows, columns = as_rows(x).shape
    out, rstd = np.empty_like(x), np.empty_like(x, shape=rows, dtype=np.promote_types(x.dtype, np.float32))
    arguments = (x, weight, out, rstd, np.int64(rows), np.int32(columns), rstd.dtype.type(eps))
    kernel = get_kernel("rmsnorm.cu", "rmsnorm_forward", x.dtype)
    kernel(min(rows, BLOCKS), threads_of_row(x), arguments)
    return out, Saved(x, weight, rstd)


def rmsnorm_backward_cuda(dout, saved):
    x, weight, rstd = saved
    rows, columns = as_rows(x).shape
    dx = np.empty_like(x)
    partial = np.empty_like(rstd, shape=(blocks_that_sum(rows), columns))  # each block's sums over its rows
    arguments = (contiguous(dout), x, weight, rstd, dx, partial, np.int64(rows), np.int32(columns))
    kernel = get_kernel("rmsnorm.cu", "rmsnorm_backward", x.dtype)
    kernel(len(partial), threads_of_row(x), arguments, shared_bytes(x, sums=1))
    return dx, sum_rows(partial, x.dtype)


RMSNORM = Op("rmsnorm", rmsnorm_forward, rmsnorm_backward, cuda=(rmsnorm_forward_cuda, rmsnorm_backward_cuda))


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last axis.

    Shapes: x (..., C), weight (C,) or None for ones.
    Units: eps is in units of x squared.
    Saves: a reference to x, and one number per row.
    Raises: ShapeError where C differs.
    Source: Zhang, Sennrich 2019, equation 4.
    """
    check_shapes("rms_norm", x=("... C", x), weight=("C", weight))
    check_floating("rms_norm", x=x, weight=weight)
    if weight is None:
        weight = Tensor(np.ones_like(x.data, shape=x.shape[-1:]))
    return RMSNORM(x, weight, eps=eps)
