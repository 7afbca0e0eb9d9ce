"""The learning rate of a training: a warmup, and then half a cosine.

Steps are counted from 0 to total - 1. The rate rises linearly over the first `warmup` steps: it is peak / warmup in
step 0, and peak in step warmup - 1. From step `warmup` on, which has the peak too, it follows half a cosine down to
`floor`, which it has in the last step and in all steps after that. With warmup = 0 it begins with the peak.
"""

from __future__ import annotations

import math

from minillm.exercises.exercise import Exercise
from minillm.optim import cosine_schedule


def learning_rate(step, peak, floor, warmup, total):
    """Return rate, a float."""
    raise NotImplementedError("replace this line")


def right(step, peak, floor, warmup, total):
    return cosine_schedule(step, peak=peak, floor=floor, warmup=warmup, total=total)


def cases(rng):
    for step, warmup, total in (
        (0, 4, 20),
        (3, 4, 20),
        (4, 4, 20),
        (9, 4, 20),
        (18, 4, 20),
        (19, 4, 20),
        (20, 4, 20),
        (25, 4, 20),
        (0, 0, 10),
        (3, 0, 10),
    ):
        yield dict(step=step, peak=0.5, floor=0.1, warmup=warmup, total=total)


EXERCISE = Exercise(
    starter=learning_rate,
    returns="rate",
    right=right,
    cases=cases,
    hints=(
        "Treat the three parts one after the other: the warmup, the steps after the end, and what lies between.",
        "Between them, let p go from 0 in step `warmup` to 1 in step total - 1. How many steps lie between the two?",
        "The cosine goes from 1 to -1 while its angle goes from 0 to pi; bring that to the range from peak to floor.",
    ),
    read="minillm/optim/lr_scheduler.py",
)


def cosine(p, peak, floor):
    return floor + (peak - floor) * (1 + math.cos(math.pi * p)) / 2


@EXERCISE.mistake("The rate of step 0 is 0, so that the first step does nothing; the warmup begins at peak / warmup.")
def first_step_is_zero(step, peak, floor, warmup, total):
    return peak * step / warmup if step < warmup else right(step, peak, floor, warmup, total)


@EXERCISE.mistake("There is no warmup.")
def no_warmup(step, peak, floor, warmup, total):
    return peak if step < warmup else right(step, peak, floor, warmup, total)


@EXERCISE.mistake("The cosine begins at step 0; it begins when the warmup ends.")
def cosine_from_step_zero(step, peak, floor, warmup, total):
    return right(step, peak, floor, warmup, total) if step < warmup else cosine(min(1, step / (total - 1)), peak, floor)


@EXERCISE.mistake("The cosine goes down to 0; it ends at the floor.")
def down_to_zero(step, peak, floor, warmup, total):
    return right(step, peak, 0.0, warmup, total)


@EXERCISE.mistake("The cosine goes to 0 and is cut off at the floor; it is to be scaled so that it ends there.")
def cut_off_at_the_floor(step, peak, floor, warmup, total):
    return max(floor, right(step, peak, 0.0, warmup, total))


@EXERCISE.mistake("The last step does not reach the floor: from step `warmup` to the last one are total - 1 - warmup.")
def floor_one_step_late(step, peak, floor, warmup, total):
    return right(step, peak, floor, warmup, total + 1)


@EXERCISE.mistake("After the last step the rate rises again with the cosine; it stays at the floor.")
def rises_again(step, peak, floor, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine((step - warmup) / (total - 1 - warmup), peak, floor)


@EXERCISE.mistake("With warmup = 0 it divides by 0.")
def division_by_no_warmup(step, peak, floor, warmup, total):
    return min(peak * (step + 1) / warmup, right(step, peak, floor, warmup, total))


@EXERCISE.mistake("The rate falls along a straight line; half a cosine is asked for.")
def straight_line(step, peak, floor, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak - (peak - floor) * min(1, (step - warmup) / (total - 1 - warmup))


@EXERCISE.mistake("A whole cosine fits into the training, and the rate ends at the peak; half of one is asked for.")
def whole_cosine(step, peak, floor, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine(2 * min(1, (step - warmup) / (total - 1 - warmup)), peak, floor)
