"""Functions of one element, and the larger or smaller of two: y = f(x) gives dx = dy f'(x), as in arithmetic.py.

    d|x| = sign(x)            d sin = cos         d log1p(x) = 1 / (1 + x)      d log2(x)  = 1 / (x ln 2)
    d erf(x) = 2/sqrt(pi) e^(-x^2)                d cos = -sin                  d expm1(x) = e^x
    d log10(x) = 1 / (x ln 10)                    d log(1 + e^x) = 1 / (1 + e^-x)

sign, floor, ceil, round and trunc are flat between their steps: their gradient is zero, not none.

A maximum hands its gradient to the operand that is larger; two that are equal get half of it each, which is what a
difference on both sides measures. Integers become float32 where the result is no integer, as in PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor, tensor
from minillm.backend import Array, elementwise
from minillm.erf import erf as erf_of
from minillm.ops.arithmetic import (
    Input,
    Operands,
    exp,
    in_one_dtype,
    log,
    logistic,
    operands,
    shape_of,
    sqrt,
    unbroadcast,
    where,
)

__all__ = [
    "abs", "absolute", "ceil", "cos", "erf", "exp2", "expm1", "floor", "leaky_relu", "lerp", "log1p", "log2", "log10",
    "logaddexp", "logit", "logsigmoid", "maximum", "minimum", "reciprocal", "round", "rsqrt", "sign", "sin",
    "softplus", "square", "tan", "trunc",
]  # fmt: skip


class Shaped(NamedTuple):
    """The shape that went in: a zero gradient needs no more."""

    shape: tuple[int, ...]


class Plus(NamedTuple):
    """The slope 1 / (1 + e^-z), which is 1 beyond the threshold."""

    slope: Array


def _tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else tensor(x)


def _floating(x: Any) -> Tensor:
    x = _tensor(x)
    return x.to(np.float32) if x.dtype.kind in "iub" else x


def signs(x: Array) -> Array:
    """-1, 0 or 1 in x's dtype; 0 for NaN, as in PyTorch."""
    return (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)


# --- absolute value ------------------------------------------------------------------------------------------------


def abs_forward(x):
    return elementwise(np.abs, x), Input(x)


def abs_backward(dout, saved):
    return (dout * signs(saved.x),)


ABS = Op("abs", abs_forward, abs_backward)


def abs(x: Any) -> Tensor:
    """|x|, elementwise; the gradient at 0 is 0."""
    return ABS(_tensor(x))


absolute = abs


# --- steps ---------------------------------------------------------------------------------------------------------


def steps_forward(x, *, function):
    return function(x), Shaped(x.shape)


def steps_backward(dout, saved):
    return (np.zeros_like(dout, shape=saved.shape),)


SIGN, FLOOR, CEIL, ROUND, TRUNC = (
    Op(name, steps_forward, steps_backward) for name in ("sign", "floor", "ceil", "round", "trunc")
)


def sign(x: Any) -> Tensor:
    """-1, 0 or 1, elementwise, with a zero gradient."""
    return SIGN(_tensor(x), function=signs)


def floor(x: Any) -> Tensor:
    """The largest whole number that is not above x, with a zero gradient."""
    return FLOOR(_tensor(x), function=np.floor)


def ceil(x: Any) -> Tensor:
    """The smallest whole number that is not below x, with a zero gradient."""
    return CEIL(_tensor(x), function=np.ceil)


def round(x: Any, decimals: int = 0) -> Tensor:
    """x to so many decimals, a half to the even neighbour, with a zero gradient."""
    return ROUND(_tensor(x), function=lambda x: np.round(x, decimals))


def trunc(x: Any) -> Tensor:
    """The whole number towards zero, with a zero gradient."""
    return TRUNC(_tensor(x), function=np.trunc)


# --- waves ---------------------------------------------------------------------------------------------------------


def sin_forward(x):
    return elementwise(np.sin, x), Input(x)


def sin_backward(dout, saved):
    return (dout * np.cos(saved.x),)


SIN = Op("sin", sin_forward, sin_backward)


def sin(x: Any) -> Tensor:
    """The sine of x in radians, elementwise."""
    return SIN(_floating(x))


def cos_forward(x):
    return elementwise(np.cos, x), Input(x)


def cos_backward(dout, saved):
    return (-dout * np.sin(saved.x),)


COS = Op("cos", cos_forward, cos_backward)


def cos(x: Any) -> Tensor:
    """The cosine of x in radians, elementwise."""
    return COS(_floating(x))


# --- logarithms and exponentials -----------------------------------------------------------------------------------


def log2_forward(x):
    return elementwise(np.log2, x), Input(x)


def log2_backward(dout, saved):
    return (dout / (saved.x * math.log(2)),)


LOG2 = Op("log2", log2_forward, log2_backward)


def log2(x: Any) -> Tensor:
    """The logarithm to base 2, elementwise."""
    return LOG2(_floating(x))


def log10_forward(x):
    return elementwise(np.log10, x), Input(x)


def log10_backward(dout, saved):
    return (dout / (saved.x * math.log(10)),)


LOG10 = Op("log10", log10_forward, log10_backward)


def log10(x: Any) -> Tensor:
    """The logarithm to base 10, elementwise."""
    return LOG10(_floating(x))


def log1p_forward(x):
    return elementwise(np.log1p, x), Input(x)


