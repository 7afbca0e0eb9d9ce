"""Batches of pairs, a source and a target each, for a model that turns one sequence into another.

Sequences differ in length, and a batch is as wide as its longest: short ones are padded. Little padding is needed if
the pairs of a batch have similar lengths. So the pairs are sorted, by the lengths of target and source, and cut into
batches of at most `batch_tokens` tokens, including padding: many short pairs, or a few long ones.

In every epoch the batches come in another order, and pairs of equal lengths change places among themselves, which
leaves the cut as it is. Both come from a counter-based generator keyed by (seed, epoch), as in batches.py: batch number
`index` is a function of the seed and `index` alone, and a run that stopped after k batches resumes with `batch(k)`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from minillm.data.batches import OWN_KEYS
from minillm.errors import DtypeError, InputError

IGNORED = -100  # the padding of targets


class PairBatch(NamedTuple):
    """Sources (B, S), padded; their lengths (B,); and targets (B, T), padded with -100. All are int64."""

    source: np.ndarray
    source_lengths: np.ndarray
    target: np.ndarray


def pad_pairs(
    sources: Sequence[Sequence[int] | np.ndarray], targets: Sequence[Sequence[int] | np.ndarray], padding_id: int
) -> PairBatch:
    """Make one batch of some pairs, as wide as the longest source and the longest target.

    Raises: InputError for different numbers of sources and targets, or none.
    """
    if len(sources) != len(targets) or not len(sources):
        raise InputError(
            f"pad_pairs: there are {len(sources)} sources and {len(targets)} targets; give as many of both, 1 or more"
        )
    lengths = np.array([len(row) for row in sources])
    source = np.full((len(sources), lengths.max()), padding_id, np.int64)
    target = np.full((len(targets), max(map(len, targets))), IGNORED, np.int64)
    for filled, rows in ((source, sources), (target, targets)):
        for place, row in zip(filled, rows, strict=True):
            place[: len(row)] = row
    return PairBatch(source, lengths, target)


class PairBatches:
    """Batches of pairs of similar lengths, each batch computed from its number.

    sources, targets: token ids of each, including the tokens that begin and end a text.
    batch_tokens: the maximum number of tokens in a batch, B S + B T, including padding.
    Raises: InputError for sequences that are empty or too long for a batch, or an argument out of range; DtypeError
    for ids that are not integers.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[int] | np.ndarray],
        targets: Sequence[Sequence[int] | np.ndarray],
        batch_tokens: int,
        padding_id: int,
        seed: int,
    ) -> None:
        if len(sources) != len(targets) or not len(sources):
            raise InputError(
                f"PairBatches: there are {len(sources)} sources and {len(targets)} targets; give as many of both, 1 or "
                "more"
            )
        if not 0 <= seed < 1 << 64:
            raise InputError(f"PairBatches: seed is {seed}, expected 0 <= seed < 2**64")
        self.sources, self.targets = _rows("source", sources), _rows("target", targets)
        self.batch_tokens, self.padding_id, self.seed = batch_tokens, padding_id, seed
        self._lengths = np.array([[len(row) for row in rows] for rows in (self.sources, self.targets)])  # (2, pairs)
        longest = int(self._lengths.sum(axis=0).max())
        if batch_tokens < longest:
            raise InputError(
                f"PairBatches: batch_tokens is {batch_tokens}, but a pair has {longest} tokens; give as many, or leave "
                "the pair out"
            )
        self._sorted = np.lexsort(self._lengths)  # by target length, then by source length, then in the given order
        self._cuts = self._cut(self._lengths[:, self._sorted].T.tolist())
        self._drawn: tuple[int, np.ndarray, np.ndarray] | None = None  # the epoch last used, with its order

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that contain every pair once."""
        return len(self._cuts) - 1

    def batch(self, index: int) -> PairBatch:
        """Return batch number `index`, which depends on nothing but the arguments of `PairBatches` and on `index`."""
        if operator.index(index) < 0:
            raise InputError(f"PairBatches.batch: index is {index}, expected 0 or more; batches count from the start")
        epoch, place = divmod(operator.index(index), self.batches_per_epoch)
        if self._drawn is None or self._drawn[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=np.array([self.seed, OWN_KEYS + epoch], np.uint64)))
            among_equals = np.lexsort((generator.permutation(len(self.sources)), *self._lengths))
            self._drawn = epoch, among_equals, generator.permutation(self.batches_per_epoch)
        _, pairs, order = self._drawn
        return self._gather(pairs, order[place])

    def evaluation_batches(self) -> Iterator[PairBatch]:
        """Yield every pair once, the shortest first, the same at every call."""
        return (self._gather(self._sorted, number) for number in range(self.batches_per_epoch))

    def _gather(self, pairs: np.ndarray, number: int) -> PairBatch:
        chosen = pairs[self._cuts[number] : self._cuts[number + 1]]
        return pad_pairs([self.sources[i] for i in chosen], [self.targets[i] for i in chosen], self.padding_id)

    def _cut(self, lengths: list[list[int]]) -> list[int]:
        """Start of each batch in the sorted pairs, and the end of the last."""
        cuts, widest = [0], [0, 0]
        for place, pair in enumerate(lengths):
            wider = [max(a, b) for a, b in zip(widest, pair, strict=True)]
            if sum(wider) * (place + 1 - cuts[-1]) > self.batch_tokens:
                cuts.append(place)
                wider = pair
            widest = wider
        return [*cuts, len(lengths)]


def _rows(what: str, rows: Sequence[Sequence[int] | np.ndarray]) -> list[np.ndarray]:
    """Convert each row to an array, and check it."""
    arrays = [np.asarray(row) for row in rows]
    for number, row in enumerate(arrays):
        if row.ndim != 1 or not len(row):
            raise InputError(f"PairBatches: {what} {number} has shape {row.shape}; give one token id or more, in a row")
        if row.dtype.kind not in "iu":
            raise DtypeError(f"PairBatches: {what} {number} has dtype {row.dtype}, expected integers; encode the text")
    return arrays
