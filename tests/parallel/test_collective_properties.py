"""Collectives equal NumPy's sums and joins for odd sizes, all dtypes and several numbers of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

DTYPES = ("float32", "float64", "int64")
calls = st.lists(
    st.tuples(st.integers(0, 700), st.sampled_from(DTYPES), st.sampled_from(("sum", "max")), st.integers(0, 2**32 - 1)),
    min_size=1,
    max_size=4,
)


def numbers(rank: int, count: int, dtype: str, seed: int) -> np.ndarray:
    """Whole numbers, whose sums are exact in any order and dtype."""
    return np.random.default_rng([seed, rank]).integers(-1000, 1000, count).astype(dtype)


def collect(communicator, drawn):
    """The results of all collectives on this rank."""
    results = []
    for count, dtype, op, seed in drawn:
        own = numbers(communicator.rank, count, dtype, seed)
        reduced = own.copy()
        communicator.all_reduce(reduced, op).wait()
        gathered = np.empty(count * communicator.size, dtype)
        communicator.all_gather(own, gathered).wait()
        whole = numbers(communicator.rank, count * communicator.size, dtype, seed)
        part = np.empty(count, dtype)
        communicator.reduce_scatter(whole, part, op).wait()
        root = seed % communicator.size
        sent = own.copy()
        communicator.broadcast(sent, root).wait()
        results.append((reduced, gathered, part, sent))
    return results


@pytest.mark.parametrize("size", [2, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 3))])
def test_collectives_equal_numpy(ranks, size: int) -> None:
    pool = ranks(size)

    @given(drawn=calls)
    def check(drawn):
        outcomes = pool.run(collect, drawn)
        for number, (count, dtype, op, seed) in enumerate(drawn):
            combine = np.sum if op == "sum" else np.max
            owns = [numbers(rank, count, dtype, seed) for rank in range(size)]
            wholes = np.stack([numbers(rank, count * size, dtype, seed) for rank in range(size)])
            for rank in range(size):
                reduced, gathered, part, sent = outcomes[rank][number]
                np.testing.assert_array_equal(reduced, combine(np.stack(owns), axis=0).astype(dtype))
                np.testing.assert_array_equal(gathered, np.concatenate(owns))
                np.testing.assert_array_equal(
                    part, combine(wholes, axis=0).astype(dtype)[rank * count : (rank + 1) * count]
                )
                np.testing.assert_array_equal(sent, owns[seed % size])

    check()
