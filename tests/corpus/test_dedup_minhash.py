"""MinHash and bands against their formulas, on pairs of texts whose similarity is known exactly."""

from __future__ import annotations

import hashlib
from math import sqrt

import numpy as np
import pytest

from minillm.corpus.duplicates import lsh, minhash
from minillm.corpus.duplicates.lsh import Clusters, band_keys, candidate_probability, candidates, curve_lines
from minillm.corpus.duplicates.minhash import jaccard, multipliers, signature
from minillm.corpus.words import ngram_hashes, word_hashes
from tests.corpus.planted import PLANTED, SIGMAS, planted_pair, within

PAIRS = 400


def shingles_of(texts: list[str]) -> list[np.ndarray]:
    words = word_hashes(texts)
    return [np.unique(ngram_hashes(words.hashes[a:b], 5)) for a, b in zip(words.ends, words.ends[1:], strict=False)]


@pytest.fixture(scope="module")
def planted() -> dict[float, list[tuple[np.ndarray, np.ndarray]]]:
    """For each similarity, the sets of shingles of many pairs."""
    found = {}
    for level, similarity in enumerate(PLANTED):
        texts = [text for pair in range(PAIRS) for text in planted_pair(similarity, 1000 * level + pair)]
        sets = shingles_of(texts)
        found[similarity] = list(zip(sets[::2], sets[1::2], strict=True))
    return found


def test_planted_pairs_have_the_similarity_that_they_say(planted):
    for similarity, pairs in planted.items():
        for one, other in pairs[:5]:
            assert len(np.intersect1d(one, other)) / len(np.union1d(one, other)) == pytest.approx(similarity, abs=1e-12)
            assert jaccard(one, other) == pytest.approx(similarity, abs=1e-12)


def minima_follow_the_formula(planted) -> bool:
    """The share of equal minima is J, and its spread over pairs is that of independent rows."""
    orders, good = multipliers(200, 0), True
    for similarity, pairs in planted.items():
        equal = np.array([np.sum(signature(a, orders) == signature(b, orders)) for a, b in pairs[:150]])
        good &= within(int(equal.sum()), 200 * len(equal), similarity)
        good &= 0.6 < equal.var() / (200 * similarity * (1 - similarity)) < 1.6  # 5 sigma of a variance of 150
    return good


def candidates_follow_the_curve(planted, bands: int, rows: int) -> bool:
    orders, good = multipliers(bands * rows, 0), True
    for similarity, pairs in planted.items():
        keys = band_keys(
            np.array([[signature(s, orders) for s in pair] for pair in pairs]).reshape(-1, bands * rows), bands
        )
        found = (keys[::2] == keys[1::2]).any(axis=1)
        good &= within(int(found.sum()), len(pairs), candidate_probability(similarity, bands, rows))
    return good


def test_the_share_of_equal_minima_is_the_similarity(planted):
    assert minima_follow_the_formula(planted)


@pytest.mark.parametrize(("bands", "rows"), [(25, 8), (14, 8), (5, 4), (1, 1), (40, 5)])
def test_candidates_follow_the_s_curve(planted, bands, rows):
    assert candidates_follow_the_curve(planted, bands, rows)


def test_the_default_finds_99_of_100_pairs_at_the_threshold():
    assert candidate_probability(0.8, 25, 8) == pytest.approx(0.990, abs=5e-4)
    assert candidate_probability(0.5, 25, 8) == pytest.approx(0.093, abs=5e-4)


