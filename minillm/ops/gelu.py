"""The Gaussian error linear unit (Hendrycks, Gimpel 2016, arXiv:1606.08415).

An element x is let through with the probability that a standard normal number is below it:

    y = x cdf

    exact form    cdf = Phi(x) = (1 + erf(x / sqrt 2)) / 2
    tanh form     cdf = (1 + tanh u) / 2,     u = sqrt(2/pi) (x + 0.044715 x^3)

Backward. x acts on y directly, and through cdf, whose slope is the density, pdf = d cdf / dx:

    dx = dy (cdf + x pdf)

    exact form    pdf = phi(x) = e^(-x^2/2) / sqrt(2 pi)
    tanh form     pdf = (1/2) (1 - tanh^2 u) (du/dx) = 2 cdf (1 - cdf) (du/dx)
                  du/dx = sqrt(2/pi) (1 + 3 * 0.044715 x^2)

GPT-2 uses the tanh form, BERT the exact one. Far from 0, cdf or pdf is exactly 0 in floating point, and an infinite x
times 0 would be NaN. The forward therefore multiplies cdf by max(x, -FAR), and the backward uses clip(x, -FAR, FAR), in
place of x.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.erf import erf
from minillm.errors import InputError, check_floating

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)  # Python floats: a NumPy scalar would turn float32 into float64
CUBIC = 0.044715
FAR = 40  # cdf(-40) and pdf(40) are 0 in double precision


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    x: Array  # (...)
    cdf: Array  # (...)
    approximate: str


def gelu_forward(x, *, approximate):
    if approximate == "tanh":
        u = SQRT_2_OVER_PI * (x + CUBIC * x**3)  # (...)
        cdf = (1 + np.tanh(u)) / 2  # (...)
    else:
        cdf = (1 + erf(x * math.sqrt(0.5))) / 2  # (...)
    y = np.maximum(x, -FAR) * cdf  # (...)
    return y, Saved(x, cdf, approximate)


def gelu_backward(dy, saved):
    x, cdf, approximate = saved
    near = np.clip(x, -FAR, FAR)  # (...)
    if approximate == "tanh":
        du_dx = SQRT_2_OVER_PI * (1 + 3 * CUBIC * near**2)  # (...)
        pdf = 2 * cdf * (1 - cdf) * du_dx  # (...)
    else:
        pdf = np.exp(-(near**2) / 2) / math.sqrt(2 * math.pi)  # (...)
    dx = dy * (cdf + near * pdf)  # (...)
    return (dx,)


GELU = Op("gelu", gelu_forward, gelu_backward)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x Phi(x), elementwise; `approximate="tanh"` for GPT-2's form, "none" for the exact one (PyTorch's default).

    Shapes: x and the result (...).
    Saves: the slope dy/dx, an array like x; on a GPU, a reference to x; by the plain formula, x and cdf.
    Raises: InputError for another form; DtypeError where x is not floating.
    Source: Hendrycks, Gimpel 2016, section 2.
    """
    check_form("gelu", approximate)
    check_floating("gelu", x=x)
    return GELU(x, approximate=approximate)


def check_form(function: str, approximate: str) -> None:
    """Raise InputError for a form of GELU that does not exist."""
    if approximate not in ("none", "tanh"):
        raise InputError(f"{function}: approximate is {approximate!r}; choose 'none' (erf) or 'tanh'")
