"""An all-reduce on a ring: every rank gets the sum, and none sends much.

Each of n ranks has an array of N numbers, and all of them need the sum. Rank r sends to its right neighbour only,
rank r + 1, and receives from its left one, rank r - 1; the last rank's right neighbour is rank 0. Cut the array into n
parts (np.array_split gives views) and let the parts travel round the ring in two rounds of n - 1 steps: in the first
they collect the sum, in the second the finished parts go to everybody. A rank then sends about 2 (n - 1) / n N
numbers, however many ranks there are. The check allows 2 (n - 1) of the largest parts.

`communicator` has rank, size, and two operations: send(array, target) and recv(array, source), which fills the array
when its wait() is called. A send need not be waited for.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.exercises.ranks import run_ranks


def ring_all_reduce(communicator, array):
    """Replace the array (N,) on every rank by the sum over all ranks. Nothing is returned."""
    raise NotImplementedError("replace this line")


def run(function, inputs):
    """Run the function on every rank; the arrays afterwards, and what the ranks sent."""
    arrays = [array.copy() for array in inputs["arrays"]]
    n, largest = len(arrays), -(-arrays[0].size // len(arrays))
    _, sent = run_ranks(n, lambda communicator: function(communicator, arrays[communicator.rank]))
    most = max(sent)
    return arrays, "not more than a ring" if most <= 2 * (n - 1) * largest else f"rank {sent.index(most)} sends {most}"


def right(communicator, array):
    communicator.all_reduce(array).wait()


def cases(rng):
    for n, N in ((2, 4), (3, 6), (4, 10), (3, 2), (1, 3)):
        yield dict(arrays=list(rng.normal(size=(n, N))))


EXERCISE = Exercise(
    starter=ring_all_reduce,
    returns="array_of_rank numbers_sent",
    right=right,
    cases=cases,
    run=run,
    hints=(
        "First round: in each step a rank sends one part and receives another one, which it adds to its own.",
        "Let rank r begin with part r. What it receives in step i is part r - i - 1, and that is what it sends next.",
        "After n - 1 steps, part r + 1 is complete on rank r. Second round: pass complete parts on, which replace.",
        "Send first and receive then: if every rank waited for its neighbour first, none would ever send.",
    ),
    read="minillm/parallel/communicator.py",
)


def ring(
    communicator, array, *, collect=None, spread=None, first=0, receive_first=False, add_in_spread=False, wait=True
):
    """The algorithm with places for mistakes: numbers of steps, the part that is passed on first, and so on."""
    n, r = communicator.size, communicator.rank
    parts = np.array_split(array, n)

    def step(send, receive, add):
        got = np.zeros_like(parts[receive % n])
        if receive_first:
            communicator.recv(got, (r - 1) % n).wait()
        communicator.send(parts[send % n], (r + 1) % n)
        if not receive_first:
            work = communicator.recv(got, (r - 1) % n)
            if wait:
                work.wait()
        parts[receive % n][...] = parts[receive % n] + got if add else got

    for i in range(n - 1 if collect is None else collect(n)):
        step(r - i, r - i - 1, True)
    for i in range(n - 1 if spread is None else spread(n)):
        step(r + 1 - i - first, r - i - first, add_in_spread)


@EXERCISE.mistake("Every rank waits for its neighbour before it sends, so nobody ever sends: send first.")
def everybody_waits(communicator, array):
    ring(communicator, array, receive_first=communicator.size > 1)


@EXERCISE.mistake("Each rank has the sum of one part alone: the second round, which spreads the parts, is missing.")
def second_round_forgotten(communicator, array):
    ring(communicator, array, spread=lambda n: 0)


@EXERCISE.mistake("In the second round the parts are added; they are complete already, and replace what is there.")
def added_in_the_second_round(communicator, array):
    ring(communicator, array, add_in_spread=True)


@EXERCISE.mistake("The first round has n steps, so each part comes home and is added to itself; n - 1 are enough.")
def one_step_too_many(communicator, array):
    ring(communicator, array, collect=lambda n: n if n > 1 else 0)


@EXERCISE.mistake("The second round begins with a part that is not complete: on rank r it is part r + 1.")
def wrong_part_spread(communicator, array):
    ring(communicator, array, first=1)


@EXERCISE.mistake("The array that is received is read before its wait(), when it is not filled yet.")
def wait_forgotten(communicator, array):
    ring(communicator, array, wait=False)


@EXERCISE.mistake("The sum is right, but whole arrays are sent, n - 1 times; cut the array into n parts.")
def whole_arrays_sent(communicator, array):
    n, r = communicator.size, communicator.rank
    total, got = array.copy(), array.copy()
    for _ in range(n - 1):
        communicator.send(got, (r + 1) % n)
        communicator.recv(got, (r - 1) % n).wait()
        total += got
    array[...] = total * 1.0
    for _ in range(n - 1):
        communicator.send(got, (r + 1) % n)
        communicator.recv(got, (r - 1) % n).wait()


@EXERCISE.mistake("This is the mean over the ranks; the sum is asked for.")
def mean_of_ranks(communicator, array):
    right(communicator, array)
    array /= communicator.size


@EXERCISE.mistake("The sum was put into a new array; the caller's own array must have it (array[...] = ...).")
def array_not_changed(communicator, array):
    right(communicator, array.copy())
