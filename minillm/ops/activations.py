"""Activations with one line each: tanh, sigmoid, relu, softplus; and the error function.

y = tanh x                        dx = dy (1 - y^2)
y = 1 / (1 + e^-x)                dx = dy y (1 - y)          (sigmoid)
y = max(x, 0)                     dx = dy where x > 0, else 0          (relu; at 0 too it is taken to be 0)
y = erf x                         dx = dy 2/sqrt(pi) e^(-x^2)
y = ln(1 + e^(beta x)) / beta     dx = dy / (1 + e^(-beta x))          (softplus)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.erf import erf as erf_of
from minillm.ops.choice import where
from minillm.ops.exponential import Input
from minillm.ops.operands import floats, operand
from minillm.ops.power import Output

__all__ = ["erf", "leaky_relu", "logsigmoid", "relu", "sigmoid", "softplus", "tanh"]


class Slope(NamedTuple):
    """Everything that the forward keeps for the backward."""

    slope: Array  # (...), dy/dx


def tanh_forward(x):
    y = np.tanh(x)  # (...)
    return y, Output(y)


def tanh_backward(dy, saved):
    y = saved.y
    dx = dy * (1 - y * y)  # (...)
    return (dx,)


TANH = Op("tanh", tanh_forward, tanh_backward)


def tanh(x: Any) -> Tensor:
    """The hyperbolic tangent, elementwise. Saves: the result."""
    return TANH(floats(x, "tanh"))


def logistic(x):
    """1 / (1 + e^-x), which is 0 where e^-x overflows."""
    return 1 / (1 + np.exp(-x))  # (...)


def sigmoid_forward(x):
    y = logistic(x)  # (...)
    return y, Output(y)


def sigmoid_backward(dy, saved):
    y = saved.y
    dx = dy * y * (1 - y)  # (...)
    return (dx,)


SIGMOID = Op("sigmoid", sigmoid_forward, sigmoid_backward)


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + e^-x), elementwise. Saves: the result."""
    return SIGMOID(floats(x, "sigmoid"))


def relu_forward(x):
    y = np.maximum(x, 0)  # (...)
    return y, Input(x)


def relu_backward(dy, saved):
    dx = np.where(saved.x <= 0, 0, dy)  # (...); a NaN, which relu lets through, lets its gradient through
    return (dx,)


RELU = Op("relu", relu_forward, relu_backward)


def relu(x: Any) -> Tensor:
    """max(x, 0), elementwise; the gradient at 0 is taken to be 0. Saves: a reference to x."""
    return RELU(operand(x, "relu"))


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    """x where it is positive, else negative_slope x."""
    x = floats(x, "leaky_relu")
    return where(x > 0, x, x * negative_slope)


def erf_forward(x):
    y = erf_of(x)  # (...)
    return y, Input(x)


def erf_backward(dy, saved):
    x = saved.x
    dx = dy * (2 / math.sqrt(math.pi) * np.exp(-x * x))  # (...)
    return (dx,)


ERF = Op("erf", erf_forward, erf_backward)


def erf(x: Any) -> Tensor:
    """The error function: 2/sqrt(pi) times the integral of e^(-t^2) from 0 to x, elementwise."""
    return ERF(floats(x, "erf"))


def softplus_forward(x, *, beta, threshold):
    z = beta * x  # (...)
    above = z > threshold  # (...), where y = x to rounding
    log_of_sum = np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))  # (...), ln(1 + e^z), where nothing overflows
    y = np.where(above, x, log_of_sum / beta)  # (...)
    slope = np.where(above, 1, logistic(z))  # (...)
    return y, Slope(slope)


def softplus_backward(dy, saved):
    dx = dy * saved.slope  # (...)
    return (dx,)


SOFTPLUS = Op("softplus", softplus_forward, softplus_backward)


def softplus(x: Any, beta: float = 1, threshold: float = 20) -> Tensor:
    """ln(1 + e^(beta x)) / beta, a smooth relu; x itself where beta x is above the threshold, as in PyTorch."""
    return SOFTPLUS(floats(x, "softplus"), beta=float(beta), threshold=threshold)


def logsigmoid(x: Any) -> Tensor:
    """ln(1 / (1 + e^-x)), elementwise, without overflow."""
    return -SOFTPLUS(-floats(x, "logsigmoid"), beta=1.0, threshold=math.inf)
