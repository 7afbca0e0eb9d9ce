"""A hash table of the merges of a byte-pair encoding, by which many pretokens are merged together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from minillm.tokenizers.bpe_train import Pair


class MergeTable:
    """Merges many pretokens together: those that now have n tokens are the rows of an array, (W, n).

    In every row the pair with the lowest rank, the leftmost of equals, is joined. That leaves n - 1 tokens, and the
    pretokens of n - 1 bytes, which have waited for it, become rows too. A row without a pair to join is finished.

    The ranks of all pairs are looked up at once, by hashing (Knuth, "The Art of Computer Programming", volume 3,
    section 6.4): the two ids of a pair make one number, its key, and the top bits of a multiple of the key name the
    slot that has the pair's rank. Where several pairs need the same slot, their ranks are found in `rank_of`, a dict.
    """

    MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio, which scatters the keys well
    NO_KEY = np.uint64(2**64 - 1)

    def __init__(self, byte_ids: Sequence[int], rank_of: Mapping[Pair, int], merged: Sequence[int]):
        self.byte_ids, self.merged = np.array(byte_ids), np.array(merged, np.int64)
        self.rank_of = rank_of
        self.none, self.contested = len(merged), len(merged) + 1  # "ranks" in slots of no pair, or of several
        ranks = np.fromiter(rank_of.values(), np.int64)
        self.keys = np.full(len(merged) + 2, self.NO_KEY)  # [rank]
        self.keys[ranks] = self.key(*np.fromiter(chain.from_iterable(rank_of), np.int64).reshape(-1, 2).T)
        slot_bits = (8 * len(merged) + 1).bit_length()  # so that few slots are contested
        self.shift = np.uint64(64 - slot_bits)
        slots = self.slot(self.keys[ranks])
        self.slots = np.full(1 << slot_bits, self.none, np.int32)
        self.slots[slots] = ranks
        self.slots[slots[self.slots[slots] != ranks]] = self.contested

    def key(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.uint64]:
        return (left << 32 | right).view(np.uint64)

    def slot(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return keys * self.MULTIPLIER >> self.shift

    def ranks(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int32]:
        """The rank of each pair, or `none`; the three arrays have the same shape."""
        keys = self.key(left, right)
        ranks = self.slots[self.slot(keys)]
        contested = ranks == self.contested
        ranks = np.where(self.keys[ranks] == keys, ranks, self.none)
        if contested.any():
            pairs = zip(left[contested].tolist(), right[contested].tolist(), strict=True)
            ranks[contested] = [self.rank_of.get(pair, self.none) for pair in pairs]
        return ranks

    def merge(self, words: Sequence[bytes]) -> list[tuple[int, ...]]:
        """The ids of pretokens that come in the order of their lengths, as `PretokenIds.merge` gives them."""
        ids_of: list[tuple[int, ...]] = [()] * len(words)
        longest, waiting = len(words[-1]), len(words)  # words[:waiting] are not rows yet
        which, ids = np.empty(0, np.int64), np.empty((0, longest), np.int64)  # (W), (W, n): numbers and tokens of rows
        for n in range(longest, 0, -1):
            start = bisect_left(words, n, hi=waiting, key=len)
            new = np.frombuffer(b"".join(words[start:waiting]), np.uint8).reshape(-1, n)
            which = np.concatenate([which, np.arange(start, waiting)])
            ids = np.concatenate([ids, self.byte_ids[new]])
            waiting = start

            ranks = np.full(ids.shape, self.none)  # (W, n): of a token and the next; the last has none
            ranks[:, :-1] = self.ranks(ids[:, :-1], ids[:, 1:])
            rows, place = np.arange(len(ids)), ranks.argmin(axis=1)  # argmin takes the leftmost of equals
            lowest = ranks[rows, place]

            finished = lowest == self.none
            for number, row in zip(which[finished].tolist(), zip(*ids[finished].T.tolist(), strict=True), strict=True):
                ids_of[number] = row
            which, ids, place, lowest = (array[~finished] for array in (which, ids, place, lowest))

            rows = np.arange(len(ids))
            ids[rows, place] = self.merged[lowest]
            stays = np.ones(ids.shape, np.bool_)
            stays[rows, place + 1] = False
            ids = ids[stays].reshape(len(ids), n - 1)
        return ids_of
