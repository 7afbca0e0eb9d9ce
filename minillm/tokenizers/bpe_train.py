"""Training of byte-pair encoding: which pair of neighbours occurs most often, again and again.

`BPETokenizer.train` counts pretokens; `learn_merges` learns from them, and `PairIndex`, where pairs are counted and
joined, serves WordPiece too. How a merge makes a token stands in bpe.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Literal

Pair = tuple[int, int]


def learn_merges(words: Mapping[bytes, int], ties: Literal["greater", "first"]) -> Iterator[tuple[bytes, bytes]]:
    """The merges that `BPETokenizer.train` learns from different words and their counts, until no pair is left.

    Nothing is counted twice: a merge changes only the counts of the pairs beside the places where it happens. Nor is
    the list of pairs searched: they wait in a heap, best first. A merge can only lower the count of a pair that was
    there before, and only move its first place on. So what the heap promises of a pair is never too little: a pair
    that comes out with its promise still true is the best of all, and any other goes back with what is true now.
    """
    tokens = [bytes([byte]) for byte in range(256)]
    index = PairIndex(words)

    def promise(pair: Pair) -> tuple:
        if ties == "first":
            return -index.counts[pair], index.first_place(pair), pair
        return -index.counts[pair], *(greatest_first(tokens[i]) for i in pair), pair

    heap = [promise(pair) for pair in index.counts]
    heapify(heap)
    while heap:
        promised = heappop(heap)
        pair = promised[-1]
        if not index.counts[pair]:
            continue
        if promised != (true := promise(pair)):
            heappush(heap, true)
            continue
        left, right = (tokens[i] for i in pair)
        yield left, right
        tokens.append(left + right)
        for new_pair in index.merge(pair, len(tokens) - 1):
            heappush(heap, promise(new_pair))


class PairIndex:
    """The different words of a text, laid end to end, with the count and the places of every pair of tokens in them.

    A token is known by the place of its first byte. `ids[i]` is the token at place i, NOTHING between words and where
    a merge has taken a byte in; `after[i]` and `before[i]` are the places of its neighbours.
    """

    NOTHING = -1

    def __init__(self, words: Mapping[bytes, int]):
        self.ids, self.weights = [self.NOTHING], [0]  # weights[i]: how often the text has the word at place i
        for word, weight in words.items():
            self.ids += [*word, self.NOTHING]
            self.weights += [weight] * (len(word) + 1)
        self.after = list(range(1, len(self.ids) + 1))
        self.before = list(range(-1, len(self.ids) - 1))
        self.counts: defaultdict[Pair, int] = defaultdict(int)
        self.places: defaultdict[Pair, list[int]] = defaultdict(list)  # of the left token, ascending
        for i, pair in enumerate(pairwise(self.ids)):
            if self.NOTHING not in pair:
                self.counts[pair] += self.weights[i]
                self.places[pair].append(i)

    def first_place(self, pair: Pair) -> int:
        """Where the pair, whose count is not 0, first occurs."""
        return next(i for i in self.places[pair] if (self.ids[i], self.ids[self.after[i]]) == pair)

    def merge(self, pair: Pair, merged: int) -> list[Pair]:
        """Replace the pair by the token `merged` wherever it occurs, from the left; returns the pairs this makes."""
        ids, after, before, counts, places = self.ids, self.after, self.before, self.counts, self.places
        made: set[Pair] = set()
        for i in places.pop(pair):
            j = after[i]
            if (ids[i], ids[j]) != pair:  # changed since by another merge, or in "aaa" by this one
                continue
            h, k, weight = before[i], after[j], self.weights[i]  # now h i j k, to become h i k
            if ids[h] != self.NOTHING:
                counts[ids[h], ids[i]] -= weight
                counts[ids[h], merged] += weight
                places[ids[h], merged].append(h)
                made.add((ids[h], merged))
            if ids[k] != self.NOTHING:
                counts[ids[j], ids[k]] -= weight
                counts[merged, ids[k]] += weight
                places[merged, ids[k]].append(i)
                made.add((merged, ids[k]))
            ids[i], ids[j] = merged, self.NOTHING
            after[i], before[k] = k, i
        counts[pair] = 0
        return [new_pair for new_pair in made if counts[new_pair]]


# A heap gives the smallest first, so bytes are turned round: 255 becomes 0, and the end of a token, which sorts
# before every byte, comes after them.
COMPLEMENT = bytes(255 - byte for byte in range(256))


def greatest_first(token: bytes) -> str:
    """A key that orders as byte strings do, but backwards."""
    return token.translate(COMPLEMENT).decode("latin-1") + "\u0100"