FAULTS = {
    "all orders the same": ("multipliers", lambda count, seed: np.full(count, 0x9E3779B97F4A7C15, np.uint64)),
    "rows in pairs": (
        "multipliers",
        lambda count, seed: np.repeat(minhash.multipliers(-(-count // 2), seed), 2)[:count],
    ),
    "factors that lose bits": ("multipliers", lambda count, seed: minhash.multipliers(count, seed) << np.uint64(58)),
    "products without their top": (
        "signature",
        lambda shingles, orders: (
            (np.multiply.outer(orders, shingles) >> np.uint64(32) & np.uint64(255)).min(1).astype("u4")
        ),
    ),
    "every other shingle left out": ("signature", lambda shingles, orders: minhash.signature(shingles[::2], orders)),
    "nothing": ("signature", lambda shingles, orders: np.zeros(len(orders), np.uint32)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(planted, monkeypatch, fault):
    name, wrong = FAULTS[fault]
    monkeypatch.setitem(globals(), name, wrong)
    assert not (minima_follow_the_formula(planted) and candidates_follow_the_curve(planted, 25, 8))


def test_signatures_agree_as_often_as_those_of_a_slow_minhash(planted):
    """An independent MinHash: each order is the order of SHA-256 with a salt of its own."""
    orders = multipliers(100, 1)
    for similarity in (0.5, 0.8, 0.95):
        pairs = planted[similarity][:12]
        ours = sum(int(np.sum(signature(a, orders) == signature(b, orders))) for a, b in pairs)
        slow = sum(
            slow_minima(a) == slow_minima(b) for pair in pairs for a, b in [pair] for slow_minima in slow_orders(100)
        )
        spread = sqrt(2 * 1200 * similarity * (1 - similarity))
        assert abs(ours - slow) < SIGMAS * spread


def slow_orders(count: int):
    for salt in range(count):
        yield lambda shingles, salt=salt: min(hashlib.sha256(b"%d:%d" % (salt, x)).digest() for x in shingles.tolist())


def test_signatures_do_not_depend_on_the_order_or_repetition_of_shingles(rng):
    shingles = rng.integers(0, 1 << 64, 2000, np.uint64)
    orders = multipliers(16, 3)
    expected = [min(int(order) * x % (1 << 64) for x in shingles.tolist()) >> 32 for order in orders]
    assert signature(shingles, orders).tolist() == expected
    assert signature(rng.permutation(np.repeat(shingles, 2)), orders).tolist() == expected
    assert (multipliers(16, 3) == orders).all()
    assert (orders % 2 == 1).all()
    assert not (multipliers(16, 4) == orders).any()


def test_jaccard_of_sets():
    assert jaccard(np.array([1, 2, 3]), np.array([2, 3, 4])) == 0.5
    assert jaccard(np.array([1, 2]), np.array([3])) == 0
    assert jaccard(np.array([], np.uint32), np.array([], np.uint32)) == 1
    assert jaccard(np.array([], np.uint32), np.array([1], np.uint32)) == 0


def test_a_large_bucket_is_not_compared_pair_by_pair():
    """10,000 texts with one key, none of which turn out to be similar: each is compared with WINDOW others at most."""
    count, numbers = 10_000, np.arange(10_000)
    drawn = sum(len(one) for one, _ in candidates(numbers, numbers, [np.zeros(count, np.uint64)], Clusters(count)))
    assert count * (lsh.WINDOW - 1) < drawn < count * lsh.WINDOW


def test_texts_of_one_cluster_are_compared_once():
    count, clusters, drawn = 10_000, Clusters(10_000), 0
    keys = [np.zeros(count, np.uint64)] * 25
    for one, other in candidates(np.arange(count), np.ones(count), keys, clusters):
        drawn += len(one)
        for pair in zip(one.tolist(), other.tolist(), strict=True):
            clusters.join(*pair)
    assert drawn == count - 1
    assert (clusters.firsts() == 0).all()


def test_candidates_are_all_pairs_of_small_buckets(rng):
    keys = [rng.integers(0, 100, 300).astype(np.uint64) for _ in range(3)]
    numbers = rng.permutation(300)
    expected = {
        frozenset((int(numbers[i]), int(numbers[j])))
        for of_band in keys
        for i in range(300)
        for j in range(i)
        if of_band[i] == of_band[j]
    }
    found = {
        frozenset(pair)
        for ones, others in candidates(numbers, rng.integers(1, 9, 300), keys, Clusters(300))
        for pair in zip(ones.tolist(), others.tolist(), strict=True)
    }
    assert found == expected


def test_clusters_are_named_by_their_first():
    clusters = Clusters(7)
    for pair in ((5, 6), (2, 5), (4, 3), (6, 2)):
        clusters.join(*pair)
    assert clusters.firsts().tolist() == [0, 1, 2, 3, 3, 2, 2]


def test_the_curve_is_printed():
    lines = curve_lines(25, 8, 0.8)
    assert "1 - (1 - J^8)^25" in lines[0]
    [threshold] = [line for line in lines if "threshold" in line and "J = 0.8 " in line]
    assert "0.9899" in threshold
    assert any("J = 0.5 " in line and "0.0932" in line for line in lines)
