"""The Gaussian error linear unit (Hendrycks, Gimpel 2016, arXiv:1606.08415): y = x Phi(x).

Phi is the standard normal distribution function, so x is let through with the probability that a standard normal
number is below it. Two forms, as in PyTorch:

    erf:   y = x/2 (1 + erf(x / sqrt 2)),   dy/dx = Phi(x) + x phi(x)  with  phi(x) = e^(-x^2/2) / sqrt(2 pi)
    tanh:  y = x/2 (1 + t),   t = tanh u,   u = sqrt(2/pi) (x + 0.044715 x^3),   dy/dx = (1 + t)/2 + x/2 (1 - t^2) u'

GPT-2 uses the tanh form, BERT the other. NumPy has no erf; `erf` below is a table of Taylor polynomials.

The forward computes the slope with the value, while x is in cache and half of the slope is known, and keeps it in the
place of x: the backward is one product, dx = dy slope.

The bias b of the linear layer before may be added here, y = gelu(x + b), while x is in cache: the layer then makes no
pass of its own for it. As x and b only ever meet in their sum, db is the sum of dx over the rows.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor, is_grad_enabled
from minillm.backend import Array, as_rows, contiguous, row_blocks, sum_over_blocks
from minillm.cuda.launch import activation_backward, activation_fits, activation_forward
from minillm.errors import InputError, check_floating, check_shapes
from minillm.sums import column_sums, is_moderate

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)  # Python floats: a NumPy scalar would turn float32 into float64
CUBIC = 0.044715
FORMS = {"none": "GeluErf", "tanh": "GeluTanh"}  # `approximate`, and what kernels/gelu.cu calls it


class Saved(NamedTuple):
    """The slope dy/dx."""

    slope: Array
    has_bias: bool


class SavedByKernel(NamedTuple):
    """The inputs; a kernel computes everything else again."""

    x: Array
    bias: Array | None
    approximate: str


def gelu_forward(x, bias=None, *, approximate):
    out = np.empty_like(x, order="C")
    slope = np.empty_like(out, shape=None if is_grad_enabled() else 0)
    x_rows, y, slope_rows = as_rows(x), as_rows(out), as_rows(slope)
    erf = erf_form_in_float32 if x.dtype == np.float32 else erf_form
    value_and_slope = {"tanh": tanh_form, "none": erf}[approximate]

    def formula(rows):
        z = x_rows[rows] if bias is None else x_rows[rows] + bias
        value_and_slope(z, y[rows], slope_rows[rows])
        if not is_moderate(z):
            write_limits(z, y[rows], slope_rows[rows])

    row_blocks(formula, y)
    return out, Saved(slope, bias is not None)


def gelu_backward(dout, saved):
    slope, has_bias = saved
    dx = np.empty_like(slope)
    dy, slope_rows, dx_rows = as_rows(dout), as_rows(slope), as_rows(dx)

    def formula(rows):
        np.multiply(dy[rows], slope_rows[rows], out=dx_rows[rows])
        return (column_sums(dx_rows[rows]),) if has_bias else ()

    sums = sum_over_blocks(formula, dy)
    return dx, sums[0] if has_bias else None


def write_limits(x: Array, y: Array, slope: Array) -> None:
    """Far out, where the formulas are infinity times 0: y = x and slope 1 above, both 0 below."""
    above, below = x > 1000, x < -1000
    np.copyto(y, x, where=above)
    np.copyto(y, -0.0, where=below)
    if slope.size:
        np.copyto(slope, 1, where=above)
        np.copyto(slope, 0, where=below)


def tanh_form(x: Array, y: Array, slope: Array) -> None:
    """y = x p with p = (1 + tanh u)/2; the slope, if there is room for it, is p + y (1 - p) 2 u'."""
    square = x * x
    p = square * (SQRT_2_OVER_PI * CUBIC)
    p += SQRT_2_OVER_PI
    p *= x
    np.tanh(p, out=p)
    p *= 0.5
    p += 0.5
    np.multiply(x, p, out=y)
    if slope.size:
        write_slope_of_tanh_form(slope, square, p, y)


