"""ZeRO-1: every rank updates its own part of the weights.

n ranks have the same weights and each has the gradients of its own share of the batch. In data parallel all of them
keep the whole state of the optimiser and make the same update. With ZeRO-1, rank r keeps the state of the r-th of n
equal parts, updates that part alone, and gets the other parts from the others:

1. Get the mean gradient over the ranks, of the own part.
2. Clip: the norm is that of the mean gradient of all parts together; above max_norm everything is scaled down to it.
3. Update the own part, by update(weights, gradients, state), which changes weights and state in place.
4. Bring the new parts of all ranks together.

`communicator` has rank, size, all_reduce(array, op), reduce_scatter(array, out, op) and all_gather(array, out), with op
"sum" or "mean"; each returns a work whose wait() must be called.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.exercises.ranks import run_ranks


def zero_step(communicator, weights, gradients, state, update, max_norm):
    """Change weights (N,) on every rank, and the state (N/n,) of the own part, in place. Nothing is returned.

    gradients are (N,), those of this rank; update is a function and max_norm a number.
    """
    raise NotImplementedError("replace this line")


def momentum(weights, gradients, state):
    """The optimiser of this exercise: a step along a running mean of the gradients."""
    state[...] = 0.9 * state + gradients
    weights -= 0.1 * state


def run(function, inputs):
    """Two steps on every rank; the weights, the states and what the ranks sent."""
    n, N = np.shape(inputs["gradients"][0])
    weights, states = [inputs["weights"].copy() for _ in range(n)], [np.zeros(N // n) for _ in range(n)]
    most = 0
    for gradients in inputs["gradients"]:
        given = [g.copy() for g in gradients]

        def rank_step(communicator, given=given):
            r = communicator.rank
            function(communicator, weights[r], given[r], states[r], momentum, inputs["max_norm"])

        _, sent = run_ranks(n, rank_step)
        most = max(most, *sent)
    allowed = 2 * (n - 1) * (N // n) + 8 * n
    return weights, states, "not more than needed" if most <= allowed else f"{most} by one rank, of {allowed} allowed"


def right(communicator, weights, gradients, state, update, max_norm):
    stepped(communicator, weights, gradients, state, update, max_norm)


def cases(rng):
    for n, N, max_norm in ((2, 4, 100.0), (2, 200, 1000.0), (4, 200, 2.0), (1, 3, 1.0)):
        yield dict(weights=rng.normal(size=N), gradients=[rng.normal(size=(n, N)) for _ in range(2)], max_norm=max_norm)


EXERCISE = Exercise(
    starter=zero_step,
    returns="weights_of_rank state_of_rank numbers_sent",
    right=right,
    cases=cases,
    run=run,
    hints=(
        "A reduce_scatter leaves each rank the sum or mean of its own part alone: half the way of an all_reduce.",
        "For the norm, each rank has the squares of its part. One number for each rank has to be added up.",
        "weights[r * size : (r + 1) * size] is a view: an update in place changes the weights themselves.",
        "An all_gather lays the parts of all ranks one after another into the whole.",
    ),
    read="minillm/parallel/zero.py",
)


def stepped(
    communicator,
    weights,
    gradients,
    state,
    update,
    max_norm,
    op="mean",
    norm_of=None,
    reduce=True,
    share=True,
    place=None,
):
    """The algorithm with places for mistakes."""
    size = weights.size // communicator.size
    r = communicator.rank if place is None else place
    mine = slice(r * size, (r + 1) * size)
    g = gradients[mine].copy()
    if reduce:
        communicator.reduce_scatter(gradients, g, op).wait()
    squares = np.array([float((g * g).sum())])
    if norm_of is None:
        communicator.all_reduce(squares).wait()
    norm = np.sqrt(squares[0]) if norm_of is None else norm_of(g)
    g *= 1.0 if norm <= max_norm else max_norm / norm
    update(weights[mine], g, state)
    if share:
        communicator.all_gather(weights[mine].copy(), weights).wait()


@EXERCISE.mistake("The gradients are added over the ranks; the mean is asked for, as each has a share of the batch.")
def sum_of_gradients(communicator, weights, gradients, state, update, max_norm):
    stepped(communicator, weights, gradients, state, update, max_norm, op="sum")


@EXERCISE.mistake("Each rank uses its own gradients alone; the mean over all ranks belongs into the update.")
def own_gradients_alone(communicator, weights, gradients, state, update, max_norm):
    stepped(communicator, weights, gradients, state, update, max_norm, reduce=False)


@EXERCISE.mistake("Every rank has its own part new and the others old: the all_gather at the end is missing.")
def parts_not_shared(communicator, weights, gradients, state, update, max_norm):
    stepped(communicator, weights, gradients, state, update, max_norm, share=False)


@EXERCISE.mistake("Every rank updates the first part of the weights; rank r has the r-th.")
def first_part_on_all_ranks(communicator, weights, gradients, state, update, max_norm):
    stepped(communicator, weights, gradients, state, update, max_norm, place=0)


@EXERCISE.mistake("The norm is that of the own part; the squares of all parts have to be added up before the root.")
def norm_of_the_own_part(communicator, weights, gradients, state, update, max_norm):
    stepped(communicator, weights, gradients, state, update, max_norm, norm_of=lambda g: np.sqrt((g * g).sum()))


@EXERCISE.mistake("The norm is taken of this rank's gradients before they are averaged; clip the mean gradient.")
def norm_before_the_mean(communicator, weights, gradients, state, update, max_norm):
    norm = np.sqrt((gradients**2).sum())
    stepped(communicator, weights, gradients, state, update, max_norm, norm_of=lambda g: norm)


@EXERCISE.mistake("The gradients are not clipped.")
def not_clipped(communicator, weights, gradients, state, update, max_norm):
    stepped(communicator, weights, gradients, state, update, np.inf)


@EXERCISE.mistake("The result is right, but an all_reduce brings each rank the gradients of all parts; one is enough.")
def all_reduce_in_place_of_reduce_scatter(communicator, weights, gradients, state, update, max_norm):
    communicator.all_reduce(gradients, "mean").wait()
    norm = np.sqrt((gradients**2).sum())
    stepped(communicator, weights, gradients, state, update, max_norm, norm_of=lambda g: norm, reduce=False)


@EXERCISE.mistake("The norms of the parts are added up; add their squares, and take the root of the sum.")
def norms_added(communicator, weights, gradients, state, update, max_norm):
    def total(g):
        norms = np.array([float(np.sqrt((g * g).sum()))])
        communicator.all_reduce(norms).wait()
        return norms[0]

    stepped(communicator, weights, gradients, state, update, max_norm, norm_of=total)
