"""Intervals: formulas by hand, and how often they hold the true number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minillm.errors import InputError
from minillm.evaluation.intervals import bootstrap, mean, mean_stderr, ratio, share


def test_standard_error_of_a_mean() -> None:
    assert mean_stderr([1.0, 2.0, 4.0]) == pytest.approx(
        math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2 / 3)
    )
    assert mean_stderr([1.0]) is None


def test_wilson_by_hand() -> None:
    """7 of 10: the numbers of the textbook formula; none and all right have a width too."""
    found = share([True] * 7 + [False] * 3)
    assert (found.value, found.denominator, found.unit, found.item) == (0.7, 10, "questions", "question")
    assert (found.low, found.high) == pytest.approx((0.39677, 0.89221), abs=1e-4)
    none, every = share([False] * 20), share([True] * 20)
    assert (none.low, every.high) == pytest.approx((0.0, 1.0), abs=1e-15)
    assert none.high == pytest.approx(0.16113, abs=1e-4)
    assert every.low == pytest.approx(1 - none.high)


def test_intervals_hold_the_truth_about_as_often_as_they_say(rng: np.random.Generator) -> None:
    held = {"share": 0, "mean": 0}
    for _ in range(300):
        found = share(rng.random(60) < 0.8)
        held["share"] += found.low <= 0.8 <= found.high
        found = mean(rng.exponential(1.0, 60), seed=int(rng.integers(1000)))
        held["mean"] += found.low <= 1.0 <= found.high
    assert 270 <= held["share"] <= 298
    assert 262 <= held["mean"] <= 298  # a bootstrap of 60 skewed numbers is a little too narrow


def test_bootstrap_of_a_mean_has_its_standard_error(rng: np.random.Generator) -> None:
    values = rng.normal(3, 2, 400)
    rows = np.column_stack([values, np.ones(400)])
    found = bootstrap(rows, ratio, denominator=400, unit="texts", item="text", draws=4000)
    assert found.value == pytest.approx(values.mean())
    assert found.stderr == pytest.approx(mean_stderr(values), rel=0.05)
    assert found.low == pytest.approx(values.mean() - 1.96 * found.stderr, rel=0.01)


def test_a_seed_gives_one_interval_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(50.0)
    a, b, c = mean(values), mean(values), mean(values, seed=1)
    assert a == b
    assert (a.low, a.high) != (c.low, c.high)
    monkeypatch.setattr("minillm.evaluation.intervals.CHUNK", 500)
    assert mean(values) == a


def test_no_items_are_refused() -> None:
    with pytest.raises(InputError, match="there are no questions"):
        share([])
    with pytest.raises(InputError, match="there is no question"):
        mean([])
