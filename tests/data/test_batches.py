"""Batches: a pure function of seed and index, every window once an epoch, and every edge in between."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minillm.data import Batches, Tokens
from minillm.errors import DtypeError, InputError, ShapeError


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """(tokens, batch_size, context, seed), with texts down to the shortest that the context allows."""
    context = draw(st.integers(1, 9))
    return draw(st.integers(context + 1, 80)), draw(st.integers(1, 12)), context, draw(st.integers(0, 2**64 - 1))


def starts(batches: Batches, indices: range) -> np.ndarray:
    """Start of each window of these batches, for tokens 0, 1, 2, ..., after a check of every batch."""
    rows = []
    for index in indices:
        inputs, targets = batches.batch(index)
        assert inputs.dtype == targets.dtype == np.int64
        assert inputs.shape == targets.shape == (batches.batch_size, batches.context)
        np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(batches.context))
        np.testing.assert_array_equal(targets, inputs + 1)
        rows.append(inputs[:, 0])
    return np.concatenate(rows)


# Pure and resumable


@given(cases(), st.lists(st.integers(0, 40), min_size=1, max_size=12), st.booleans())
def test_random_access_equals_sequential(case: tuple[int, int, int, int], indices: list[int], shuffle: bool) -> None:
    count, batch_size, context, seed = case
    tokens = np.random.default_rng(0).integers(0, 1000, count)
    sequential = Batches(tokens, batch_size, context, seed, shuffle)
    expected = [sequential.batch(index) for index in range(41)]
    jumping = Batches(tokens, batch_size, context, seed, shuffle)
    for index in indices:
        np.testing.assert_array_equal(jumping.batch(index), expected[index])
        np.testing.assert_array_equal(Batches(tokens, batch_size, context, seed, shuffle).batch(index), expected[index])


@given(cases(), st.booleans())
def test_the_order_of_windows_does_not_depend_on_the_batch_size(case: tuple[int, int, int, int], shuffle: bool) -> None:
    count, batch_size, context, seed = case
    tokens = np.arange(count)
    together = starts(Batches(tokens, batch_size, context, seed, shuffle), range(5))
    one_by_one = starts(Batches(tokens, 1, context, seed, shuffle), range(5 * batch_size))
    np.testing.assert_array_equal(together, one_by_one)


def test_a_far_index_costs_one_epoch() -> None:
    batches = Batches(np.arange(1000), 4, 10, seed=0)
    far = 10**15
    np.testing.assert_array_equal(batches.batch(far), Batches(np.arange(1000), 4, 10, seed=0).batch(far))
    assert starts(batches, range(far, far + 2)).size == 8


def test_the_order_is_the_same_everywhere() -> None:
    """These numbers were printed once; another NumPy, machine or version of this file must give the same."""
    assert starts(Batches(np.arange(100), 6, 8, seed=1234), range(4)).tolist() == [
        77, 69, 21, 13, 45, 53, 85, 61, 29, 5, 37,
        77, 85, 37, 45, 29, 13, 53, 5, 69, 21, 61,
        11, 19,
    ]  # fmt: skip
    before = Batches(np.arange(100), 6, 8, seed=1234, to_the_end=False)  # as runs of format 1 go on
    assert starts(before, range(6))[21:].tolist() == [61, 3, 11, 27, 59, 67, 75, 43, 83, 51, 35, 19, 5, 85, 69]


def test_a_batch_belongs_to_the_caller() -> None:
    tokens = np.arange(100)
    batches = Batches(tokens, 4, 8, seed=0)
    inputs, targets = batches.batch(0)
    expected = targets.copy()
    inputs[:] = -1
    np.testing.assert_array_equal(targets, expected)
    np.testing.assert_array_equal(tokens, np.arange(100))
    np.testing.assert_array_equal(batches.batch(0)[1], expected)
    assert inputs.flags.c_contiguous
    assert targets.flags.c_contiguous


# Epochs


@given(cases())
@example((9, 1, 8, 0))
@example((16, 1, 8, 0))
@example((17, 3, 8, 0))
def test_every_window_of_an_epoch_is_visited_once(case: tuple[int, int, int, int]) -> None:
    count, _, context, seed = case
    batches = Batches(np.arange(count), 1, context, seed)
    windows = batches.windows_per_epoch
    assert windows >= 1
    visited = starts(batches, range(4 * windows)).reshape(4, windows)
    for epoch in visited:
        ordered = np.sort(epoch)
        phase = ordered[0]
        assert 0 <= phase < 2 * context
        np.testing.assert_array_equal(ordered, phase + context * np.arange(windows))
        assert ordered[-1] + context < count
    targets_left_out = count - 1 - windows * context
    assert targets_left_out <= max(0, 2 * context - 2)


def test_every_phase_occurs_and_no_other() -> None:
    context = 7
    for count, phases in ((15, 8), (14, 7), (13, 6), (8, 1), (100, 9), (104, 13)):
        batches = Batches(np.arange(count), 1, context, seed=3)
        windows = batches.windows_per_epoch
        smallest = starts(batches, range(200 * windows)).reshape(200, windows).min(axis=1)
        assert set(smallest) == set(range(phases)), count


@given(cases())
@example((20, 1, 9, 0))
@example((26, 3, 9, 0))
def test_over_the_epochs_every_token_is_an_input_or_a_target(case: tuple[int, int, int, int]) -> None:
    count, _, context, seed = case
    windows = Batches(np.arange(count), 1, context, seed).windows_per_epoch
    epochs = 12 * 2 * context  # twelve times as many as there are phases: none is missed but once in 10^5
    begin = starts(Batches(np.arange(count), windows, context, seed), range(epochs))  # an epoch a batch
    inputs, targets = np.zeros(count, int), np.zeros(count, int)
    np.add.at(inputs, begin[:, None] + np.arange(context), 1)
    np.add.at(targets, begin[:, None] + np.arange(1, context + 1), 1)
    assert (inputs[:-1] > 0).all()
    assert (targets[1:] > 0).all()


def test_a_token_is_met_at_every_position_alike() -> None:
    """In the middle of a row, however its ends fall: alignments are drawn alike, not phases."""
    context, epochs = 4, 4000
    batches = Batches(np.arange(14), 1, context, seed=1)
    begin = starts(batches, range(epochs * batches.windows_per_epoch))
    positions = 7 - begin[(begin <= 7) & (begin + context > 7)]
    counts = np.bincount(positions, minlength=context)
    assert counts.min() > 0.9 * len(positions) / context


def test_the_order_within_an_epoch_is_random() -> None:
    """A permutation of 2000 windows: its neighbours, halves and places correlate no more than chance allows."""
    batches = Batches(np.arange(2 * 2001), 1, 2, seed=11)
    first, second = starts(batches, range(4000)).reshape(2, 2000) // 2
    places = np.arange(2000)
    for a, b in ((first, places), (second, places), (first, second), (first[1:], first[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(2000)


def test_seeds_and_epochs_differ() -> None:
    tokens = np.arange(1000)
    orders = {
        (seed, epoch): tuple(starts(Batches(tokens, 9, 10, seed), range(epoch * 11, epoch * 11 + 11)))
        for seed in (0, 1, 2**63, 2**64 - 1)
        for epoch in (0, 1, 2)
    }
    assert Batches(tokens, 9, 10, 0).batches_per_epoch == 11
    assert all(len(set(order)) == 99 for order in orders.values())
    assert len(set(orders.values())) == len(orders)


def test_the_stream_is_not_that_of_dropout_or_initial_weights() -> None:
    """minillm.random takes its bits from the keys (seed, small number); the same bits would tie order to weights."""
    order = starts(Batches(np.arange(1000), 99, 10, seed=5), range(1)) // 10
    for word in range(50):
        generator = np.random.Generator(np.random.Philox(key=np.array([5, word], np.uint64)))
        generator.integers(10)
        assert (generator.permutation(99) != order).any()


@pytest.mark.parametrize(
    ("count", "context", "batch_size", "shuffle", "windows", "batches"),
    [
        (9, 8, 1, True, 1, 1),
        (9, 8, 5, False, 1, 1),
        (15, 8, 1, True, 1, 1),
        (16, 8, 1, False, 1, 1),
        (17, 8, 2, False, 2, 1),
        (24, 8, 1, True, 2, 2),
        (1000, 10, 9, True, 99, 11),
        (1000, 10, 10, True, 99, 10),
        (1001, 10, 9, False, 100, 12),
    ],
)
def test_counts(count: int, context: int, batch_size: int, shuffle: bool, windows: int, batches: int) -> None:
    made = Batches(np.arange(count), batch_size, context, 0, shuffle)
    assert (made.windows_per_epoch, made.batches_per_epoch) == (windows, batches)


def test_the_shortest_text_gives_its_one_window() -> None:
    for shuffle in (True, False):
        batches = Batches(np.arange(9), 3, 8, seed=5, shuffle=shuffle)
        assert starts(batches, range(4)).tolist() == [0] * 12


# In order


def test_without_shuffle_windows_come_in_order_and_over_again() -> None:
    batches = Batches(np.arange(28), 2, 8, seed=0, shuffle=False)
    assert starts(batches, range(4)).tolist() == [0, 8, 16, 0, 8, 16, 0, 8]


@given(cases(), st.integers(1, 6))
def test_evaluation_batches_spread_evenly(case: tuple[int, int, int, int], count: int) -> None:
    length, batch_size, context, seed = case
    shuffled, in_order = (Batches(np.arange(length), batch_size, context, seed, shuffle) for shuffle in (True, False))
    made = list(shuffled.evaluation_batches(count))
    assert len(made) == count
    for (inputs, targets), again in zip(made, in_order.evaluation_batches(count), strict=True):
        np.testing.assert_array_equal((inputs, targets), again)
        np.testing.assert_array_equal(targets, inputs + 1)
        assert inputs.shape == (batch_size, context)
    begin = np.concatenate([inputs[:, 0] for inputs, _ in made])
    if len(begin) > 1:
        assert (begin[0], begin[-1]) == (0, length - context - 1)
        gaps = np.diff(begin)
        assert gaps.min() >= 0
        assert gaps.max() - gaps.min() <= 1


def test_evaluation_does_not_disturb_training() -> None:
    batches = Batches(np.arange(500), 4, 8, seed=0)
    expected = starts(Batches(np.arange(500), 4, 8, seed=0), range(30))
    seen = []
    for index in range(30):
        seen.append(starts(batches, range(index, index + 1)))
        list(batches.evaluation_batches(2))
    np.testing.assert_array_equal(np.concatenate(seen), expected)


# Tokens on disk, and very many of them


@given(cases(), st.lists(st.integers(0, 80), max_size=5))
def test_tokens_in_parts_give_the_batches_of_one_array(case: tuple[int, int, int, int], cuts: list[int]) -> None:
    count, batch_size, context, seed = case
    array = np.random.default_rng(1).integers(0, 60_000, count).astype(np.uint16)
    tokens = Tokens(np.split(array, sorted(min(cut, count) for cut in cuts)), 60_000)
    for index in range(3):
        np.testing.assert_array_equal(
            Batches(tokens, batch_size, context, seed).batch(index),
            Batches(array, batch_size, context, seed).batch(index),
        )


def test_a_billion_tokens_cost_eight_bytes_a_window() -> None:
    tokens = np.broadcast_to(np.uint16(7), 10**9)  # one number in memory
    tracemalloc.start()
    try:
        inputs, _ = Batches(tokens, 8, 1024, seed=0).batch(12_345)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (inputs == 7).all()
    assert peak < 2.5 * 8 * (10**9 // 1024)


# Errors


def test_too_short_a_text() -> None:
    for count in (0, 1, 8):
        with pytest.raises(
            InputError,
            match=rf"^Batches: there are {count} tokens, but context=8 needs 9 or more; use a smaller context",
        ):
            Batches(np.arange(count), 1, 8, seed=0)


@pytest.mark.parametrize(
    ("changes", "error", "expected"),
    [
        ({"batch_size": 0}, InputError, "batch_size=0 and context=8, expected 1 or more"),
        ({"context": 0}, InputError, "batch_size=2 and context=0, expected 1 or more"),
        ({"seed": -1}, InputError, "seed is -1, expected 0 <= seed < 2**64"),
        ({"seed": 2**64}, InputError, "seed is 18446744073709551616, expected"),
        ({"tokens": np.arange(100.0)}, DtypeError, "tokens have dtype float64, expected integers"),
        ({"tokens": np.zeros((10, 10), int)}, ShapeError, "tokens have shape (10, 10), expected one dimension"),
    ],
)
def test_wrong_arguments(changes: dict, error: type[Exception], expected: str) -> None:
    arguments = {"tokens": np.arange(100), "batch_size": 2, "context": 8, "seed": 0} | changes
    with pytest.raises(error) as raised:
        Batches(**arguments)
    assert str(raised.value).startswith("Batches: ")
    assert expected in str(raised.value)


def test_wrong_index_and_count() -> None:
    batches = Batches(np.arange(100), 2, 8, seed=0)
    with pytest.raises(InputError, match=r"^Batches\.batch: index is -1, expected 0 or more"):
        batches.batch(-1)
    with pytest.raises(InputError, match=r"^Batches\.evaluation_batches: count is 0, expected 1 or more"):
        batches.evaluation_batches(0)
