"""Ranks as threads give what the engine's communicator promises, count what is sent, and never wait for ever."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from minillm.errors import InputError, ShapeError
from minillm.exercises.ranks import Deadlock, run_ranks


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_collective_operations(rng, n) -> None:
    arrays = rng.normal(size=(n, 2 * n))

    def work(communicator):
        r = communicator.rank
        found = {}
        for op in ("sum", "mean", "max"):
            total = arrays[r].copy()
            communicator.all_reduce(total, op).wait()
            found[op] = total
        communicator.reduce_scatter(arrays[r].copy(), part := np.empty(2), "sum").wait()
        communicator.all_gather(part, whole := np.empty(2 * n)).wait()
        return found, part, whole

    results, sent = run_ranks(n, work)
    for r, (found, part, whole) in enumerate(results):
        np.testing.assert_allclose(found["sum"], arrays.sum(axis=0))
        np.testing.assert_allclose(found["mean"], arrays.mean(axis=0))
        np.testing.assert_allclose(found["max"], arrays.max(axis=0))
        np.testing.assert_allclose(part, arrays.sum(axis=0)[2 * r : 2 * r + 2])
        np.testing.assert_allclose(whole, arrays.sum(axis=0))
    assert sent == [(n - 1) * (3 * 4 + 2 + 2)] * n


def test_messages_arrive_in_order_as_they_were_when_they_were_sent() -> None:
    def work(communicator):
        other = 1 - communicator.rank
        x = np.array([10.0 * communicator.rank])
        for _ in range(3):
            communicator.send(x, other)
            x += 1
        got = np.full((3, 1), np.nan)
        works = [communicator.recv(row, other) for row in got]
        assert np.isnan(got).all()
        for one in works:
            one.wait()
        return got[:, 0].tolist()

    assert run_ranks(2, work) == ([[10, 11, 12], [0, 1, 2]], [3, 3])


def test_ranks_that_all_wait_are_told_for_what() -> None:
    def work(communicator):
        communicator.recv(np.empty(1), (communicator.rank + 1) % 3).wait()

    with pytest.raises(Deadlock, match=r"rank 0 waits for a message of rank 1; rank 1 waits for .+ 2"):
        run_ranks(3, work)


def test_a_rank_that_waits_for_one_that_has_ended() -> None:
    def work(communicator):
        if communicator.rank == 1:
            communicator.recv(np.empty(1), 0).wait()

    with pytest.raises(Deadlock, match="no rank can go on: rank 1 waits for a message of rank 0"):
        run_ranks(2, work)


def test_the_cause_is_raised_and_not_the_wait_that_it_left_behind() -> None:
    def work(communicator):
        if communicator.rank == 1:
            raise ZeroDivisionError("mine")
        communicator.recv(np.empty(1), 1).wait()

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="mine"):
        run_ranks(2, work)
    assert threading.active_count() == before


def test_what_the_engine_refuses_is_refused() -> None:
    with pytest.raises(InputError, match="there is no rank 2 in a group of 2"):
        run_ranks(2, lambda communicator: communicator.send(np.ones(1), 2))
    with pytest.raises(InputError, match="op is 'product'"):
        run_ranks(1, lambda communicator: communicator.all_reduce(np.ones(1), "product"))
    with pytest.raises(ShapeError, match="do not make"):
        run_ranks(2, lambda communicator: communicator.reduce_scatter(np.ones(3), np.ones(1)))
