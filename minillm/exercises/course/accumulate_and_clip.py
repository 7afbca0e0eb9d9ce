"""Gradient accumulation and clipping: one step from several micro-batches.

A batch that does not fit into memory is cut into micro-batches. Each gives the gradient of its own mean loss per
token; they may have different numbers of tokens. The step must be that of the whole batch: of the mean loss over all
tokens. Then the gradients are clipped: if their norm, the root of the sum of all squares over all parameters, is
above max_norm, all are multiplied by one factor that makes it max_norm.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.optim import clip


def accumulated(gradients, tokens, max_norm):
    """Return clipped, a list with one array for each parameter, and norm, a float: the norm before clipping.

    gradients[i] is the list of the arrays of micro-batch i, in the order of the parameters, and tokens[i] its number
    of tokens. A micro-batch may have no tokens; its gradients are 0 then.
    """
    raise NotImplementedError("replace this line")


def mean(gradients, tokens):
    """The gradient of the mean over all tokens."""
    return [np.tensordot(np.array(tokens) / sum(tokens), np.stack(one), 1) for one in zip(*gradients, strict=True)]


def norm_of(arrays):
    return float(np.sqrt(clip.sum_of_squares([x.reshape(-1) for x in arrays])))


def clipped(arrays, max_norm):
    norm = norm_of(arrays)
    return [x * clip.factor_for(norm, max_norm) for x in arrays], norm


def right(gradients, tokens, max_norm):
    return clipped(mean(gradients, tokens), max_norm)


def cases(rng):
    for tokens, max_norm in (([5], 100.0), ([4, 4], 100.0), ([6, 2, 1], 100.0), ([3, 3], 0.5), ([7, 0, 2], 1.0)):
        yield dict(
            gradients=[[(n > 0) * rng.normal(size=shape) for shape in ((3,), (2, 2))] for n in tokens],
            tokens=tokens,
            max_norm=max_norm,
        )


EXERCISE = Exercise(
    starter=accumulated,
    returns="clipped norm",
    right=right,
    cases=cases,
    hints=(
        "Turn each mean back into a sum: multiply it by its number of tokens. Add up, and divide once.",
        "The norm is one number for all parameters: add the squares of all elements of all arrays, then take the root.",
        "A factor above 1 would make small gradients larger; clipping never does.",
    ),
    read="minillm/optim/clip.py",
)


@EXERCISE.mistake("Each micro-batch counts alike; one with more tokens has a larger share in the mean over all tokens.")
def mean_over_micro_batches(gradients, tokens, max_norm):
    return clipped(mean(gradients, [1] * len(tokens)), max_norm)


@EXERCISE.mistake(
    "The gradients of the micro-batches are added up and not divided, so the step grows with their number."
)
def added_up(gradients, tokens, max_norm):
    return clipped([len(tokens) * x for x in mean(gradients, [1] * len(tokens))], max_norm)


@EXERCISE.mistake("The gradients are weighted by their tokens, but the sum is not divided by all tokens.")
def not_divided_by_the_tokens(gradients, tokens, max_norm):
    return clipped([sum(tokens) * x for x in mean(gradients, tokens)], max_norm)


@EXERCISE.mistake("Only the last micro-batch is in the result.")
def last_micro_batch(gradients, tokens, max_norm):
    return clipped(gradients[-1], max_norm)


@EXERCISE.mistake("Every array is clipped by its own norm, which turns the direction of the step; there is one norm.")
def each_array_by_itself(gradients, tokens, max_norm):
    total = mean(gradients, tokens)
    return [clipped([x], max_norm)[0][0] for x in total], norm_of(total)


@EXERCISE.mistake("The gradients are always scaled to max_norm; a norm below it must stay as it is.")
def always_scaled(gradients, tokens, max_norm):
    total = mean(gradients, tokens)
    norm = norm_of(total)
    return [x * (max_norm / norm) for x in total], norm


@EXERCISE.mistake("The single elements are clipped; the whole gradient is to be scaled by one factor.")
def elements_clipped(gradients, tokens, max_norm):
    total = mean(gradients, tokens)
    return [np.clip(x, -max_norm, max_norm) for x in total], norm_of(total)


@EXERCISE.mistake("The norms of the arrays are added up; the norm of all is the root of the sum of all squares.")
def norms_added(gradients, tokens, max_norm):
    total = mean(gradients, tokens)
    norm = sum(norm_of([x]) for x in total)
    return [x * min(1.0, max_norm / norm) for x in total], norm


@EXERCISE.mistake("The norm that is returned is the one after clipping; the one before says how the training goes.")
def norm_after_clipping(gradients, tokens, max_norm):
    arrays, _ = right(gradients, tokens, max_norm)
    return arrays, norm_of(arrays)


@EXERCISE.mistake(
    "The micro-batches are clipped one by one before they are added; clip the gradient of the whole batch."
)
def clipped_before_adding(gradients, tokens, max_norm):
    total = mean([clipped(one, max_norm)[0] for one in gradients], tokens)
    return total, norm_of(total)
