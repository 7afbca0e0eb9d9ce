"""Products over an axis, and sums and products up to each element.

The derivative of a product with respect to one factor is the product of all others. Dividing the whole by the factor
would fail where that is 0, so the others are multiplied from both sides:

    y = x_1 x_2 ... x_n        dx_i = dy (x_1 ... x_(i-1)) (x_(i+1) ... x_n) = dy before_i after_i

A cumulative sum y_j = x_1 + ... + x_j uses x_i in every y_j with j >= i, so its gradient adds up from the other end:

    dx_i = dy_i + dy_(i+1) + ... + dy_n

A cumulative product y_j = x_1 ... x_j uses x_i in the same places. All factors before x_i can be taken out of y_j, and
those after it be added up from the other end, by Horner's rule, again without a division:

    dx_i = before_i s_i        s_i = dy_i + x_(i+1) (dy_(i+1) + x_(i+2) (...)) = dy_i + x_(i+1) s_(i+1),   s_n = dy_n

Both run in float64, as in PyTorch: a running sum of float32 loses digits over many elements, and a 0 after a product
that overflows float32 still gives 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.ops.axes import Axis, one_axis, reduced_axis
from minillm.ops.reduce import in_dtype

__all__ = ["cumprod", "cumsum", "prod"]


class Factors(NamedTuple):
    """Everything that the forward keeps for the backward."""

    x: Array  # (..., n), multiplied over the last axis


class SummedAxis(NamedTuple):
    """Everything that the forward keeps for the backward."""

    axis: int


class Multiplied(NamedTuple):
    """Everything that the forward keeps for the backward."""

    x: Array  # (...)
    axis: int


def prod_forward(x):
    y = np.prod(x, axis=-1)  # (...)
    return y, Factors(x)


def prod_backward(dy, saved):
    x = saved.x  # (..., n)
    one = np.ones_like(x[..., :1])  # (..., 1)
    before = np.cumprod(np.concatenate([one, x[..., :-1]], -1), -1)  # (..., n)
    after = np.cumprod(np.concatenate([one, x[..., :0:-1]], -1), -1)[..., ::-1]  # (..., n)
    dx = dy[..., None] * (before * after)  # (..., n); a factor 0 is met before an infinite dy
    return (dx,)


PROD = Op("prod", prod_forward, prod_backward)


def prod(
    x: Tensor, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False, dtype: Any = None
) -> Tensor:
    """The product over `axis` (an int, a tuple, or None for all); integers are multiplied in int64.

    The gradient is right where factors are 0, too. Saves: a reference to x.
    """
    x = in_dtype(x, dtype)
    axis = reduced_axis("prod", axis, dim, x.ndim)
    axes = range(x.ndim) if axis is None else [one % x.ndim for one in (axis if isinstance(axis, tuple) else (axis,))]
    kept = [one for one in range(x.ndim) if one not in axes]
    factors = x.permute(*kept, *axes) if x.ndim else x
    size = math.prod(x.shape[one] for one in axes)
    y = PROD(factors.reshape(*(x.shape[one] for one in kept), size))
    return y.reshape(*(1 if i in axes else n for i, n in enumerate(x.shape))) if keepdims or keepdim else y


def running_sums(x, axis):
    """The sums up to each element, in float64 unless they are whole numbers."""
    wide = x.dtype if x.dtype.kind in "iub" else np.float64
    return np.cumsum(x, axis, dtype=wide).astype(x.dtype, copy=False)  # (..., n, ...)


def cumsum_forward(x, *, axis):
    y = running_sums(x, axis)  # (..., n, ...)
    return y, SummedAxis(axis)


def cumsum_backward(dy, saved):
    from_the_end = running_sums(np.flip(dy, saved.axis), saved.axis)  # (..., n, ...)
    dx = np.flip(from_the_end, saved.axis)  # (..., n, ...)
    return (dx,)


CUMSUM = Op("cumsum", cumsum_forward, cumsum_backward)


def cumsum(x: Tensor, axis: int | None = None, *, dim: int | None = None, dtype: Any = None) -> Tensor:
    """The sum of all elements up to each, along one axis; integers are added up in int64."""
    return _running(CUMSUM, x, axis, dim, dtype)


def _running(op: Op, x: Any, axis: int | None, dim: int | None, dtype: Any) -> Tensor:
    x = in_dtype(x, dtype)
    chosen = one_axis(op.name, axis, x.ndim or 1, dim)
    return op(x, axis=chosen) if x.ndim else op(x.reshape(1), axis=0).reshape(())


def cumprod_forward(x, *, axis):
    wide = x.dtype if x.dtype.kind in "iub" else np.float64
    y = np.cumprod(x, axis, dtype=wide).astype(x.dtype, copy=False)  # (..., n, ...)
    return y, Multiplied(x, axis)


def cumprod_backward(dy, saved):
    x = np.moveaxis(saved.x, saved.axis, 0).astype(np.float64)  # (n, ...)
    dy_first = np.moveaxis(dy, saved.axis, 0).astype(np.float64)  # (n, ...)
    before = np.cumprod(np.concatenate([np.ones_like(x[:1]), x[:-1]]), 0)  # (n, ...)
    s_from_the_end = list(dy_first[-1:])  # s_n, s_(n-1), ..., each (...)
    for i in range(len(x) - 2, -1, -1):
        s_from_the_end.append(dy_first[i] + x[i + 1] * s_from_the_end[-1])
    s = np.stack(s_from_the_end[::-1]) if s_from_the_end else dy_first  # (n, ...)
    dx = np.moveaxis(before * s, 0, saved.axis).astype(dy.dtype, copy=False)  # (..., n, ...)
    return (dx,)


CUMPROD = Op("cumprod", cumprod_forward, cumprod_backward)


def cumprod(x: Tensor, axis: int | None = None, *, dim: int | None = None, dtype: Any = None) -> Tensor:
    """The product of all elements up to each, along one axis; integers are multiplied in int64.

    The gradient is right where factors are 0, too. Saves: a reference to x.
    """
    return _running(CUMPROD, x, axis, dim, dtype)
