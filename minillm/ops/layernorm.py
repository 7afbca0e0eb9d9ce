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

In a residual stream x is itself a sum, which also goes on as it is. Added up here, x + residual takes no pass of its
own: a block of rows is summed and normalised while it is in cache. With dsum, the gradient that reaches the sum on its
other way, both terms have the gradient dx + dsum.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_rows, contiguous, row_blocks, sum_over_blocks
from minillm.cuda import get_kernel
from minillm.cuda.launch import BLOCKS, SHARED_LIMIT, blocks_that_sum, shared_bytes, sum_rows, threads_of_row
from minillm.errors import ShapeError, check_floating, check_shapes
from minillm.sums import column_sums, row_sums, vecdot


class Saved(NamedTuple):
    """The input (with a residual, the sum), the weight, and two numbers per row."""

    x: Array
    weight: Array
    mean: Array
    rstd: Array
    has_bias: bool


def layernorm_forward(x, weight, bias, residual=None, *, eps):
    if residual is not None:
        terms = as_rows(x), as_rows(residual)
        x = np.empty_like(x, order="C", dtype=np.promote_types(x.dtype, residual.dtype))  # from here on, the sum
    out = np.empty_like(x, order="C")
    x_rows, y = as_rows(x), as_rows(out)
    mean, rstd = np.empty_like(x, shape=(2, len(y), 1))

    def formula(rows):
        if residual is not None:
            np.add(terms[0][rows], terms[1][rows], out=x_rows[rows])
        np.divide(row_sums(x_rows[rows]), x.shape[-1], out=mean[rows])
        norm = x_rows[rows] - mean[rows]
        variance = vecdot(norm, norm)[:, None] / norm.shape[-1] + eps
        np.divide(np.sqrt(variance), variance, out=rstd[rows])  # NaN where the variance is infinite, and not 0
        norm *= rstd[rows]
        np.multiply(norm, weight, out=y[rows])
        if bias is not None:
            y[rows] += bias

    row_blocks(formula, y)
    return out if residual is None else (x, out), Saved(x, weight, mean, rstd, bias is not None)


def layernorm_backward(dout, saved):
    x, weight, mean, rstd, has_bias = saved
    has_residual = type(dout) is tuple
    dsum, dy = dout if has_residual else (None, dout)
    if dy is None:
        nothing = np.zeros_like(weight)
        return dsum, nothing, nothing if has_bias else None, dsum
    dx = np.empty_like(x, order="C")
    x_rows, dy, dx_rows = as_rows(x), as_rows(dy), as_rows(dx)
    dsum_rows = None if dsum is None else as_rows(dsum)
    channels = x.shape[-1]

    def formula(rows):
        norm = x_rows[rows] - mean[rows]
        norm *= rstd[rows]
        dweight = column_sums(np.multiply(dy[rows], norm, out=dx_rows[rows]))
        dbias = column_sums(dy[rows])
        dnorm = np.multiply(dy[rows], weight, out=dx_rows[rows])
        projection = vecdot(dnorm, norm)[:, None] / channels
        dnorm -= row_sums(dnorm) / channels
        norm *= projection
        dnorm -= norm
        dnorm *= rstd[rows]
        if dsum_rows is not None:
            dx_rows[rows] += dsum_rows[rows]
        return dweight, dbias

    dweight, dbias = sum_over_blocks(formula, dy)
    gradients = dx, dweight, dbias if has_bias else None
    return (*gradients, dx) if has_residual else gradients


