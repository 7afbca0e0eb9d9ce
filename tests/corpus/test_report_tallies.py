"""Summaries in constant memory: the same for every order and division of a stream, and as exact as they say."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from minillm.corpus.report.tallies import (
    Followed,
    Sample,
    SampledGroups,
    Tally,
    quantile,
    rank,
    rounded,
    short_name,
)

NAMES = [f"document {i}" for i in range(2000)]


def sampled(names: list[str], size: int = 7) -> Sample:
    sample = Sample(size)
    for name in names:
        sample.offer(rank(name, 3), lambda name=name: name)
    return sample


def test_a_sample_does_not_depend_on_order_or_division() -> None:
    whole = sampled(NAMES).chosen()
    assert len(whole) == 7
    shuffled = random.Random(0).sample(NAMES, len(NAMES))
    assert sampled(shuffled).chosen() == whole
    merged = Sample(7)
    for start in range(0, len(NAMES), 300):
        merged.merge(sampled(NAMES[start : start + 300]))
    assert merged.chosen() == whole
    assert sampled(NAMES, 5000).chosen() != NAMES  # in the order of ranks, not of names
    assert sorted(sampled(NAMES, 5000).chosen()) == sorted(NAMES)


def test_a_sample_is_uniform_over_the_stream() -> None:
    places = [NAMES.index(name) for seed in range(60) for name in by_seed(seed)]
    assert 0.4 < np.mean(places) / len(NAMES) < 0.6
    assert by_seed(1) != by_seed(2)


def by_seed(seed: int) -> list[str]:
    return sorted(NAMES, key=lambda name: rank(name, seed))[:7]


def test_a_sample_makes_only_what_it_takes() -> None:
    made = []
    sample = Sample(3)
    for number in (5, 4, 3, 9, 8, 1, 7):
        sample.offer(number, lambda number=number: made.append(number) or number)
    assert (sample.chosen(), made) == ([1, 3, 4], [5, 4, 3, 1])


def test_groups_of_a_sample_are_whole_however_the_stream_is_cut() -> None:
    stream = [(f"cluster {i % 50}", i) for i in range(1000)]
    random.Random(1).shuffle(stream)

    def grouped(part: list[tuple[str, int]]) -> SampledGroups:
        groups = SampledGroups(4, members=3)
        for name, item in part:
            groups.offer(rank(name, 0), lambda item=item: item)
        return groups

    whole = grouped(stream).chosen()
    smallest = sorted({name for name, _ in stream}, key=lambda name: rank(name, 0))[:4]
    assert whole == [[item for name, item in stream if name == chosen][:3] for chosen in smallest]
    merged = SampledGroups(4, members=3)
    for start in range(0, len(stream), 90):
        merged.merge(grouped(stream[start : start + 90]))
    assert merged.chosen() == whole


def test_a_tally_is_exact_while_names_fit() -> None:
    words = random.Random(2).choices("abcdefgh", range(1, 9), k=5000)
    tally = Tally(8)
    for word in words:
        tally.add(word)
    assert (tally.counts, tally.lowered) == (Counter(words), 0)
    assert tally.top(3) == sorted(Counter(words).items(), key=lambda item: -item[1])[:3]


@pytest.mark.parametrize("parts", [1, 13])
def test_a_tally_of_too_many_names_says_how_wrong_it_may_be(parts: int) -> None:
    chance = random.Random(3)
    names = ["often"] * 3000 + ["seldom"] * 400 + [f"once {i}" for i in range(9000)]
    chance.shuffle(names)
    tally = Tally(50)
    step = -(-len(names) // parts)
    for start in range(0, len(names), step):
        other = Tally(50)
        for name in names[start : start + step]:
            other.add(name)
        tally.merge(other)
    true = Counter(names)
    assert len(tally.counts) <= 50
    assert 0 < tally.lowered <= len(names) / 51
    for name in true:
        assert true[name] - tally.lowered <= tally.counts[name] <= true[name]
    assert tally.top(2)[0][0] == "often"


def test_followed_names_have_exact_counts() -> None:
    stream = [f"name {i}" for i in range(3000) for _ in range(1 + i % 4)]
    random.Random(4).shuffle(stream)
    few, whole, merged = Followed(5000), Followed(200), Followed(200)
    for name in stream:
        few.add(rank(name, 0))
        whole.add(rank(name, 0))
    for start in range(0, len(stream), 700):
        part = Followed(200)
        for name in stream[start : start + 700]:
            part.add(rank(name, 0))
        merged.merge(part)
    true = {rank(name, 0): times for name, times in Counter(stream).items()}
    assert (few.counts, few.share) == (true, 1)
    assert 50 <= len(whole.counts) <= 200
    assert whole.counts.items() <= true.items()
    assert (merged.counts, merged.share) == (whole.counts, whole.share)
    assert len(whole.counts) / whole.share == pytest.approx(3000, rel=4 / len(whole.counts) ** 0.5)


def test_lengths_keep_three_digits() -> None:
    assert [rounded(n) for n in (0, 7, 999, 1000, 1004, 1005, 123456, 99950)] == [
        0,
        7,
        999,
        1000,
        1000,
        1010,
        123000,
        100000,
    ]
    assert max(abs(rounded(n) - n) / n for n in range(1, 30000)) <= 0.005


def test_quantiles_are_numpys() -> None:
    values = np.random.default_rng(0).integers(0, 40, 501).tolist()
    for share in (0.25, 0.5, 0.75, 1.0):
        assert quantile(Counter(values), share) == np.quantile(values, share, method="inverted_cdf")
    assert quantile(Counter(), 0.5) is None


def test_long_names_stay_apart() -> None:
    long = "x" * 1_000_000
    assert short_name("short") == "short"
    assert short_name(long) != short_name(long + "y")
    assert len(short_name(long)) <= 100 + 10
    assert short_name("\ud800" * 200).startswith("\ud800")
