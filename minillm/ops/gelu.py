"""The Gaussian error linear unit (Hendrycks, Gimpel 2016, arXiv:1606.08415): y = x Phi(x).

Phi is the standard normal distribution function, so x is let through with the probability that a standard normal
number is below it. Two forms, as in PyTorch:

    erf:   y = x/2 (1 + erf(x / sqrt 2)),   dy/dx = Phi(x) + x phi(x)  with  phi(x) = e^(-x^2/2) / sqrt(2 pi)
    tanh:  y = x/2 (1 + t),   t = tanh u,   u = sqrt(2/pi) (x + 0.044715 x^3),   dy/dx = (1 + t)/2 + x/2 (1 - t^2) u'

GPT-2 uses the tanh form, BERT the other. NumPy has no erf; `erf` below is a table of Taylor polynomials.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_rows, contiguous, row_blocks
from minillm.errors import InputError, check_floating
from minillm.kernels import get_kernel
from minillm.ops.launch import THREADS, blocks_for

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)  # Python floats: a NumPy scalar would turn float32 into float64
CUBIC = 0.044715


class Saved(NamedTuple):
    """The input; everything else is computed again."""

    x: Array
    approximate: str


def gelu_forward(x, *, approximate):
    out = np.empty_like(x, order="C")
    x_rows, y = as_rows(x), as_rows(out)

    def formula_tanh(rows):
        x, t = x_rows[rows], y[rows]
        np.multiply(x, x, out=t)
        t *= SQRT_2_OVER_PI * CUBIC
        t += SQRT_2_OVER_PI
        t *= x
        np.tanh(t, out=t)
        t += 1
        t *= x
        t *= 0.5

    def formula_erf(rows):
        x = x_rows[rows]
        np.multiply(x, normal_distribution(x), out=y[rows])

    row_blocks(formula_tanh if approximate == "tanh" else formula_erf, y)
    return out, Saved(x, approximate)


def gelu_backward(dout, saved):
    dx = np.empty_like(saved.x, order="C")
    x_rows, dy, dx_rows = as_rows(saved.x), as_rows(dout), as_rows(dx)

    def formula_tanh(rows):
        x, slope = x_rows[rows], dx_rows[rows]
        square = x * x
        t = square * (SQRT_2_OVER_PI * CUBIC)
        t += SQRT_2_OVER_PI
        t *= x
        np.tanh(t, out=t)
        np.multiply(t, t, out=slope)
        np.subtract(1, slope, out=slope)  # 1 - t^2
        square *= 3 * SQRT_2_OVER_PI * CUBIC
        square += SQRT_2_OVER_PI  # u'
        slope *= square
        slope *= x
        slope += t
        slope += 1
        slope *= 0.5
        slope *= dy[rows]

    def formula_erf(rows):
        x = x_rows[rows]
        density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        np.multiply(dy[rows], normal_distribution(x) + x * density, out=dx_rows[rows])

    row_blocks(formula_tanh if saved.approximate == "tanh" else formula_erf, dy)
    return (dx,)


def gelu_forward_cuda(x, *, approximate):
    if x.size == 0:
        return NotImplemented
    x = contiguous(x)
    out = np.empty_like(x)
    _launch("activation_forward", approximate, x, out)
    return out, Saved(x, approximate)


def gelu_backward_cuda(dout, saved):
    dx = np.empty_like(saved.x)
    _launch("activation_backward", saved.approximate, contiguous(dout), saved.x, dx)
    return (dx,)


def _launch(name: str, approximate: str, *arrays: Array) -> None:
    x = arrays[0]
    kernel = get_kernel("gelu.cu", name, x.dtype, "GeluTanh" if approximate == "tanh" else "GeluErf")
    kernel(blocks_for(x.size, 16 // x.itemsize), THREADS, (*arrays, np.int64(x.size)))


GELU = Op("gelu", gelu_forward, gelu_backward, cuda=(gelu_forward_cuda, gelu_backward_cuda))


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x Phi(x), elementwise; `approximate="tanh"` for GPT-2's form, "none" for the exact one (PyTorch's default).

    Saves: a reference to x.
    Source: Hendrycks, Gimpel 2016, section 2.
    """
    if approximate not in ("none", "tanh"):
        raise InputError(f"gelu: approximate is {approximate!r}; choose 'none' (erf) or 'tanh'")
    check_floating("gelu", x=x)
    return GELU(x, approximate=approximate)


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
