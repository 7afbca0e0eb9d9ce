"""The Gaussian error linear unit (Hendrycks, Gimpel 2016, arXiv:1606.08415): y = x Phi(x).

Phi is the standard normal distribution function, so x is let through with the probability that a standard normal
number is below it. Two forms, as in PyTorch:

    erf:   y = x/2 (1 + erf(x / sqrt 2)),   dy/dx = Phi(x) + x phi(x)  with  phi(x) = e^(-x^2/2) / sqrt(2 pi)
    tanh:  y = x/2 (1 + t),   t = tanh u,   u = sqrt(2/pi) (x + 0.044715 x^3),   dy/dx = (1 + t)/2 + x/2 (1 - t^2) u'

GPT-2 uses the tanh form, BERT the other. NumPy has no erf; `erf` below is a table of Taylor polynomials.

The bias b of the linear layer before may be added here, y = gelu(x + b), while x is in cache: the layer then makes no
pass of its own for it. As x and b only ever meet in their sum, dx = dy gelu'(x + b), and db is its sum over the rows.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_rows, contiguous, row_blocks, sum_over_blocks
from minillm.errors import InputError, check_floating, check_shapes
from minillm.ops.launch import activation_backward, activation_fits, activation_forward

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)  # Python floats: a NumPy scalar would turn float32 into float64
CUBIC = 0.044715
FORMS = {"none": "GeluErf", "tanh": "GeluTanh"}  # `approximate`, and what kernels/gelu.cu calls it


class Saved(NamedTuple):
    """The inputs; everything else is computed again."""

    x: Array
    bias: Array | None
    approximate: str


def gelu_forward(x, bias=None, *, approximate):
    out = np.empty_like(x, order="C")
    x_rows, y = as_rows(x), as_rows(out)

    def value_tanh(x, t):
        np.multiply(x, x, out=t)
        t *= SQRT_2_OVER_PI * CUBIC
        t += SQRT_2_OVER_PI
        t *= x
        np.tanh(t, out=t)
        t += 1
        t *= x
        t *= 0.5

    def value_erf(x, y):
        np.multiply(x, normal_distribution(x), out=y)

    value = value_tanh if approximate == "tanh" else value_erf

    def formula(rows):
        value(x_rows[rows] if bias is None else x_rows[rows] + bias, y[rows])

    row_blocks(formula, y)
    return out, Saved(x, bias, approximate)


def gelu_backward(dout, saved):
    x, bias, approximate = saved
    dx = np.empty_like(x, order="C")
    x_rows, dy, dx_rows = as_rows(x), as_rows(dout), as_rows(dx)

    def slope_tanh(x, slope):
        square = x * x
        t = square * (SQRT_2_OVER_PI * CUBIC)
        t += SQRT_2_OVER_PI
        t *= x
        np.tanh(t, out=t)
        square *= 3 * SQRT_2_OVER_PI * CUBIC
        square += SQRT_2_OVER_PI  # u'
        square *= x
        np.multiply(t, t, out=slope)  # x may lie here, and is no longer needed
        np.subtract(1, slope, out=slope)  # 1 - t^2
        slope *= square
        slope += t
        slope += 1
        slope *= 0.5

    def slope_erf(x, slope):
        density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        np.add(normal_distribution(x), x * density, out=slope)

    slope = slope_tanh if approximate == "tanh" else slope_erf

    def formula(rows):
        x = x_rows[rows] if bias is None else np.add(x_rows[rows], bias, out=dx_rows[rows])
        slope(x, dx_rows[rows])
        dx_rows[rows] *= dy[rows]
        return () if bias is None else (dx_rows[rows].sum(axis=0),)

    sums = sum_over_blocks(formula, dy)
    return dx, sums[0] if sums else None


def gelu_forward_cuda(x, bias=None, *, approximate):
    if not activation_fits(x, bias):
        return NotImplemented
    x, bias = contiguous(x), None if bias is None else contiguous(bias)
    return activation_forward("gelu.cu", FORMS[approximate], x, bias), Saved(x, bias, approximate)


def gelu_backward_cuda(dout, saved):
    x, bias, approximate = saved
    return activation_backward("gelu.cu", FORMS[approximate], contiguous(dout), x, bias)


GELU = Op("gelu", gelu_forward, gelu_backward, cuda=(gelu_forward_cuda, gelu_backward_cuda))


def gelu(x: Tensor, approximate: str = "none", bias: Tensor | None = None) -> Tensor:
    """x Phi(x), elementwise; `approximate="tanh"` for GPT-2's form, "none" for the exact one (PyTorch's default).

    With a bias, gelu(x + bias), the bias of the linear layer that made x without it.
    Shapes: x any, with a bias (..., C); bias (C,) or None.
    Saves: references to x and bias.
    Raises: ShapeError where C differs; InputError for another form.
    Source: Hendrycks, Gimpel 2016, section 2.
    """
    if approximate not in FORMS:
        raise InputError(f"gelu: approximate is {approximate!r}; choose 'none' (erf) or 'tanh'")
    if bias is not None:
        check_shapes("gelu", x=("... C", x), bias=("C", bias))
    check_floating("gelu", x=x, bias=bias)
    return GELU(x, bias, approximate=approximate)


def normal_distribution(x: Array) -> Array:
    """Phi(x) = (1 + erf(x / sqrt 2)) / 2."""
    return 0.5 * (1 + erf(x * math.sqrt(0.5)))


# erf around a node x0, with g = 2/sqrt(pi) e^(-x0^2) its slope there and H_n the Hermite polynomials:
#     erf(x0 + d) = erf(x0) + g sum_n H_n(x0) (-1)^n d^(n+1) / (n+1)!
# (the derivatives of e^(-x^2) are (-1)^n H_n(x) e^(-x^2)). With nodes 1/32 apart, |d| <= 1/64, and eight terms leave
# an error below 1e-16. Beyond 6, erf is 1 to double precision.
NODES_PER_UNIT = 32
LIMIT = 6
TERMS = 8


@functools.cache
def _erf_table(dtype: np.dtype) -> Array:
    nodes = np.arange(-LIMIT * NODES_PER_UNIT, LIMIT * NODES_PER_UNIT + 1) / NODES_PER_UNIT
    table = np.empty((TERMS, len(nodes)))
    table[0] = [math.erf(node) for node in nodes]
    slope = 2 / math.sqrt(math.pi) * np.exp(-nodes * nodes)
    hermite_before, hermite = np.zeros_like(nodes), np.ones_like(nodes)
    for n in range(TERMS - 1):
        table[n + 1] = slope * hermite * (-1) ** n / math.factorial(n + 1)
        hermite_before, hermite = hermite, 2 * nodes * hermite - 2 * n * hermite_before
    return table.astype(dtype)


def erf(x: Array) -> Array:
    """The error function, 2/sqrt(pi) times the integral of e^(-t^2) from 0 to x, to the precision of x's dtype."""
    table = np.asarray(_erf_table(x.dtype), like=x)
    limited = np.clip(x, -LIMIT, LIMIT)
    node = np.rint(limited * NODES_PER_UNIT)
    d = limited - node / NODES_PER_UNIT
    index = np.nan_to_num(node).astype(np.intp) + LIMIT * NODES_PER_UNIT
    out = table[-1][index]
    for row in table[-2::-1]:
        out *= d
        out += row[index]
    return out
