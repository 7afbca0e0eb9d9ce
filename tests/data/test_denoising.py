"""BART's damage: how much is hidden, how long the spans are, where they lie, and the order of sentences."""

from __future__ import annotations

import math
from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minillm
from minillm import random
from minillm.data import denoising_pair, infill, permute_sentences
from minillm.data.denoising import span_lengths
from minillm.errors import DtypeError, InputError, ShapeError

MASK, END = 1_000_000, 9


def check_share(count: int, of: int, expected: float) -> None:
    """A count of independent events lies within five standard deviations: by chance outside once in two million."""
    assert abs(count - of * expected) < 5 * math.sqrt(of * expected * (1 - expected)) + 1e-9, f"{count / of}"


def poisson(mean: float, length: int) -> float:
    return math.exp(-mean) * mean**length / math.factorial(length)


# Infilling


@given(st.integers(0, 60), st.sampled_from([0.0, 0.15, 0.3, 1.0]), st.sampled_from([0.5, 1.0, 3.0, 20.0]))
def test_what_is_left_is_in_order_and_the_share_is_exact(n: int, probability: float, mean: float) -> None:
    ids = np.arange(n)
    before = ids.copy()
    seen = infill(ids, MASK, probability=probability, mean_length=mean)
    np.testing.assert_array_equal(ids, before)
    assert seen.dtype == np.int64
    left = seen[seen != MASK]
    assert (np.diff(left) > 0).all()
    assert set(left.tolist()) <= set(range(n))
    assert abs((n - len(left)) - n * probability) < 1  # rounded up or down
    gaps = [*zip([-1, *left], [*left, n], strict=True)]
    for before_gap, after_gap in gaps:  # what is missing is behind a mask
        if after_gap - before_gap > 1:
            places = np.flatnonzero(seen == before_gap) if before_gap >= 0 else np.array([-1])
            assert seen[places[0] + 1] == MASK
    if probability == 0:
        assert MASK not in seen
    if probability == 1:
        assert (seen == MASK).all()


def test_the_mean_share_is_exact_for_short_texts_too() -> None:
    minillm.manual_seed(0)
    hidden = sum(5 - int((infill(np.arange(5), MASK, probability=0.25) != MASK).sum()) for _ in range(4000))
    check_share(hidden - 4000, 4000, 0.25)  # 1.25 of 5: one, and in a quarter of the texts another


@pytest.mark.parametrize("mean", [1.0, 3.0])
def test_lengths_of_spans_are_poisson_and_no_place_is_preferred(mean: float) -> None:
    minillm.manual_seed(1)
    draw = random.default.numpy()
    lengths = span_lengths(200_000, mean, draw)
    assert lengths.sum() == 200_000
    counts = Counter(lengths.tolist())
    for length in range(9):
        check_share(counts[length], len(lengths), poisson(mean, length))
    short = np.stack([one for one in (span_lengths(6, mean, draw) for _ in range(30_000)) if len(one) == 3])
    means = short.mean(axis=0)  # one of them was cut to fit, in any place
    assert np.ptp(means) < 6 * short.std() / math.sqrt(len(short))


def test_spans_in_the_text_are_those_lengths_and_empty_ones_are_masks_where_nothing_is_missing() -> None:
    """Masks that stand alone, between tokens that are left: what is missing there is one span."""
    minillm.manual_seed(2)
    n = 200_000
    seen = infill(np.arange(n), MASK, probability=0.05)
    at = np.flatnonzero(seen == MASK)
    at = at[(at > 0) & (at < len(seen) - 1)]
    alone = at[(seen[at - 1] != MASK) & (seen[at + 1] != MASK)]
    assert len(alone) > 0.95 * len(at)  # so rarely do two meet
    missing = seen[alone + 1] - seen[alone - 1] - 1
    counts = Counter(missing.tolist())
    for length in range(9):
        check_share(counts[length], len(alone), poisson(3.0, length))
    check_share(len(at), n, 0.05 / 3)


def test_every_token_is_as_likely_to_be_hidden_and_every_way_to_place_spans(rng: np.random.Generator) -> None:
    minillm.manual_seed(3)
    counts = np.zeros(10)
    ways: Counter[tuple[int, ...]] = Counter()
    for _ in range(20_000):
        seen = infill(np.arange(10), MASK, probability=0.3)
        counts[seen[seen != MASK]] += 1
        if (seen == MASK).sum() == 1:  # one span of three
            ways[tuple(seen.tolist())] += 1
    for count in counts[[0, 9, 4, 5]]:  # the ends are hidden less often: fewer spans reach them
        assert 0.6 < count / 20_000 < 0.85
    assert abs(counts[0] - counts[9]) < 6 * math.sqrt(20_000 * 0.25)
    assert abs(counts[4] - counts[5]) < 6 * math.sqrt(20_000 * 0.25)
    assert len(ways) == 8
    for count in ways.values():
        check_share(count, sum(ways.values()), 1 / 8)


