"""Batches of pairs: a pure function of seed and index, every pair once an epoch, little padding, never too many."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.data import PairBatch, PairBatches, pad_pairs
from minillm.errors import DtypeError, InputError

PADDING = 7


def some_pairs(rng: np.random.Generator, count: int, longest: int = 30) -> tuple[list[list[int]], list[list[int]]]:
    """Pairs that their first tokens tell apart, and whose other tokens are drawn."""
    sides = []
    for _ in range(2):
        rows = [rng.integers(0, 9, length).tolist() for length in rng.integers(1, longest + 1, count)]
        sides.append([[1000 + number, *row[1:]] for number, row in enumerate(rows)])
    return sides[0], sides[1]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], int, int]:
    """(sources, targets, batch_tokens, seed), down to batches that just hold the longest pair."""
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    sources, targets = some_pairs(rng, draw(st.integers(1, 40)), draw(st.integers(1, 12)))
    least = max(len(s) + len(t) for s, t in zip(sources, targets, strict=True))
    return sources, targets, least + draw(st.integers(0, 100)), draw(st.integers(0, 2**64 - 1))


def rows_of(batch: PairBatch) -> list[tuple[list[int], list[int]]]:
    """The pairs of a batch, once it is seen to be as promised."""
    source, lengths, target = batch
    assert source.dtype == target.dtype == np.int64
    assert lengths.shape == (len(source),) == (len(target),)
    assert lengths.max() == source.shape[1]
    assert (target[:, -1] != -100).any()
    pairs = []
    for row, length, other in zip(source, lengths, target, strict=True):
        assert (row[length:] == PADDING).all()
        end = int((other != -100).sum())
        assert (other[end:] == -100).all()
        pairs.append((row[:length].tolist(), other[:end].tolist()))
    return pairs


@given(cases())
def test_every_epoch_has_every_pair_once_and_no_batch_too_many_tokens(case) -> None:
    sources, targets, batch_tokens, seed = case
    batches = PairBatches(sources, targets, batch_tokens, PADDING, seed)
    expected = sorted(zip(sources, targets, strict=True))
    per_epoch = batches.batches_per_epoch
    for start in (0, per_epoch, 1000 * per_epoch):
        epoch = [batches.batch(start + number) for number in range(per_epoch)]
        assert all(batch.source.size + batch.target.size <= batch_tokens for batch in epoch)
        assert sorted(pair for batch in epoch for pair in rows_of(batch)) == expected
    seen = list(batches.evaluation_batches())
    assert sorted(pair for batch in seen for pair in rows_of(batch)) == expected
    widths = [batch.target.shape[1] for batch in seen]
    assert widths == sorted(widths)
    for one, two in zip(
        seen, PairBatches(sources, targets, batch_tokens, PADDING, 5).evaluation_batches(), strict=True
    ):
        np.testing.assert_array_equal(one.source, two.source)


@given(cases())
def test_no_batch_could_take_the_next_pair(case) -> None:
    """Or there would be more batches than need be."""
    sources, targets, batch_tokens, _ = case
    seen = [rows_of(b) for b in PairBatches(sources, targets, batch_tokens, PADDING, 0).evaluation_batches()]
    for batch, following in pairwise(seen):
        both = [*batch, following[0]]
        width = max(len(s) for s, _ in both) + max(len(t) for _, t in both)
        assert width * len(both) > batch_tokens


@given(cases(), st.lists(st.integers(0, 60), min_size=1, max_size=10))
def test_random_access_equals_sequential(case, indices: list[int]) -> None:
    sequential = PairBatches(*case[:3], PADDING, case[3])
    expected = [sequential.batch(index) for index in range(61)]
    jumping = PairBatches(*case[:3], PADDING, case[3])
    for index in indices:
        for batches in (jumping, PairBatches(*case[:3], PADDING, case[3])):
            for one, two in zip(batches.batch(index), expected[index], strict=True):
                np.testing.assert_array_equal(one, two)


def test_epochs_and_seeds_differ_in_the_order_of_batches_and_in_who_meets_whom(rng: np.random.Generator) -> None:
    sources, targets = some_pairs(rng, 3000, 8)
    batches = PairBatches(sources, targets, 300, PADDING, 0)
    per_epoch = batches.batches_per_epoch
    other = PairBatches(sources, targets, 300, PADDING, 1)
    runs = [
        [frozenset(pair[0][0] for pair in rows_of(source.batch(start + number))) for number in range(per_epoch)]
        for source, start in ((batches, 0), (batches, per_epoch), (other, 0))
    ]
    for one in range(3):
        for two in range(one):
            assert runs[one] != runs[two]
            assert len(set(runs[one]) & set(runs[two])) < per_epoch / 5
    lengths = [batches.batch(number).target.shape[1] for number in range(per_epoch)]
    assert lengths != sorted(lengths)  # long and short ones in turn


def test_the_order_is_the_same_everywhere() -> None:
    """These numbers were printed once; another NumPy, machine or version of this file must give the same."""
    sources = [[number] * (1 + number % 3) for number in range(12)]
    batches = PairBatches(sources, sources, 12, PADDING, 1234)
    assert [batches.batch(number).source[:, 0].tolist() for number in range(6)] == [
        [11], [9, 3, 6, 0], [1, 2], [10, 4, 7], [8, 5],
        [11, 2],
    ]  # fmt: skip


def test_little_is_filled(rng: np.random.Generator) -> None:
    """Lengths of captions, target near source: sorted, 3% of a batch is filling; as they come, a third."""
    lengths = np.clip(rng.normal(14, 4, 20_000).astype(int), 3, 40)
    others = np.clip(lengths + rng.integers(-3, 4, len(lengths)), 3, 40)
    sources, targets = [[1] * n for n in lengths], [[1] * n for n in others]
    real = int(lengths.sum() + others.sum())

    def share(batches) -> float:
        return 1 - real / sum(batch.source.size + batch.target.size for batch in batches)

    assert share(PairBatches(sources, targets, 2048, PADDING, 0).evaluation_batches()) < 0.04
    unsorted = [pad_pairs(sources[i : i + 70], targets[i : i + 70], PADDING) for i in range(0, 20_000, 70)]
    assert share(unsorted) > 0.3


def test_padding_by_hand() -> None:
    source, lengths, target = pad_pairs([[1, 2, 3], [4]], [[5], np.array([6, 7])], PADDING)
    assert source.tolist() == [[1, 2, 3], [4, PADDING, PADDING]]
    assert lengths.tolist() == [3, 1]
    assert target.tolist() == [[5, -100], [6, 7]]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sources": [[1]]}, InputError, "^PairBatches: there are 1 sources and 2 targets; give as many of both"),
        ({"sources": [], "targets": []}, InputError, "^PairBatches: there are 0 sources and 0 targets"),
        ({"sources": [[1], []]}, InputError, r"^PairBatches: source 1 has shape \(0,\); give one token id or more"),
        ({"targets": [[[1]], [1]]}, InputError, r"^PairBatches: target 0 has shape \(1, 1\)"),
        ({"targets": [[0.5], [1]]}, DtypeError, "^PairBatches: target 0 has dtype float64, expected integers"),
        ({"batch_tokens": 4}, InputError, "^PairBatches: batch_tokens is 4, but a pair has 5 tokens; give as many"),
        ({"seed": -1}, InputError, r"^PairBatches: seed is -1, expected 0 <= seed < 2\*\*64"),
    ],
)
def test_what_cannot_be_used(changes, error: type[Exception], message: str) -> None:
    arguments = {"sources": [[1, 2, 3], [4]], "targets": [[1, 2], [3]], "batch_tokens": 20, "padding_id": 0, "seed": 0}
    with pytest.raises(error, match=message):
        PairBatches(**arguments | changes)


def test_a_wrong_index_and_pairs_that_do_not_match() -> None:
    with pytest.raises(InputError, match=r"^PairBatches\.batch: index is -1, expected 0 or more"):
        PairBatches([[1]], [[1]], 4, 0, 0).batch(-1)
    with pytest.raises(InputError, match=r"^pad_pairs: there are 1 sources and 0 targets"):
        pad_pairs([[1]], [], 0)
