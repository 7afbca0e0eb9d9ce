"""Confidence intervals: how far a number that was measured on a sample may lie from the number of all such texts.

Two roads, which `Measure` records by name:

- a share of n questions that were answered right has Wilson's interval (1927), which stays within 0 and 1 and is of
  use when all or none are right, where the normal interval has no width;
- any other number is bootstrapped (Efron 1979): n items are drawn from the n items with replacement, many times, and
  the number is computed anew for each draw. Every number here is a function of sums over items (BLEU of n-gram counts,
  bits per byte of nats and bytes), so that a draw is a sum of rows, and all draws are one matrix product.

The standard error of a mean is s / sqrt(n), with the deviation s of the sample (n - 1), as in lm-evaluation-harness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from minillm.errors import InputError

LEVEL = 0.95  # probability that an interval holds the true number
DRAWS = 1000  # of a bootstrap
CHUNK = 1 << 22  # elements of the weights of draws that are in memory together


@dataclass(frozen=True)
class Measure:
    """A number with its interval: the true number is between `low` and `high` in 95 of 100 samples."""

    value: float
    stderr: float | None  # standard error; None if there is only one item
    low: float | None
    high: float | None
    denominator: float  # what the sum was divided by
    unit: str  # of the denominator, such as "bytes" or "questions"
    items: int  # drawn independently of each other: the n of the interval
    item: str  # what one of them is
    method: str  # "wilson", "bootstrap" or "none"

    def as_json(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return asdict(self)


def mean_stderr(values: Sequence[float]) -> float | None:
    """The standard error of the mean, s / sqrt(n) with s^2 = sum (x - mean)^2 / (n - 1); None for one value.

    Units: those of the values.
    Source: `mean_stderr` of lm-evaluation-harness.
    """
    if len(values) < 2:
        return None
    return float(np.std(np.asarray(values, np.float64), ddof=1) / math.sqrt(len(values)))


def share(right: Sequence[bool], unit: str = "questions") -> Measure:
    """The share of true values, with its standard error and Wilson's interval.

    With p the share, z = 1.96 and n values: (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n).

    Raises: InputError for no values.
    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference, equation 2.
    """
    n = len(right)
    if not n:
        raise InputError(f"share: there are no {unit} to count; give at least one")
    p, z = sum(map(bool, right)) / n, NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Measure(p, mean_stderr(right), low, high, n, unit, n, unit.removesuffix("s"), "wilson")


def bootstrap(
    rows: Any,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    denominator: float,
    unit: str,
    item: str,
    seed: int = 0,
    draws: int = DRAWS,
) -> Measure:
    """A statistic of sums over items, with the standard error and the percentile interval of a bootstrap.

    Args:
        rows: (n, k), for each of the n items the k numbers that are summed.
        statistic: from sums (..., k) to numbers (...), such as `lambda sums: sums[..., 0] / sums[..., 1]`.
        denominator, unit, item: stated with the result; they change no number.

    The same seed gives the same interval. One item has none.

    Raises: InputError for no items.
    Source: Efron 1979, Bootstrap methods; Koehn 2004, Statistical significance tests for machine translation
        evaluation, for BLEU.
    """
    rows = np.asarray(rows, np.float64)  # (n, k)
    n = len(rows)
    if not n:
        raise InputError(f"bootstrap: there is no {item} to measure; give at least one")
    value = float(statistic(rows.sum(axis=0)))
    if n == 1:
        return Measure(value, None, None, None, denominator, unit, n, item, "none")
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    for start in range(0, draws, step := max(1, CHUNK // n)):
        times = rng.multinomial(n, np.full(n, 1 / n), size=min(step, draws - start))  # how often each item is drawn
        found.append(np.asarray(statistic(times @ rows)))
    drawn = np.concatenate(found)  # (draws,)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    stderr = float(np.std(drawn, ddof=1))
    return Measure(value, stderr, float(low), float(high), denominator, unit, n, item, "bootstrap")


def mean(values: Sequence[float], unit: str = "questions", seed: int = 0) -> Measure:
    """The mean of values such as F1, with the standard error s / sqrt(n) and the interval of a bootstrap.

    Raises: InputError for no values.
    """
    rows = np.column_stack([values, np.ones(len(values))])
    found = bootstrap(rows, ratio, denominator=len(values), unit=unit, item=unit.removesuffix("s"), seed=seed)
    return Measure(**asdict(found) | {"stderr": mean_stderr(values)})


def ratio(sums: np.ndarray) -> np.ndarray:
    """The first sum divided by the second, the statistic of a mean."""
    return sums[..., 0] / sums[..., 1]