def write_slope_of_tanh_form(slope: Array, square: Array, p: Array, y: Array) -> None:
    """p + y (1 - p) 2 u', given x^2."""
    square *= 6 * SQRT_2_OVER_PI * CUBIC
    square += 2 * SQRT_2_OVER_PI  # 2 u'
    square *= y
    np.subtract(1, p, out=slope)
    slope *= square
    slope += p


def erf_form(x: Array, y: Array, slope: Array) -> None:
    """y = x Phi(x); the slope is Phi(x) + x phi(x)."""
    distribution = 0.5 * (1 + erf(x * math.sqrt(0.5)))
    np.multiply(x, distribution, out=y)
    if slope.size:
        write_slope_of_erf_form(slope, x, distribution)


def write_slope_of_erf_form(slope: Array, x: Array, distribution: Array) -> None:
    """Phi(x) + x phi(x)."""
    density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    np.add(distribution, x * density, out=slope)


# What a standard normal number exceeds a >= 0 with, 1 - Phi(a) = phi(a) (c_1 t + ... + c_6 t^6) with t = 1/(1 + r a):
# the form of Abramowitz, Stegun 26.2.17, with a term more, fitted anew: wrong by less than 5e-9.
RATE = 0.275
TAIL = (0.295304009, 0.105557804, 0.837044189, -0.829677519, 1.13299283, -0.287907162)


def erf_form_in_float32(x: Array, y: Array, slope: Array) -> None:
    """The same by the tail 1 - Phi(a) with a = |x|, an eighth of the work: y = (x + a)/2 - a tail.

    For x >= 0 that is x - x (1 - Phi(x)), for x < 0, by the symmetry of phi, x Phi(x). For the slope, likewise:
    1/2 +- (1/2 - tail + a phi(a)), with the sign of x.
    """
    a = np.abs(x)
    t = a * RATE
    t += 1
    np.divide(1, t, out=t)
    tail = t * TAIL[-1]
    for coefficient in TAIL[-2::-1]:
        tail += coefficient
        tail *= t
    density = np.multiply(a, a, out=t)
    density *= -0.5
    np.exp(density, out=density)
    density *= 1 / math.sqrt(2 * math.pi)
    tail *= density
    np.add(x, a, out=y)
    y *= 0.5
    if slope.size:
        np.multiply(a, density, out=slope)
        slope -= tail
        slope += 0.5
        np.copysign(slope, x, out=slope)
        slope += 0.5
    a *= tail
    y -= a


def gelu_forward_cuda(x, bias=None, *, approximate):
    if not activation_fits(x, bias):
        return NotImplemented
    x, bias = contiguous(x), None if bias is None else contiguous(bias)
    return activation_forward("gelu.cu", FORMS[approximate], x, bias), SavedByKernel(x, bias, approximate)


def gelu_backward_cuda(dout, saved):
    x, bias, approximate = saved
    return activation_backward("gelu.cu", FORMS[approximate], contiguous(dout), x, bias)


GELU = Op("gelu", gelu_forward, gelu_backward, cuda=(gelu_forward_cuda, gelu_backward_cuda))


def gelu(x: Tensor, approximate: str = "none", bias: Tensor | None = None) -> Tensor:
    """x Phi(x), elementwise; `approximate="tanh"` for GPT-2's form, "none" for the exact one (PyTorch's default).

    With a bias, gelu(x + bias), the bias of the linear layer that made x without it.
    Shapes: x any, with a bias (..., C); bias (C,) or None.
    Saves: the slope, an array like x; on a GPU, references to x and bias.
    Raises: ShapeError where C differs; InputError for another form.
    Source: Hendrycks, Gimpel 2016, section 2.
    """
    if approximate not in FORMS:
        raise InputError(f"gelu: approximate is {approximate!r}; choose 'none' (erf) or 'tanh'")
    if bias is not None:
        check_shapes("gelu", x=("... C", x), bias=("C", bias))
    check_floating("gelu", x=x, bias=bias)
    return GELU(x, bias, approximate=approximate)


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
