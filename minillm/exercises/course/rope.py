"""Rotary position embedding: positions as rotations.

The D channels of a head are D/2 pairs: channel i and channel i + D/2 (the layout of Hugging Face's Llama). At position
t, pair i is a point in the plane that is turned counter-clockwise by the angle t base^(-2i/D):

    y1 = x1 cos - x2 sin        y2 = x1 sin + x2 cos

The first row of x stands at position `start`, which is above 0 when earlier tokens are in a cache.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.ops.rope import rope_forward


def rope(x, start, base):
    """Return y, like x (..., T, D) with D even; start is a whole number, and base a number such as 10000."""
    raise NotImplementedError("replace this line")


def angles(x, start, base):
    T, D = x.shape[-2:]
    return np.outer(start + np.arange(T), float(base) ** (-2 * np.arange(D // 2) / D))  # (T, D/2)


def turned(x, angles, layout="half"):
    return rope_forward(x, cos=np.cos(angles), sin=np.sin(angles), layout=layout)[0]


def right(x, start, base):
    return turned(x, angles(x, start, base))


def cases(rng):
    yield dict(x=rng.normal(size=(3, 4)), start=0, base=100)
    yield dict(x=rng.normal(size=(2, 6)), start=5, base=100)
    yield dict(x=rng.normal(size=(2, 3, 5, 8)), start=2, base=10000)


EXERCISE = Exercise(
    starter=rope,
    returns="y",
    right=right,
    cases=cases,
    hints=(
        "Make the D/2 speeds base^(-2i/D) first, then the table (T, D/2) of angles: each position times each speed.",
        "Cut x into its two halves of channels; they are x1 and x2 of all pairs at once.",
        "Join y1 and y2 again in the places where x1 and x2 were.",
    ),
    read="minillm/ops/rope.py",
)


@EXERCISE.mistake("Neighbouring channels form a pair here; in this layout channel i belongs to channel i + D/2.")
def neighbours_as_pairs(x, start, base):
    return turned(x, angles(x, start, base), "interleaved")


@EXERCISE.mistake("Positions begin at 0 whatever `start` is; with a cache the first row is a later token.")
def start_ignored(x, start, base):
    return right(x, 0, base)


@EXERCISE.mistake("Positions are counted from 1; the first token, at position 0, is not turned at all.")
def counted_from_one(x, start, base):
    return right(x, start + 1, base)


@EXERCISE.mistake("The pairs are turned the other way, by the negative angle: look at the two signs of the sine.")
def turned_backwards(x, start, base):
    return turned(x, -angles(x, start, base))


@EXERCISE.mistake("The exponent is i/D; it is 2i/D, so that the speeds go from 1 nearly to 1/base.")
def exponent_without_the_two(x, start, base):
    return right(x, start, float(base) ** 0.5)


@EXERCISE.mistake("The exponent has the wrong sign: later pairs turn more slowly, not faster.")
def speeds_inverted(x, start, base):
    return right(x, start, 1 / base)


@EXERCISE.mistake("All pairs turn at one speed; pair i has the speed base^(-2i/D).")
def one_speed(x, start, base):
    return right(x, start, 1.0)


@EXERCISE.mistake("Both outputs have the minus sign, or neither: a rotation has one of each.")
def no_rotation(x, start, base):
    half = x.shape[-1] // 2
    a, x1, x2 = angles(x, start, base), x[..., :half], x[..., half:]
    return np.concatenate([x1 * np.cos(a) - x2 * np.sin(a), x2 * np.cos(a) - x1 * np.sin(a)], axis=-1)
