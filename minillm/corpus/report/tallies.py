"""Summaries of a stream in constant memory: samples, most frequent names, clusters, lengths.

Each can be merged with another of its kind, so that worker processes count their own chunks. The chunks do not depend
on the number of processes and are merged in order, and nothing here is drawn at random: where a choice must be made,
the ranks decide, hashes of names with a seed. So the same documents give the same card.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LONGEST_NAME = 100  # characters of a source, a domain, a licence: what is longer is cut


def rank(name: str, seed: int) -> int:
    """A number below 2^64 that depends on the name and the seed alone, and is uniform over names."""
    content = name.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, salt=seed.to_bytes(16, "little")).digest(), "little")


def short_name(name: str) -> str:
    """The name, or the beginning of a long one with a hash of the whole, so that two long names stay two."""
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 16]}… (cut, {digest})"


@dataclass
class Sample:
    """The `size` items of the smallest ranks: a uniform sample, whatever the order in which they come."""

    size: int
    items: dict[int, Any] = field(default_factory=dict)  # by rank

    def offer(self, rank: int, make: Callable[[], Any]) -> None:
        """Take an item in, if its rank is small enough; `make` is called only then."""
        if len(self.items) < self.size or rank < max(self.items):
            self.items[rank] = make()
            if len(self.items) > self.size:
                del self.items[max(self.items)]

    def merge(self, other: Sample) -> None:
        """Make this the sample of both streams."""
        both = other.items | self.items
        self.items = {one: both[one] for one in sorted(both)[: self.size]}

    def chosen(self) -> list[Any]:
        """The items, in the order of their ranks."""
        return [self.items[one] for one in sorted(self.items)]


@dataclass
class SampledGroups(Sample):
    """The first `members` items of each of the groups of the smallest ranks: a uniform sample of groups.

    A group that is in the sample at the end has been in it since its first item, since the largest rank only falls.
    """

    members: int = 3

    def offer(self, rank: int, make: Callable[[], Any]) -> None:
        """Take an item in, into the group of this rank."""
        if rank not in self.items:
            super().offer(rank, lambda: [make()])
        elif len(self.items[rank]) < self.members:
            self.items[rank].append(make())

    def merge(self, other: Sample) -> None:
        """Make this the sample of both streams; the other one follows this one."""
        for one in self.items.keys() & other.items.keys():
            self.items[one] = (self.items[one] + other.items[one])[: self.members]
        super().merge(other)


@dataclass
class Tally:
    """Counts of names, for the most frequent of any number of names.

    It holds `limit` names at most after each merge. Where there are more, every count is lowered by that of the first
    name that has no place, and names that reach zero leave: `lowered` says by how much a count may be too small, and a
    name that is not there occurred `lowered` times at most.

    Source: Misra and Gries 1982; merging after Agarwal et al. 2012, "Mergeable summaries".
    """

    limit: int
    counts: Counter = field(default_factory=Counter)
    lowered: int = 0

    def add(self, name: str, times: int = 1) -> None:
        """Count a name. The tally grows to twice its limit before names leave it, so that this costs little."""
        self.counts[name] += times
        if len(self.counts) > 2 * self.limit:
            self._shrink()

    def merge(self, other: Tally) -> None:
        """Make this the tally of both streams."""
        self.counts.update(other.counts)
        self.lowered += other.lowered
        self._shrink()

    def _shrink(self) -> None:
        if len(self.counts) > self.limit:
            by = sorted(self.counts.values(), reverse=True)[self.limit]
            self.counts = Counter({name: count - by for name, count in self.counts.items() if count > by})
            self.lowered += by

    def top(self, number: int) -> list[tuple[str, int]]:
        """The most frequent names with their counts; of equal counts, in the order of the names."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:number]


@dataclass
class Followed:
    """Counts by name, exact for up to `limit` names, and beyond that for a uniform sample of the names.

    The names of the smallest ranks are followed: a name is followed from its first time on or never, since the largest
    rank that is allowed only falls. So each count is exact, and `share` is the share of all names that are followed.

    Source: adaptive sampling, Flajolet 1990 (after Wegman).
    """

    limit: int
    below: int = 1 << 64  # ranks that are allowed
    counts: dict[int, int] = field(default_factory=dict)  # by rank

    def add(self, rank: int) -> None:
        """Count a name by its rank."""
        if rank < self.below:
            self.counts[rank] = self.counts.get(rank, 0) + 1
            self._shrink()

    def merge(self, other: Followed) -> None:
        """Make this the counts of both streams."""
        if other.below < self.below:
            self._allow(other.below)
        for name, count in other.counts.items():
            if name < self.below:
                self.counts[name] = self.counts.get(name, 0) + count
        self._shrink()

    def _shrink(self) -> None:
        while len(self.counts) > self.limit:
            self._allow(self.below // 2)

    def _allow(self, below: int) -> None:
        self.below = below
        self.counts = {name: count for name, count in self.counts.items() if name < below}

    @property
    def share(self) -> float:
        """The share of the names that are followed; 1 where the counts are all there are."""
        return self.below / (1 << 64)


def rounded(length: int) -> int:
    """The number with three digits: lengths are counted by these, exactly below 1,000 and to half a percent above."""
    if length < 1000:
        return length
    step = 10 ** (len(str(length)) - 3)
    return (length + step // 2) // step * step


def quantile(counts: Counter, share: float) -> int | None:
    """The smallest value that has at least this share of all at or below it; None where nothing was counted."""
    left = share * counts.total()
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return None
