"""Variance, standard deviation, norms, and the logarithm of a sum of exponentials.

Variance. With centred_i = x_i - mean(x) and n - correction degrees of freedom,

    var = sum of centred_i^2 / (n - correction)          dx_i = dvar 2 centred_i / (n - correction)

The mean moves with x too, but that changes the sum by -2 mean(dx) sum(centred), and centred sums to 0.
std = sqrt(var), so dvar = dstd / (2 std). Where std is 0 all elements are equal and the slope has no direction: 0.

Norm of order p, of which 2 is the length of a vector:

    norm = (sum of |x_i|^p)^(1/p)          dx_i = dnorm sign(x_i) (|x_i| / norm)^(p - 1)

because d norm = norm^(1 - p) |x_i|^(p - 1) d|x_i|. Where the norm is 0 the gradient is taken to be 0. The norm of order
inf (-inf) is the largest (smallest) |x_i|; those that reach it share its gradient evenly.

Logsumexp, the logarithm that a softmax divides by. With m the largest element, so that nothing overflows,

    y = m + log(sum of e^(x_i - m))          dx_i = dy e^(x_i - y), the softmax of x
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor, tensor
from minillm.backend import Array
from minillm.errors import DtypeError, InputError, check_floating
from minillm.ops.elementwise import SIGN, signs
from minillm.ops.reduce import Axis, reduced_axis, refuse_nothing, restore_axes, sum


class Centred(NamedTuple):
    """The elements without their mean, the degrees of freedom, and, of a standard deviation, the result."""

    centred: Array
    degrees: float
    axis: Axis
    keepdims: bool
    std: Array | None = None


class Norm(NamedTuple):
    """The elements, their norm, and its order."""

    x: Array
    norm: Array
    p: float
    axis: Axis
    keepdims: bool


class LogSum(NamedTuple):
    """The elements, and the logarithm of the sum of their exponentials."""

    x: Array
    out: Array
    axis: Axis
    keepdims: bool


def total_of(x: Array, axis: Axis, keepdims: bool) -> Array:
    """The sum, added up in float64, because float32 loses digits over many rows."""
    return np.sum(x, axis=axis, keepdims=keepdims, dtype=np.float64).astype(x.dtype)


# --- variance and standard deviation -------------------------------------------------------------------------------


def var_forward(x, *, correction, axis, keepdims):
    var, saved = variance(x, correction, axis, keepdims)
    return var.astype(x.dtype), saved


def variance(x: Array, correction: float, axis: Axis, keepdims: bool) -> tuple[Array, Centred]:
    """The variance in float64: in float32 a square may overflow whose root, the standard deviation, does not."""
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN of one element, or of none
        mean = np.sum(x, axis=axis, keepdims=True, dtype=np.float64)
        count = x.size // mean.size if mean.size else 1
        mean = (mean / count if count else mean * math.nan).astype(x.dtype)
        centred = x - mean
        degrees = float(count - correction)
        total = np.sum(np.square(centred, dtype=np.float64), axis=axis, keepdims=keepdims)
        return total / max(degrees, 0), Centred(centred, degrees, axis, keepdims)


def var_backward(dout, saved):
    dvar = restore_axes(dout, saved.axis, saved.keepdims, saved.centred.ndim)
    rate = 2 / saved.degrees if saved.degrees > 0 else math.inf
    with np.errstate(invalid="ignore"):  # NaN of one element
        return (dvar * rate * saved.centred,)


VAR = Op("var", var_forward, var_backward)


def std_forward(x, *, correction, axis, keepdims):
    var, saved = variance(x, correction, axis, keepdims)
    std = np.sqrt(var).astype(x.dtype)
    return std, saved._replace(std=std)


def std_backward(dout, saved):
    zero = saved.std == 0
    dvar = np.where(zero, 0, dout / (2 * np.where(zero, 1, saved.std)))
    return var_backward(dvar, saved)


STD = Op("std", std_forward, std_backward)


def _spread(op: Op, x: Any, axis: Any, dim: Axis, unbiased: bool, correction: float | None, keepdims: bool) -> Tensor:
    if isinstance(axis, bool):  # PyTorch's x.var(False)
        axis, unbiased = None, axis
    x = x if isinstance(x, Tensor) else tensor(x)
    check_floating(op.name, x=x)
    axis = reduced_axis(op.name, axis, dim, x.ndim)
    return op(x, correction=int(unbiased) if correction is None else correction, axis=axis, keepdims=keepdims)


def var(
    x: Tensor,
    axis: Axis = None,
    unbiased: bool = True,
    keepdims: bool = False,
    *,
    correction: float | None = None,
    dim: Axis = None,
    keepdim: bool = False,
) -> Tensor:
    """The variance over `axis`: the sum of squared distances from the mean, divided by n - correction.

    correction: 1 by default, as in PyTorch, which estimates a distribution's variance without bias (NumPy's is 0);
    `unbiased=False` is another name for correction 0. Of one element with correction 1 it is NaN.
    """
    return _spread(VAR, x, axis, dim, unbiased, correction, keepdims or keepdim)


def std(
    x: Tensor,
    axis: Axis = None,
    unbiased: bool = True,
    keepdims: bool = False,
    *,
    correction: float | None = None,
    dim: Axis = None,
    keepdim: bool = False,
) -> Tensor:
    """The standard deviation over `axis`: the root of the variance, with the same arguments; see `var`.

    Where all elements are equal, its gradient is 0.
    """
    return _spread(STD, x, axis, dim, unbiased, correction, keepdims or keepdim)


# --- norm ----------------------------------------------------------------------------------------------------------


def norm_forward(x, *, p, axis, keepdims):
    if p == 2:
        norm = np.sqrt(total_of(x * x, axis, keepdims))
    elif math.isinf(p):
        norm = (np.max if p > 0 else np.min)(np.abs(x), axis=axis, keepdims=keepdims)
    else:
        with np.errstate(divide="ignore"):  # a negative power of 0
            norm = np.power(total_of(np.power(np.abs(x), p), axis, keepdims), 1 / p)
    return norm, Norm(x, norm, p, axis, keepdims)


def norm_backward(dout, saved):
    x, _, p, axis, keepdims = saved
    norm, dnorm = (restore_axes(one, axis, keepdims, x.ndim) for one in (saved.norm, dout))
    size, zero = np.abs(x), norm == 0
    if math.isinf(p):
        reached = size == norm
        ties = np.maximum(reached.sum(axis=axis, keepdims=True), 1).astype(dout.dtype)  # nothing equals a NaN
        return (signs(x) * (reached * (dnorm / ties)),)
    with np.errstate(all="ignore"):
        if 0 < p < 2:  # size / norm may be too small for a number, where these powers of both are not
            own = np.where((size == 0) & (p < 1), 0, np.power(size, p - 1))  # infinite at 0 for p < 1
            dx = dnorm * signs(x) * own * np.where(zero, 0, np.power(norm, 1 - p))
        else:
            dx = dnorm * signs(x) * np.where(zero, 0, np.power(size / np.where(zero, 1, norm), p - 1))
    return (dx.astype(dout.dtype, copy=False),)


NORM = Op("norm", norm_forward, norm_backward)


def norm(
    x: Tensor, p: float | str = "fro", dim: Axis = None, keepdim: bool = False, *, axis: Axis = None, dtype: Any = None
) -> Tensor:
    """The norm of order p over `dim` (an int, a tuple, or None for all): (sum of |x|^p)^(1/p).

    p: 2 by default, also called "fro"; inf is the largest |x|, -inf the smallest, and 0 counts those that are not 0.
    """
    if p not in ("fro", None) and not isinstance(p, (int, float)):
        raise InputError(f"norm: p is {p!r}; give a number, inf, or 'fro', which is 2")
    x = x if isinstance(x, Tensor) else tensor(x)
    x = x if dtype is None else x.to(dtype)
    check_floating("norm", x=x)
    order = 2.0 if p in ("fro", None) else float(p)
    axis = reduced_axis("norm", axis, dim, x.ndim)
    if order == 1:
        return sum(x.abs(), axis, keepdim)
    if order == 0:
        return sum(SIGN(x, function=lambda x: (x != 0).astype(x.dtype)), axis, keepdim)  # flat between its steps
    if math.isinf(order):
        refuse_nothing("norm", x.shape, axis, "largest")
    return NORM(x, p=order, axis=axis, keepdims=keepdim)


# --- logsumexp -----------------------------------------------------------------------------------------------------


def logsumexp_forward(x, *, axis, keepdims):
    largest = np.max(x, axis=axis, keepdims=True) if x.size else total_of(x, axis, True)  # of nothing: any will do
    shift = np.where(np.isfinite(largest), largest, 0)  # inf - inf would be NaN
    with np.errstate(divide="ignore"):  # log 0, where all are -inf
        out = np.log(total_of(np.exp(x - shift), axis, True)) + shift
    return out if keepdims else np.squeeze(out, axis), LogSum(x, out, axis, keepdims)


def logsumexp_backward(dout, saved):
    dout = restore_axes(dout, saved.axis, saved.keepdims, saved.x.ndim)
    with np.errstate(invalid="ignore"):  # a sum of nothing but -inf, or an infinite one, has no slope
        return (dout * np.exp(saved.x - saved.out),)


LOGSUMEXP = Op("logsumexp", logsumexp_forward, logsumexp_backward)


def logsumexp(
    x: Tensor, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False
) -> Tensor:
    """log(sum of e^x) over `axis` (an int, a tuple, or None for all), without overflow."""
    x = x if isinstance(x, Tensor) else tensor(x)
    if x.dtype.kind in "iub":
        raise DtypeError(f"logsumexp: x has dtype {x.dtype}; convert it to float32 or float64")
    return LOGSUMEXP(x, axis=reduced_axis("logsumexp", axis, dim, x.ndim), keepdims=keepdims or keepdim)
