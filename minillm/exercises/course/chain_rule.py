"""The chain rule for numbers: the gradient of a neuron with a residual.

A neuron with one input computes, from the numbers x, w, b and t,

    u = w x + b         y = tanh(u) + x         loss = (y - t)^2

Write the gradient of the loss with respect to x, w and b. Begin at the loss and go back line by line: each line
multiplies what comes from behind by its own slope. Where a number is used in two places, look at both.
"""

from __future__ import annotations

import math

import numpy as np

from minillm.autograd import Tensor
from minillm.exercises.exercise import Exercise


def neuron_backward(x, w, b, t):
    """Return dx, dw, db: the derivatives of the loss by x, w and b. All are floats."""
    raise NotImplementedError("replace this line")


def right(x, w, b, t):
    leaves = [Tensor(np.array(number), requires_grad=True) for number in (x, w, b)]
    x, w, b = leaves
    loss = ((w * x + b).tanh() + x - t) ** 2
    loss.backward()
    return tuple(np.asarray(leaf.grad).item() for leaf in leaves)


def cases(rng):
    yield dict(x=0.5, w=-1.5, b=0.25, t=2.0)
    yield dict(x=-2.0, w=0.75, b=0.5, t=-1.0)
    for _ in range(3):
        yield dict(zip("xwbt", rng.normal(size=4).tolist(), strict=True))


EXERCISE = Exercise(
    starter=neuron_backward,
    returns="dx dw db",
    right=right,
    cases=cases,
    hints=(
        "Compute u and y first, as the forward does; the gradient needs their values.",
        "Go from the end: the slope of the loss by y, then of y by u, then of u by w, by b and by x. Multiply them.",
        "The number x enters in u and in y. Its gradient is the sum of what comes back over both ways.",
    ),
    read="minillm/backward.py",
)


@EXERCISE.mistake("x is used twice, in u and beside the tanh; the gradient over the second way is missing from dx.")
def residual_forgotten(x, w, b, t):
    u = w * x + b
    du = 2 * (math.tanh(u) + x - t) * (1 - math.tanh(u) ** 2)
    return du * w, du * x, du


@EXERCISE.mistake("The slope of the square is missing its factor: what is the derivative of (y - t)^2 by y?")
def factor_of_the_square_forgotten(x, w, b, t):
    u = w * x + b
    dy = math.tanh(u) + x - t
    du = dy * (1 - math.tanh(u) ** 2)
    return du * w + dy, du * x, du


@EXERCISE.mistake("The gradient goes through the tanh unchanged; multiply by the slope of the tanh at u.")
def slope_of_tanh_forgotten(x, w, b, t):
    du = dy = 2 * (math.tanh(w * x + b) + x - t)
    return du * w + dy, du * x, du


@EXERCISE.mistake("The slope of the tanh is 1 minus the square of its value, tanh(u); here it is 1 minus the value.")
def slope_of_tanh_without_its_square(x, w, b, t):
    u = w * x + b
    dy = 2 * (math.tanh(u) + x - t)
    du = dy * (1 - math.tanh(u))
    return du * w + dy, du * x, du


@EXERCISE.mistake("The slope of the tanh was made from y, which is tanh(u) + x. It needs the value of the tanh alone.")
def slope_of_tanh_at_y(x, w, b, t):
    y = math.tanh(w * x + b) + x
    dy = 2 * (y - t)
    du = dy * (1 - y**2)
    return du * w + dy, du * x, du


@EXERCISE.mistake("In a product each factor gets the other one: the slope of w x by x is w, and by w it is x.")
def factors_exchanged(x, w, b, t):
    u = w * x + b
    dy = 2 * (math.tanh(u) + x - t)
    du = dy * (1 - math.tanh(u) ** 2)
    return du * x + dy, du * w, du


@EXERCISE.mistake("All signs are the wrong way round: the loss falls when y comes nearer to t, so its slope is y - t.")
def sign_of_the_error(x, w, b, t):
    u = w * x + b
    dy = 2 * (t - math.tanh(u) - x)
    du = dy * (1 - math.tanh(u) ** 2)
    return du * w + dy, du * x, du
