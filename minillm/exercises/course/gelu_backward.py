"""The gradient of GELU, in the form that GPT-2 uses.

    y = x (1 + tanh u) / 2,     u = sqrt(2/pi) (x + 0.044715 x^3)

Given dy, write the gradient with respect to x. x acts on y in two ways, directly and through u. The result must have
the dtype of x: in float32 it is not enough that the numbers are right.
"""

from __future__ import annotations

import math

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.ops.gelu import gelu_backward as engine_backward
from minillm.ops.gelu import gelu_forward

CUBIC, ROOT = 0.044715, math.sqrt(2 / math.pi)


def gelu_backward(dy, x):
    """Return dx, like dy and x (...)."""
    raise NotImplementedError("replace this line")


def right(dy, x):
    return engine_backward(dy, gelu_forward(x, approximate="tanh")[1])[0]


def cases(rng):
    for shape in ((4,), (2, 3), (2, 1, 5)):
        yield dict(dy=rng.normal(size=shape), x=rng.normal(0, 1.5, size=shape))
    yield dict(dy=np.array([0.5, -1.0, 2.0], np.float32), x=np.array([0.7, 0.1, -0.4], np.float32))


EXERCISE = Exercise(
    starter=gelu_backward,
    returns="dx",
    right=right,
    cases=cases,
    hints=(
        "Call c the factor (1 + tanh u) / 2, so that y = x c. By the product rule the slope is c + x dc/dx.",
        "The slope of tanh u by u is 1 - tanh(u)^2; then comes the slope of u by x.",
        "The slope of u has a factor before the bracket, and the cube in it has a slope of its own.",
        "A NumPy number such as np.sqrt(2 / np.pi) is float64 and turns float32 into float64; math.sqrt does not.",
    ),
    read="minillm/ops/gelu.py",
)


def tanh_u(x):
    return np.tanh(ROOT * (x + CUBIC * x**3))


@EXERCISE.mistake("Only the direct way of x is there; x also moves the factor (1 + tanh u) / 2.")
def factor_constant(dy, x):
    return dy * (1 + tanh_u(x)) / 2


@EXERCISE.mistake("Only the way through u is there; x is also the first factor of the product.")
def product_rule_forgotten(dy, x):
    return dy * x * (1 - tanh_u(x) ** 2) / 2 * ROOT * (1 + 3 * CUBIC * x**2)


@EXERCISE.mistake("The slope of u is missing: by the chain rule the slope of tanh(u) is multiplied by du/dx.")
def slope_of_u_forgotten(dy, x):
    t = tanh_u(x)
    return dy * ((1 + t) / 2 + x * (1 - t**2) / 2)


@EXERCISE.mistake("In the slope of u the cube is derived wrongly: the slope of x^3 is three times x^2.")
def factor_three_forgotten(dy, x):
    t = tanh_u(x)
    return dy * ((1 + t) / 2 + x * (1 - t**2) / 2 * ROOT * (1 + CUBIC * x**2))


@EXERCISE.mistake("In the slope of u the factor sqrt(2/pi) is missing.")
def root_forgotten(dy, x):
    t = tanh_u(x)
    return dy * ((1 + t) / 2 + x * (1 - t**2) / 2 * (1 + 3 * CUBIC * x**2))


@EXERCISE.mistake("The slope of the tanh is 1 minus the square of its value; here it is 1 minus the value.")
def slope_of_tanh(dy, x):
    t = tanh_u(x)
    return dy * ((1 + t) / 2 + x * (1 - t) / 2 * ROOT * (1 + 3 * CUBIC * x**2))


@EXERCISE.mistake("The half is missing from the slope of the factor: it is (1 + tanh u) / 2.")
def half_forgotten(dy, x):
    t = tanh_u(x)
    return dy * ((1 + t) / 2 + x * (1 - t**2) * ROOT * (1 + 3 * CUBIC * x**2))


@EXERCISE.mistake("This is the gradient of the exact GELU, with erf; here the form with tanh is asked for.")
def exact_form(dy, x):
    return engine_backward(dy, gelu_forward(x, approximate="none")[1])[0]


@EXERCISE.mistake(
    "The numbers are right, but float32 has become float64: a NumPy number such as np.sqrt(2 / np.pi) is float64, and "
    "what it touches becomes so too. Numbers of Python, such as math.sqrt(2 / math.pi), do not do that."
)
def float64_numbers(dy, x):
    return right(dy, x).astype(np.float64)
