"""The logarithm of a sum of exponentials, by which a softmax divides. With m the largest element,

    y = ln(sum of e^x_i) = m + ln(sum of e^(x_i - m))          dx_i = dy e^(x_i - y), the softmax of x

Shapes: x (..., n, ...), with n for the axis or axes of i; y (..., ...), or (..., 1, ...) with keepdims.
The second form cannot overflow. The sum is made in float64, because float32 loses digits over many elements.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.errors import DtypeError
from minillm.ops.axes import Axis, reduced_axis
from minillm.ops.create import as_tensor
from minillm.ops.reduce import restore_axes

__all__ = ["logsumexp"]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    x: Array
    y: Array  # (..., 1, ...)
    axis: Axis
    keepdims: bool


def logsumexp_forward(x, *, axis, keepdims):
    reduce = np.max if x.size else np.sum  # without elements there is no largest, and nothing to shift
    largest = reduce(x, axis=axis, keepdims=True)  # (..., 1, ...)
    m = np.where(np.isfinite(largest), largest, 0)  # (..., 1, ...); inf - inf would be NaN
    total = np.sum(np.exp(x - m), axis=axis, keepdims=True, dtype=np.float64).astype(x.dtype)  # (..., 1, ...)
    y = m + np.log(total)  # (..., 1, ...)
    return y if keepdims else np.squeeze(y, axis), Saved(x, y, axis, keepdims)


def logsumexp_backward(dy, saved):
    x, y, axis, keepdims = saved
    dx = restore_axes(dy, axis, keepdims, x.ndim) * np.exp(x - y)  # (..., n, ...)
    return (dx,)


LOGSUMEXP = Op("logsumexp", logsumexp_forward, logsumexp_backward)


def logsumexp(
    x: Tensor, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False
) -> Tensor:
    """ln(sum of e^x) over `axis` (an int, a tuple, or None for all), without overflow.

    Saves: a reference to x, and the result.
    """
    x = as_tensor(x)
    if x.dtype.kind in "iub":
        raise DtypeError(f"logsumexp: x has dtype {x.dtype}; convert it to float32 or float64")
    return LOGSUMEXP(x, axis=reduced_axis("logsumexp", axis, dim, x.ndim), keepdims=keepdims or keepdim)