def log1p_backward(dout, saved):
    return (dout / (1 + saved.x),)


LOG1P = Op("log1p", log1p_forward, log1p_backward)


def log1p(x: Any) -> Tensor:
    """log(1 + x), elementwise, exact where x is so small that 1 + x is 1."""
    return LOG1P(_floating(x))


def expm1_forward(x):
    return elementwise(np.expm1, x), Input(x)


def expm1_backward(dout, saved):
    return (dout * np.exp(saved.x),)


EXPM1 = Op("expm1", expm1_forward, expm1_backward)


def expm1(x: Any) -> Tensor:
    """e^x - 1, elementwise, exact where x is so small that e^x is 1."""
    return EXPM1(_floating(x))


def erf_forward(x):
    return erf_of(x), Input(x)


def erf_backward(dout, saved):
    return (dout * (2 / math.sqrt(math.pi)) * np.exp(-saved.x * saved.x),)


ERF = Op("erf", erf_forward, erf_backward)


def erf(x: Any) -> Tensor:
    """The error function: 2/sqrt(pi) times the integral of e^(-t^2) from 0 to x, elementwise."""
    return ERF(_floating(x))


# --- softplus ------------------------------------------------------------------------------------------------------


def softplus_forward(x, *, beta, threshold):
    """log(1 + e^z) = max(z, 0) + log(1 + e^-|z|), in which nothing overflows, for z = beta x, which may."""
    z = x * beta
    linear = z > threshold
    out = (np.maximum(z, np.zeros_like(z)) + np.log1p(np.exp(-np.abs(z)))) / beta
    return np.where(linear, x, out), Plus(np.where(linear, np.ones_like(x), logistic(z)))


def softplus_backward(dout, saved):
    return (dout * saved.slope,)


SOFTPLUS = Op("softplus", softplus_forward, softplus_backward)


def softplus(x: Any, beta: float = 1, threshold: float = 20) -> Tensor:
    """log(1 + e^(beta x)) / beta, a smooth relu; x itself where beta x is above the threshold, as in PyTorch."""
    return SOFTPLUS(_floating(x), beta=float(beta), threshold=threshold)


def logsigmoid(x: Any) -> Tensor:
    """log(1 / (1 + e^-x)), elementwise, without overflow."""
    return -SOFTPLUS(-_floating(x), beta=1.0, threshold=math.inf)


# --- the larger and the smaller of two -----------------------------------------------------------------------------


def maximum_forward(x, y):
    return elementwise(np.maximum, x, y), Operands(x, y)


def maximum_backward(dout, saved):
    return _to_the_winner(dout, saved, np.less)


MAXIMUM = Op("maximum", maximum_forward, maximum_backward)


def maximum(x: Any, y: Any) -> Tensor:
    """The larger of x and y, elementwise with broadcasting; NaN where either is. Equal ones share the gradient."""
    return MAXIMUM(*in_one_dtype(*operands(x, y)))


def minimum_forward(x, y):
    return elementwise(np.minimum, x, y), Operands(x, y)


def minimum_backward(dout, saved):
    return _to_the_winner(dout, saved, np.greater)


MINIMUM = Op("minimum", minimum_forward, minimum_backward)


def minimum(x: Any, y: Any) -> Tensor:
    """The smaller of x and y, elementwise with broadcasting; NaN where either is. Equal ones share the gradient."""
    return MINIMUM(*in_one_dtype(*operands(x, y)))


def _to_the_winner(dout: Array, saved: Operands, loses: Callable) -> tuple:
    """The gradient for the operand that does not lose, halved where both are equal. Beside a NaN neither loses."""
    x, y = saved
    shared = np.where(np.equal(x, y), dout / 2, dout)
    dx = None if shape_of(x) is None else unbroadcast(np.where(loses(x, y), 0, shared), x.shape)
    dy = None if shape_of(y) is None else unbroadcast(np.where(loses(y, x), 0, shared), y.shape)
    return dx, dy


# --- made of others ------------------------------------------------------------------------------------------------


def square(x: Any) -> Tensor:
    """x^2, elementwise."""
    x = _tensor(x)
    return x * x


def reciprocal(x: Any) -> Tensor:
    """1 / x, elementwise."""
    return 1 / _floating(x)


def rsqrt(x: Any) -> Tensor:
    """1 / sqrt(x), elementwise."""
    return 1 / sqrt(_floating(x))


def tan(x: Any) -> Tensor:
    """The tangent of x in radians, elementwise."""
    return sin(x) / cos(x)


def exp2(x: Any) -> Tensor:
    """2 to the power x, elementwise."""
    return exp(_floating(x) * math.log(2))


def logaddexp(x: Any, y: Any) -> Tensor:
    """log(e^x + e^y), elementwise, without overflow for finite numbers: the larger, and what the smaller adds."""
    x, y = _floating(x), _floating(y)
    return maximum(x, y) + log1p(exp(-abs(x - y)))


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    """x where it is positive, else negative_slope x."""
    x = _floating(x)
    return where(x > 0, x, x * negative_slope)


def lerp(x: Any, end: Any, weight: Any) -> Tensor:
    """x + weight (end - x): from x at weight 0 to end at weight 1."""
    return x + weight * (end - x)


def logit(x: Any) -> Tensor:
    """log(x / (1 - x)), the inverse of the sigmoid."""
    x = _floating(x)
    return log(x) - log1p(-x)
