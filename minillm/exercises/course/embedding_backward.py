"""The gradient of an embedding, where an id can occur more than once.

An embedding looks up one row of a table for each id: y[n] = weight[ids[n]], with weight (V, C). Given dy, write the
gradient with respect to the table. The row of a padding id, if there is one, gets no gradient.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.ops.embedding import Saved
from minillm.ops.embedding import embedding_backward as engine_backward


def embedding_backward(dy, ids, rows, padding=None):
    """Return dweight (rows, C).

    dy is (..., C), and ids is an integer array (...) of numbers from 0 to rows - 1. padding is None, or the id whose
    row gets no gradient.
    """
    raise NotImplementedError("replace this line")


def right(dy, ids, rows, padding):
    return engine_backward(dy, Saved(ids, (rows, dy.shape[-1]), padding))[0]


def cases(rng):
    for listed, rows, padding in (
        ([2, 0, 3], 5, None),
        ([1, 2, 1, 1], 4, None),
        ([[0, 2, 2], [3, 0, 0]], 4, None),
        ([[1, 2], [2, 3]], 4, 2),
        ([0, 1, 0, 3], 4, 0),
        ([], 3, None),
    ):
        ids = np.array(listed, np.int64)
        yield dict(dy=rng.normal(size=(*ids.shape, 3)), ids=ids, rows=rows, padding=padding)


EXERCISE = Exercise(
    starter=embedding_backward,
    returns="dweight",
    right=right,
    cases=cases,
    hints=(
        "Begin with zeros: a row that was not looked up does not move the loss.",
        "A row that was looked up three times goes into three places of y, and gets the sum of their gradients.",
        "An assignment through an array of indices, and += too, keeps one of several values for a repeated index.",
        "NumPy has an operation that does add all of them; a loop over the ids does it too.",
        "An id of 0 is false for Python's `if`, but it may be the padding id.",
    ),
    read="minillm/ops/embedding.py",
)


def flat(dy, ids):
    return dy.reshape(-1, dy.shape[-1]), ids.reshape(-1)


def without(dweight, padding):
    if padding is not None:
        dweight[padding] = 0
    return dweight


@EXERCISE.mistake(
    "An id that occurs more than once keeps the gradient of its last place alone. dweight[ids] = dy does that, and so "
    "does dweight[ids] += dy, which reads every row before it writes any."
)
def last_place_wins(dy, ids, rows, padding=None):
    dweight = np.zeros((rows, dy.shape[-1]))
    dweight[ids] = dy
    return without(dweight, padding)


@EXERCISE.mistake("An id that occurs more than once keeps the gradient of its first place alone; all places add up.")
def first_place_wins(dy, ids, rows, padding=None):
    return last_place_wins(*(x[::-1] for x in flat(dy, ids)), rows, padding)


@EXERCISE.mistake("An id that occurs more than once gets the mean of its gradients; they add up.")
def mean_of_places(dy, ids, rows, padding=None):
    count = np.bincount(ids.reshape(-1), minlength=rows)
    return right(dy, ids, rows, padding) / np.maximum(count, 1)[:, None]


@EXERCISE.mistake("The gradient is divided by the number of ids; the forward takes no mean, so there is none here.")
def divided_by_the_number_of_ids(dy, ids, rows, padding=None):
    return right(dy, ids, rows, padding) / max(1, ids.size)


@EXERCISE.mistake("Only the first line of ids counts; ids may have any number of axes.")
def first_line_alone(dy, ids, rows, padding=None):
    return right(dy[0], ids[0], rows, padding) if ids.ndim > 1 else right(dy, ids, rows, padding)


@EXERCISE.mistake("The row of the padding id gets a gradient; it must stay 0.")
def padding_ignored(dy, ids, rows, padding=None):
    return right(dy, ids, rows, None)


@EXERCISE.mistake("A padding id of 0 is taken for none: `if padding` is false for 0. Ask `if padding is not None`.")
def padding_zero_ignored(dy, ids, rows, padding=None):
    return right(dy, ids, rows, padding or None)


@EXERCISE.mistake("The row of id 0 never gets a gradient; 0 is an id like any other where there is no padding id.")
def zero_is_padding(dy, ids, rows, padding=None):
    return right(dy, ids, rows, padding or 0)