# Sentences


@given(st.lists(st.integers(5, 10), max_size=30), st.integers(0, 1000))
def test_sentences_stay_whole(ids: list[int], seed: int) -> None:
    def sentences(text: list[int]) -> list[tuple[int, ...]]:
        found: list[list[int]] = [[]]
        for place, token in enumerate(text):
            found[-1].append(token)
            if token in (END, 10) and place + 1 < len(text) and text[place + 1] not in (END, 10):
                found.append([])
        return [tuple(one) for one in found]

    mixed = permute_sentences(np.array(ids, int), [END, 10], generator=random.Generator(seed)).tolist()
    pieces, text = sentences(ids), tuple(mixed)

    def is_made_of(text: tuple[int, ...], left: list[tuple[int, ...]]) -> bool:
        if not left:
            return not text
        return any(
            text[: len(one)] == one and is_made_of(text[len(one) :], [*left[:i], *left[i + 1 :]])
            for i, one in enumerate(left)
            if one not in left[:i]
        )

    assert Counter(mixed) == Counter(ids)
    if len(pieces) <= 6:
        assert is_made_of(text, pieces)


def test_every_order_of_sentences_is_as_likely() -> None:
    minillm.manual_seed(4)
    ids = [1, END, 2, 2, END, END, 3]  # the last sentence has no end, the second two
    found = Counter(tuple(permute_sentences(ids, [END]).tolist()) for _ in range(12_000))
    one, two, three = (1, END), (2, 2, END, END), (3,)
    orders = [a + b + c for a, b, c in
              [(one, two, three), (one, three, two), (two, one, three), (two, three, one),
               (three, one, two), (three, two, one)]]  # fmt: skip
    assert set(found) == set(orders)
    for order in orders:
        check_share(found[order], 12_000, 1 / 6)
    assert permute_sentences(ids, []).tolist() == ids
    assert permute_sentences([], [END]).tolist() == []


# Both


def test_a_pair_is_the_damaged_text_and_the_text() -> None:
    minillm.manual_seed(5)
    sentences = [[10 * s + t for t in range(1, 6)] + [END] for s in range(1, 9)]
    ids = np.array([token for sentence in sentences for token in sentence])
    moved = 0
    for _ in range(50):
        seen, target = denoising_pair(ids, MASK, [END])
        np.testing.assert_array_equal(target, ids)
        left = [token for token in seen.tolist() if token not in (MASK, END)]
        assert abs(len(ids) * 0.7 - (seen != MASK).sum()) < 1
        runs = [number for number, _ in groupby(token // 10 for token in left)]
        assert len(runs) == len(set(runs))  # of each sentence what is left stays together, and in its order
        for number in runs:
            part = [token for token in left if token // 10 == number]
            assert part == sorted(part)
        moved += runs != sorted(runs)
    assert moved >= 48
    seen, _ = denoising_pair(ids, MASK, probability=0)
    np.testing.assert_array_equal(seen, ids)


def test_the_seed_decides_and_each_call_draws_anew() -> None:
    ids = np.arange(100) % 10

    def draws(seed: int) -> list[list[int]]:
        minillm.manual_seed(seed)
        return [denoising_pair(ids, MASK, [END])[0].tolist() for _ in range(2)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    assert draws(5)[0] != draws(5)[1]
    first = draws(5)[0]
    place = random.default.state()
    assert denoising_pair(ids, MASK, [END], generator=random.Generator(5))[0].tolist() == first
    assert random.default.state() == place


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ids": [[1]]}, ShapeError, r"^infill: ids have shape \(1, 1\); give \(n,\)"),
        ({"ids": [0.5]}, DtypeError, "^infill: ids have dtype float64"),
        ({"probability": 1.1}, InputError, "^infill: probability is 1.1; give a number from 0 to 1$"),
        ({"probability": math.nan}, InputError, "^infill: probability is nan"),
        ({"mean_length": 0.0}, InputError, "^infill: mean_length is 0.0; give 0.5 or more$"),
        ({"mean_length": math.inf}, InputError, "^infill: mean_length is inf"),
    ],
)
def test_what_cannot_be_used(arguments, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        infill(**{"ids": [1, 2], "mask_id": 0, **arguments})
