"""GELU on a CPU: the formulas of ops/gelu.py in few passes, each over a block of rows that stays in cache.

The exact form in float32 goes by the tail of the normal distribution, which takes an eighth of the work of erf.
"""

from __future__ import annotations

import math

import numpy as np

from minillm.backend import Array
from minillm.erf import erf
from minillm.fast import slopes
from minillm.fast.slopes import ValueAndSlope, write_limits
from minillm.ops.gelu import CUBIC, SQRT_2_OVER_PI
from minillm.sums import is_moderate

FAR = 1000  # from here on y is x or 0, and so it is wherever the formulas below overflow


def forward(x, *, approximate):
    """y = gelu(x), in the shape of x."""
    return slopes.forward(value_and_slope(approximate, x.dtype), x)


def backward(dy, saved):
    """dx = dy times the slope."""
    return (slopes.backward(dy, saved.slope),)


def value_and_slope(approximate: str, dtype: np.dtype) -> ValueAndSlope:
    """The function that writes y and its slope dy/dx, both of the shape of x, for a block of rows."""
    form = tanh_form if approximate == "tanh" else tail_form if dtype == np.float32 else erf_form

    def write(z: Array, y: Array, slope: Array) -> None:
        form(z, y, slope)
        if not is_moderate(z):
            write_limits(FAR, z, y, slope)

    return write


def tanh_form(x: Array, y: Array, slope: Array) -> None:
    """y = x cdf with cdf = (1 + tanh u)/2; the slope is cdf + y (1 - cdf) 2 (du/dx). All arrays have the shape of x."""
    square = x * x
    memory = np.empty_like(square)  # every name below is this array, at the time when it holds what the name says
    cubic_part = np.multiply(square, SQRT_2_OVER_PI * CUBIC, out=memory)
    u_over_x = np.add(cubic_part, SQRT_2_OVER_PI, out=memory)
    u = np.multiply(u_over_x, x, out=memory)
    tanh_u = np.tanh(u, out=memory)
    half_tanh_u = np.multiply(tanh_u, 0.5, out=memory)
    cdf = np.add(half_tanh_u, 0.5, out=memory)
    np.multiply(x, cdf, out=y)
    if slope.size:
        write_slope_of_tanh_form(slope, square, cdf, y)


def write_slope_of_tanh_form(slope: Array, square: Array, cdf: Array, y: Array) -> None:
    """cdf + y (1 - cdf) 2 (du/dx), given square = x^2, whose memory it uses; all arrays have the shape of x."""
    cubic_part = np.multiply(square, 6 * SQRT_2_OVER_PI * CUBIC, out=square)
    twice_du_dx = np.add(cubic_part, 2 * SQRT_2_OVER_PI, out=square)
    y_twice_du_dx = np.multiply(twice_du_dx, y, out=square)
    rest = np.subtract(1, cdf, out=slope)
    through_u = np.multiply(rest, y_twice_du_dx, out=slope)
    np.add(through_u, cdf, out=slope)


def erf_form(x: Array, y: Array, slope: Array) -> None:
    """y = x cdf with cdf = Phi(x); the slope is cdf + x pdf."""
    cdf = 0.5 * (1 + erf(x * math.sqrt(0.5)))
    np.multiply(x, cdf, out=y)
    if slope.size:
        write_slope_of_erf_form(slope, x, cdf)


def write_slope_of_erf_form(slope: Array, x: Array, cdf: Array) -> None:
    """cdf + x pdf; all arrays have the shape of x."""
    pdf = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    np.add(cdf, x * pdf, out=slope)


# The probability that a standard normal number exceeds a >= 0, which is 1 - Phi(a):
#     tail(a) = pdf(a) (c_1 t + ... + c_6 t^6)  with  t = 1/(1 + RATE a)
# This is the form of Abramowitz, Stegun 26.2.17, with a term more, fitted anew: wrong by less than 5e-9.
RATE = 0.275
TAIL = (0.295304009, 0.105557804, 0.837044189, -0.829677519, 1.13299283, -0.287907162)


def tail_form(x: Array, y: Array, slope: Array) -> None:
    """GELU's exact form in float32, through the normal distribution's tail: y = (x + a)/2 - a tail with a = |x|.

    For x >= 0 that is x - x (1 - Phi(x)), for x < 0, by the symmetry of the density, x Phi(x). The slope, likewise, is
    1/2 +- (1/2 - tail + a pdf), with the sign of x.
    """
    a = np.abs(x)
    rate_a = a * RATE
    one_more = np.add(rate_a, 1, out=rate_a)
    t = np.divide(1, one_more, out=one_more)
    polynomial = t * TAIL[-1]
    for coefficient in TAIL[-2::-1]:  # Horner's rule
        polynomial += coefficient
        polynomial *= t
    square = np.multiply(a, a, out=t)
    exponent = np.multiply(square, -0.5, out=square)
    exponential = np.exp(exponent, out=exponent)
    pdf = np.multiply(exponential, 1 / math.sqrt(2 * math.pi), out=exponential)
    tail = np.multiply(polynomial, pdf, out=polynomial)
    if slope.size:
        write_slope_of_tail_form(slope, x, a, tail, pdf)
    x_plus_a = np.add(x, a, out=y)
    half = np.multiply(x_plus_a, 0.5, out=y)
    a_tail = np.multiply(a, tail, out=a)
    np.subtract(half, a_tail, out=y)


def write_slope_of_tail_form(slope: Array, x: Array, a: Array, tail: Array, pdf: Array) -> None:
    """1/2 +- (1/2 - tail + a pdf), with the sign of x; all arrays have the shape of x."""
    a_pdf = np.multiply(a, pdf, out=slope)
    without_tail = np.subtract(a_pdf, tail, out=slope)
    from_half = np.add(without_tail, 0.5, out=slope)  # always above 0
    signed = np.copysign(from_half, x, out=slope)
    np.add(signed, 0.5, out=slope)
