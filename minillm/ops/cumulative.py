"""Products over an axis, and sums and products up to each element.

The derivative of a product with respect to one factor is the product of all others. Dividing the whole by the factor
would fail where that is 0, so the others are multiplied from both sides:

    y = x_1 x_2 ... x_n        dx_i = dy (x_1 ... x_(i-1)) (x_(i+1) ... x_n)

A cumulative sum y_j = x_1 + ... + x_j uses x_i in every y_j with j >= i, so its gradient adds up from the other end:

    dx_i = dy_i + dy_(i+1) + ... + dy_n

A cumulative product y_j = x_1 ... x_j uses x_i in the same places. Of y_j all factors before x_i can be taken out, and
those after it be added up from the other end, by Horner's rule, again without a division:

    dx_i = (x_1 ... x_(i-1)) s_i        s_i = dy_i + x_(i+1) (dy_(i+1) + x_(i+2) (...)) = dy_i + x_(i+1) s_(i+1)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.ops.reduce import Axis, in_dtype, one_axis, reduced_axis


class Factors(NamedTuple):
    """The factors; they were multiplied over the last axis."""

    x: Array


class Along(NamedTuple):
    """The axis that was added up."""

    axis: int


def prod_forward(x):
    return np.prod(x, axis=-1), Factors(x)


def prod_backward(dout, saved):
    x = saved.x
    ones = np.ones_like(x[..., :1])
    before = np.cumprod(np.concatenate([ones, x[..., :-1]], -1), -1)  # the product of all factors before each
    after = np.cumprod(np.concatenate([ones, x[..., :0:-1]], -1), -1)[..., ::-1]
    return (dout[..., None] * (before * after),)  # a factor 0 goes before an infinite dout times the others


PROD = Op("prod", prod_forward, prod_backward)


def prod(
    x: Tensor, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False, dtype: Any = None
) -> Tensor:
    """The product over `axis` (an int, a tuple, or None for all), of integers in int64.

    The gradient is right where factors are 0, too.
    """
    x = in_dtype(x, dtype)
    axis = reduced_axis("prod", axis, dim, x.ndim)
    axes = range(x.ndim) if axis is None else [one % x.ndim for one in (axis if isinstance(axis, tuple) else (axis,))]
    kept = [one for one in range(x.ndim) if one not in axes]
    factors = x.permute(*kept, *axes) if x.ndim else x
    size = int(np.prod([x.shape[one] for one in axes]))
    out = PROD(factors.reshape(*(x.shape[one] for one in kept), size))
    return out.reshape(*(1 if i in axes else n for i, n in enumerate(x.shape))) if keepdims or keepdim else out


def running_sums(x: Array, axis: int) -> Array:
    """Floating numbers are added up in float64, because float32 loses digits over many of them."""
    return np.cumsum(x, axis, dtype=x.dtype if x.dtype.kind in "iub" else np.float64).astype(x.dtype, copy=False)


def cumsum_forward(x, *, axis):
    return running_sums(x, axis), Along(axis)


def cumsum_backward(dout, saved):
    return (np.flip(running_sums(np.flip(dout, saved.axis), saved.axis), saved.axis),)


CUMSUM = Op("cumsum", cumsum_forward, cumsum_backward)


def cumsum(x: Tensor, axis: int | None = None, *, dim: int | None = None, dtype: Any = None) -> Tensor:
    """The sum of all elements up to each, along one axis, of integers in int64."""
    return _running(CUMSUM, x, axis, dim, dtype)


def _running(op: Op, x: Any, axis: int | None, dim: int | None, dtype: Any) -> Tensor:
    x = in_dtype(x, dtype)
    chosen = one_axis(op.name, axis, x.ndim or 1, dim)
    return op(x, axis=chosen) if x.ndim else op(x.reshape(1), axis=0).reshape(())


class Multiplied(NamedTuple):
    """The factors, and the axis along which they were multiplied."""

    x: Array
    axis: int


def cumprod_forward(x, *, axis):  # in float64, as in PyTorch: a 0 after what overflows float32 still gives 0
    products = np.cumprod(x, axis, dtype=x.dtype if x.dtype.kind in "iub" else np.float64)
    return products.astype(x.dtype, copy=False), Multiplied(x, axis)


def cumprod_backward(dout, saved):
    x = np.moveaxis(saved.x, saved.axis, 0).astype(np.float64)  # as in the forward
    s = np.moveaxis(dout, saved.axis, 0).astype(np.float64, order="C")
    for i in range(len(x) - 2, -1, -1):
        s[i] += x[i + 1] * s[i + 1]
    before = np.cumprod(np.concatenate([np.ones_like(x[:1]), x[:-1]]), 0)  # the product of all factors before each
    return (np.moveaxis(before * s, 0, saved.axis).astype(dout.dtype, copy=False),)


CUMPROD = Op("cumprod", cumprod_forward, cumprod_backward)


def cumprod(x: Tensor, axis: int | None = None, *, dim: int | None = None, dtype: Any = None) -> Tensor:
    """The product of all elements up to each, along one axis, of integers in int64; the gradient is right at 0, too."""
    return _running(CUMPROD, x, axis, dim, dtype)
