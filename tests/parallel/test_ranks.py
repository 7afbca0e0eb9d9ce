"""The `ranks` fixture itself: a rank that raises, dies or hangs fails the test and says so, and the next run works."""

from __future__ import annotations

import os
import signal
import time
from typing import NamedTuple

import numpy as np
import pytest


class Pair(NamedTuple):
    """A type of this module, so that workers must import it."""

    a: float
    b: float


def add(communicator, x):
    array = np.full(3, x.a + x.b * communicator.rank)
    communicator.all_reduce(array).wait()
    return Pair(array[0], os.getpid())


def raises_on_two(communicator):
    if communicator.rank == 2:
        raise KeyError("of rank two")
    communicator.barrier()


def dies_on_one(communicator):
    if communicator.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    communicator.barrier()


def hangs_on_one(communicator):
    if communicator.rank == 1:
        time.sleep(100)  # the line that is shown


def threads(communicator):
    from minillm import backend

    return backend.cutting.threads


def test_runs_keep_their_processes(ranks):
    first, second = (ranks(2).run(add, Pair(1.0, 10.0)) for _ in range(2))
    assert [pair.a for pair in first] == [12.0, 12.0]
    assert first == second  # the same processes, too
    assert len({pair.b for pair in first} | {os.getpid()}) == 3


def test_ranks_have_one_thread(ranks):
    assert ranks(2).run(threads) == [1, 1]


def test_a_rank_that_raises_is_shown(ranks):
    with pytest.raises(AssertionError, match=r"(?s)on rank 2:.*raises_on_two.*of rank two"):
        ranks(3).run(raises_on_two)
    assert ranks(3).run(add, Pair(1.0, 0.0))[2].a == 3.0
    outcomes = ranks(3).outcomes(raises_on_two)
    assert [type(outcome.error).__name__ for outcome in outcomes] == ["ParallelError", "ParallelError", "KeyError"]


def test_a_rank_that_dies_is_noticed(ranks):
    with pytest.raises(AssertionError, match="rank 1 died: exit status -9"):
        ranks(2, NAME="dies").run(dies_on_one)
    assert ranks(2, NAME="dies").run(add, Pair(1.0, 0.0))[0].a == 2.0


def test_a_rank_that_hangs_is_shown(ranks):
    with pytest.raises(AssertionError, match=r"(?s)rank 1 hung:.*hangs_on_one"):
        ranks(2, NAME="hangs").run(hangs_on_one, timeout=3.0)
