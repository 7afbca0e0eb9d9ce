"""Best-fit decreasing packing against a plain search, and the rows that are made of packs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.data.instructions import targets_of
from minillm.data.packing import best_fit_decreasing, rows_of
from minillm.errors import InputError


def by_search(lengths: list[int], capacity: int) -> list[int]:
    """The sums of the rows, each length put into the fullest row that has room."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, filled in enumerate(rows) if filled + length <= capacity]
        if fitting:
            rows[max(fitting, key=lambda row: rows[row])] += length
        else:
            rows.append(length)
    return sorted(rows)


def test_the_example_of_trl():
    assert best_fit_decreasing([4, 2, 3, 1], 4) == [[0], [2, 3], [1]]
    assert best_fit_decreasing([], 4) == []


@given(st.lists(st.integers(1, 40), max_size=60))
def test_packs_are_those_of_a_plain_search(lengths):
    packs = best_fit_decreasing(lengths, 40)
    assert sorted(number for pack in packs for number in pack) == list(range(len(lengths)))
    assert sorted(sum(lengths[number] for number in pack) for pack in packs) == by_search(lengths, 40)


def test_lengths_that_cannot_be_packed():
    for lengths in ([3, 5], [0, 2]):
        with pytest.raises(InputError, match=f"lengths are {min(lengths)} to {max(lengths)}; give 1 to capacity=4"):
            best_fit_decreasing(lengths, 4)


def test_rows():
    examples = [targets_of(np.arange(n, n + n), np.arange(n) > 0) for n in (4, 5, 3)]
    batch = rows_of([[examples[0], examples[1]], [examples[2]]], padding_id=9)
    assert batch["ids"].tolist() == [[4, 5, 6, 5, 6, 7, 8], [3, 4, 9, 9, 9, 9, 9]]
    assert batch["targets"].tolist() == [[5, 6, 7, 6, 7, 8, 9], [4, 5] + [-100] * 5]
    assert batch["starts"].tolist() == [[0, 0, 0, 3, 3, 3, 3], [0, 0, 2, 2, 2, 2, 2]]
    assert all(array.dtype == np.int64 for array in batch.values())
    # No target of an example is the first id of the next: as many are learned as in each alone.
    assert (batch["targets"] != -100).sum() == sum(n - 1 for n in (4, 5, 3))


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_packs_are_those_of_trl(rng):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    trl = pytest.importorskip("trl", reason="trl is not installed")
    lengths = rng.integers(1, 129, 300).tolist()
    data = datasets.Dataset.from_dict({"input_ids": [[number] * length for number, length in enumerate(lengths)]})
    theirs = trl.pack_dataset(data, 128, "bfd")
    ours = best_fit_decreasing(lengths, 128)
    # Which of several equally full rows gets an example is left open, so what is equal is how full the rows are.
    filled = sorted(sum(lengths[number] for number in pack) for pack in ours)
    assert filled == sorted(map(sum, theirs["seq_lengths"]))
    assert len(filled) < 1.02 * sum(lengths) / 128 + 1
