"""The gradient of broadcasting: bring a gradient back to the shape of what was stretched.

When NumPy adds a bias of shape (C,) to an array of shape (B, T, C), it reads each element of the bias in many places:
the bias is stretched to (B, T, C). A stretched array gets a gradient of the large shape, but needs one of its own
shape. NumPy aligns shapes at their last axes; an axis is stretched where it has size 1, or is not there at all.

Write the function that turns the gradient dy of the stretched array into the gradient of the array of shape `shape`.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.ops import broadcast


def unbroadcast(dy, shape):
    """Return dx, an array of shape `shape`; dy is an array of any shape that `shape` can be stretched to."""
    raise NotImplementedError("replace this line")


def cases(rng):
    for large, shape in (
        ((3, 4), (3, 4)),
        ((3, 4), (4,)),
        ((3, 4), (3, 1)),
        ((2, 3, 4), (3, 4)),
        ((2, 3, 4), (3, 1)),
        ((3, 3), (3,)),
        ((2, 3, 1, 5), (1, 1, 5)),
        ((2, 3), ()),
    ):
        yield dict(dy=rng.normal(size=large), shape=shape)


EXERCISE = Exercise(
    starter=unbroadcast,
    returns="dx",
    right=broadcast.unbroadcast,
    cases=cases,
    hints=(
        "One element of x goes into many elements of y. By the chain rule, its gradient is a sum over all of them.",
        "Two kinds of axes were stretched: those that `shape` does not have, which are in front, and those of size 1.",
        "Sum over the axes in front first; then over each axis where `shape` has size 1, and keep that axis.",
    ),
    read="minillm/ops/broadcast.py",
)


def stretched(dy, shape):
    """The axes in front, and the axes of size 1."""
    new = dy.ndim - len(shape)
    return tuple(range(new)), tuple(new + i for i, size in enumerate(shape) if size == 1 and dy.shape[new + i] > 1)


@EXERCISE.mistake("You take the mean over the stretched axes. Every copy was used in full, so their gradients add up.")
def mean_in_place_of_sum(dy, shape):
    front, ones = stretched(dy, shape)
    return dy.mean(axis=front + ones).reshape(shape)


@EXERCISE.mistake("You take one of the copies. Each copy went into another element of y, and all of them count.")
def first_copy_alone(dy, shape):
    _, ones = stretched(dy, shape)
    index = (0,) * (dy.ndim - len(shape)) + tuple(
        slice(0, 1) if i + dy.ndim - len(shape) in ones else slice(None) for i in range(len(shape))
    )
    return dy[index]


@EXERCISE.mistake("An axis of size 1 has vanished in the sum; the gradient must keep it (keepdims, or a reshape).")
def axes_of_size_one_dropped(dy, shape):
    front, ones = stretched(dy, shape)
    return dy.sum(axis=front + ones)


@EXERCISE.mistake("Only axes that are new in front are summed; an axis where `shape` has size 1 was stretched as well.")
def axes_of_size_one_forgotten(dy, shape):
    return dy.sum(axis=stretched(dy, shape)[0])


@EXERCISE.mistake("Only axes of size 1 are summed; axes that `shape` does not have at all were stretched as well.")
def new_axes_forgotten(dy, shape):
    return dy.sum(axis=stretched(dy, shape)[1], keepdims=True)


@EXERCISE.mistake("Only the first axis is summed; more than one axis can be stretched.")
def first_axis_alone(dy, shape):
    return dy if dy.shape == shape else dy.sum(axis=0)


@EXERCISE.mistake("The last axes are summed. NumPy aligns shapes at the end, so axes that are missing are in front.")
def aligned_at_the_front(dy, shape):
    _, ones = stretched(dy, shape)
    new = dy.ndim - len(shape)
    if new:
        return dy.sum(axis=tuple(range(len(shape), dy.ndim)))
    return dy.sum(axis=ones, keepdims=True)


@EXERCISE.mistake("All elements are summed and the total is put everywhere; sum over the stretched axes alone.")
def everything_summed(dy, shape):
    return dy if dy.shape == shape else np.full(shape, dy.sum())
