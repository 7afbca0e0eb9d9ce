"""Objectives: the loss of a batch as sums over its targets, so that the parts of a batch add up to the whole.

    loss = sum over the terms of   sums[term] / counts[term]

`sums` are those of any rows of a batch, and `counts` those of the whole batch: every target counts alike, however the
rows are spread over micro-batches and ranks. The mean of the parts' means would be another number, because parts have
unequal numbers of targets.

A batch is a dictionary of arrays. Each has the examples of the batch as its first dimension, so that any rows of all
the arrays are a batch again.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.parallel.communicator import bounds

Batch = dict[str, Array]


class Objective:
    """A training objective: a loss of one or several terms, each a sum over targets.

    next_tokens: the loss is that of a Decoder on `ids` and `targets` alone, which tensor and pipeline parallel divide.
    """

    next_tokens: bool = False

    def counts(self, batch: Batch) -> dict[str, float]:
        """The number of targets of each term of the loss in a batch, such as {"masked": 70, "next": 12}."""
        raise NotImplementedError

    def sums(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sum of each term over the targets in these rows, under the names of `counts`; shape () each."""
        raise NotImplementedError

    def measures(self, model: Any, batch: Batch) -> dict[str, tuple[float, float]]:
        """For a validation, the (sum, count) of each term, and of whatever else should be known, such as accuracy."""
        counts = self.counts(batch)
        return {name: (total.item(), counts[name]) for name, total in self.sums(model, batch).items()}


class NextTokens(Objective):
    """The next token of every token: `ids` and `targets` (B, T), where a target of -100 does not count."""

    next_tokens = True

    def counts(self, batch: Batch) -> dict[str, float]:
        """The number of targets that count."""
        return {"loss": float((batch["targets"] != -100).sum())}

    def sums(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sum of the cross-entropies, in nats."""
        return {"loss": model.loss(batch["ids"], batch["targets"], reduction="sum")}


NEXT_TOKENS = NextTokens()


def next_token_batch(ids: Array, targets: Array) -> Batch:
    """The batch of `NextTokens`: ids and targets (B, T)."""
    return {"ids": ids, "targets": targets}


def loss_of_rows(objective: Objective, model: Any, rows: Batch, counts: dict[str, float]) -> Tensor:
    """The share that some rows have in the loss of a batch whose targets are `counts`; shape ()."""
    terms = [total / max(counts[name], 1.0) for name, total in objective.sums(model, rows).items()]
    return functools.reduce(operator.add, terms)


def number_of_rows(batch: Batch) -> int:
    """The number of examples of a batch."""
    return len(next(iter(batch.values())))


def rows_of(batch: Batch, first: int, stop: int) -> Batch:
    """Some examples of a batch, as a batch."""
    return {name: array[first:stop] for name, array in batch.items()}


def rows_of_rank(batch: Batch, rank: int, ranks: int) -> tuple[Batch, tuple[int, int], bool]:
    """A rank's examples of a batch, (examples before them, examples of all ranks), and whether they count.

    A rank without an example computes the first one, which then counts 0: the ranks compute together.
    """
    rows = number_of_rows(batch)
    first, stop = bounds(rows, ranks)[rank : rank + 2]
    if first < stop:
        return rows_of(batch, first, stop), (first, rows), True
    return rows_of(batch, 0, 1), (0, rows), False


def micro_batches_of(batch: Batch, count: int) -> list[Batch]:
    """A batch in `count` parts of nearly equal size; there are fewer if the batch has fewer examples."""
    count = max(1, min(count, number_of_rows(batch)))
    parts = [np.array_split(array, count) for array in batch.values()]
    return [dict(zip(batch, arrays, strict=True)) for arrays in zip(*parts, strict=True)]


def add_measures(total: dict[str, tuple[float, float]], more: Iterable[tuple[str, tuple[float, float]]]) -> None:
    """Add sums and counts to those in `total`, in place."""
    for name, (value, count) in more:
        before = total.get(name, (0.0, 0.0))
        total[name] = before[0] + value, before[1] + count