def layernorm_forward_cuda(x, weight, bias, residual=None, *, eps):
    b = np.zeros_like(weight) if bias is None else contiguous(bias)
    r = x if residual is None else residual
    if x.size == 0 or {weight.dtype, b.dtype, r.dtype} != {x.dtype} or shared_bytes(x, sums=2) > SHARED_LIMIT:
        return NotImplemented
    x, weight = contiguous(x), contiguous(weight)
    rows, columns = as_rows(x).shape
    out = np.empty_like(x)
    mean, rstd = np.empty_like(x, shape=(2, rows), dtype=np.promote_types(x.dtype, np.float32))
    arguments: tuple = (out, mean, rstd, np.int64(rows), np.int32(columns), mean.dtype.type(eps))
    if residual is None:
        name, arguments = "layernorm_forward", (x, weight, b, *arguments)
    else:
        terms, x = (x, contiguous(residual)), np.empty_like(x)  # from here on, the sum
        name, arguments = "residual_layernorm_forward", (*terms, weight, b, x, *arguments)
    kernel = get_kernel("layernorm.cu", name, x.dtype)
    kernel(min(rows, BLOCKS), threads_of_row(x), arguments)
    return out if residual is None else (x, out), Saved(x, weight, mean, rstd, bias is not None)


def layernorm_backward_cuda(dout, saved):
    x, weight, mean, rstd, has_bias = saved
    has_residual = type(dout) is tuple
    dsum, dy = dout if has_residual else (None, dout)
    if dy is None:
        nothing = np.zeros_like(weight)
        return dsum, nothing, nothing if has_bias else None, dsum
    rows, columns = as_rows(x).shape
    dx = np.empty_like(x)
    partial = np.empty_like(mean, shape=(blocks_that_sum(rows), 2 * columns))  # each block's sums over its rows
    arguments: tuple = (x, weight, mean, rstd, dx, partial, np.int64(rows), np.int32(columns))
    if dsum is None:
        name, arguments = "layernorm_backward", (contiguous(dy), *arguments)
    else:
        name, arguments = "residual_layernorm_backward", (contiguous(dy), contiguous(dsum), *arguments)
    kernel = get_kernel("layernorm.cu", name, x.dtype)
    kernel(len(partial), threads_of_row(x), arguments, shared_bytes(x, sums=2))
    dweight, dbias = sum_rows(partial, x.dtype).reshape(2, columns)
    gradients = dx, dweight, dbias if has_bias else None
    return (*gradients, dx) if has_residual else gradients


LAYERNORM = Op(
    "layernorm",
    layernorm_forward,
    layernorm_backward,
    cuda=(layernorm_forward_cuda, layernorm_backward_cuda),
)
ADD_LAYERNORM = Op(
    "add_layernorm",
    layernorm_forward,
    layernorm_backward,
    cuda=(layernorm_forward_cuda, layernorm_backward_cuda),
    kernel="layernorm",
    aliases=True,  # both terms get one array
)


def _weight_or_ones(weight: Tensor | None, x: Tensor) -> Tensor:
    return Tensor(np.ones_like(x.data, shape=x.shape[-1:])) if weight is None else weight


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last axis.

    Shapes: x (..., C), weight (C,) or None for ones, bias (C,) or None.
    Units: eps is in units of x squared; the variance is that of the population (divided by C).
    Saves: a reference to x, and two numbers per row.
    Raises: ShapeError, such as `layer_norm: weight has C=512, but x has C=768`.
    Source: Ba, Kiros, Hinton 2016, equation 4.
    """
    check_shapes("layer_norm", x=("... C", x), weight=("C", weight), bias=("C", bias))
    check_floating("layer_norm", x=x, weight=weight, bias=bias)
    return LAYERNORM(x, _weight_or_ones(weight, x), bias, eps=eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """x + residual, and the layer norm of it: the step of a pre-norm block, in one pass over memory.

    Shapes: x and residual (..., C), weight (C,) or None for ones, bias (C,) or None; both results (..., C).
    Units: as in `layer_norm`.
    Saves: a reference to the sum, and two numbers per row.
    Raises: ShapeError where C differs, or the shapes of x and residual.
    """
    check_shapes("add_layer_norm", x=("... C", x), weight=("C", weight), bias=("C", bias))
    if x.shape != residual.shape:
        raise ShapeError(
            f"add_layer_norm: x has shape {x.shape}, but residual has shape {residual.shape}; both must be the same"
        )
    check_floating("add_layer_norm", x=x, residual=residual, weight=weight, bias=bias)
    return ADD_LAYERNORM(x, _weight_or_ones(weight, x), bias, residual, eps=eps)
