"""Fast training of byte-pair encoding. Read bpe_naive.py first: it learns the same merges in 25 lines.

`BPETokenizer.train` (bpe.py) counts pretokens, and `learn_merges` learns from these counts. `PairIndex` counts and
joins pairs; WordPiece's training uses it too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Literal

Pair = tuple[int, int]


def learn_merges(words: Mapping[bytes, int], ties: Literal["greater", "first"]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the merges that `bpe_naive.learn_merges` yields, without a pass over all words for each.

    A merge changes only the counts of the pairs beside the places where it happens, so nothing is counted twice. The
    pairs wait in a heap, best first, so none is searched for. A merge can only lower the count of a pair that existed
    before, and only move its first place further on. An entry of the heap therefore never ranks its pair too low: the
    first entry that is still true is the best pair, and an outdated entry goes back with its present count.
    """
    tokens = [bytes([byte]) for byte in range(256)]
    index = PairIndex(words)

    def rank(pair: Pair) -> tuple:
        if ties == "first":
            return -index.counts[pair], index.first_place(pair), pair
        return -index.counts[pair], *(greatest_first(tokens[i]) for i in pair), pair

    heap = [rank(pair) for pair in index.counts]
    heapify(heap)
    while heap:
        entry = heappop(heap)
        pair = entry[-1]
        if not index.counts[pair]:
            continue
        if entry != (true_rank := rank(pair)):
            heappush(heap, true_rank)
            continue
        left, right = (tokens[i] for i in pair)
        yield left, right
        tokens.append(left + right)
        for new_pair in index.merge(pair, len(tokens) - 1):
            heappush(heap, rank(new_pair))


class PairIndex:
    """The different words of a text, laid end to end, with the count and the places of every pair of tokens in them.

    The place of a token is that of its first byte. `ids[i]` is the token at place i, or NOTHING between words and where
    a merge has absorbed the byte; `after[i]` and `before[i]` are the places of its neighbours.
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
        """The first place of a pair whose count is not 0."""
        return next(i for i in self.places[pair] if (self.ids[i], self.ids[self.after[i]]) == pair)

    def merge(self, pair: Pair, merged: int) -> list[Pair]:
        """Replace the pair with the token `merged` wherever it occurs, from the left; return the new pairs."""
        ids, after, before, counts, places = self.ids, self.after, self.before, self.counts, self.places
        made: set[Pair] = set()
        for i in places.pop(pair):
            j = after[i]
            if (ids[i], ids[j]) != pair:  # another merge has changed it, or this one did in "aaa"
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


# A heap yields the smallest entry first, so every byte is replaced by its complement: 255 becomes 0. The end of a token
# sorts before every byte; here a character that is greater than all of them marks it.
COMPLEMENT = bytes(255 - byte for byte in range(256))


def greatest_first(token: bytes) -> str:
    """A key that sorts byte strings in descending order."""
    return token.translate(COMPLEMENT).decode("latin-1") + "\u0100"
