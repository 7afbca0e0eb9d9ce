"""Repeated n-grams of words, found by NumPy: the costly part of Gopher's rules.

An n-gram that is repeated begins with an (n-1)-gram that is repeated, so each n looks only at the places that are left
from n-1, and in prose hardly any are left after n = 4. At such a place the n-gram is named by a pair: the number of the
(n-1)-gram that begins there, and that of the word that follows. Pairs are sorted and numbered anew for every n; these
are numbers, not hashes, so two different n-grams are never taken for each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def repeated_ngrams(word_ids: np.ndarray, longest: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For n from 1 to `longest`: n, the places of the n-grams that stand in the text twice or more, and their numbers.

    word_ids: (words,) int64, from 0 on. The places ascend; places with equal n-grams have equal numbers.
    """
    places = np.flatnonzero(np.bincount(word_ids)[word_ids] > 1) if len(word_ids) else word_ids
    numbers = word_ids[places]
    vocabulary = int(word_ids.max(initial=0)) + 1
    yield 1, places, numbers
    for n in range(2, longest + 1):
        if len(places):
            if places[-1] > len(word_ids) - n:  # the last (n-1)-gram has no word behind it
                places, numbers = places[:-1], numbers[:-1]
            places, numbers = _repeated(places, numbers * vocabulary + word_ids[places + (n - 1)])
        yield n, places, numbers


def _repeated(places: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places whose key stands at another place too, and numbers from 0 on in the stead of the keys."""
    order = keys.argsort()
    keys = keys[order]
    again = np.zeros(len(keys) + 1, bool)  # equal to the one before
    np.equal(keys[1:], keys[:-1], out=again[1:-1])
    repeated = again[1:] | again[:-1]
    kept = order[repeated]
    if not len(kept):
        return kept, kept
    numbers = np.cumsum(~again[:-1][repeated]) - 1
    back = kept.argsort()
    return places[kept[back]], numbers[back]


def ngram_characters(word_ids: Sequence[np.ndarray], word_lengths: Sequence[np.ndarray]) -> np.ndarray:
    """Characters in repeated n-grams for n from 2 to 10, text by text: (texts, 9) int64.

    n = 2, 3, 4: those of the most frequent n-gram, with spaces, times how often it stands in the text; 0 if none does
    twice. Of several that are as frequent, the one that comes first counts. Its occurrences may overlap.
    n = 5 to 10: those, without spaces, of the n-grams that have stood before, read from left to right. After such an
    n-gram the reading goes on behind it, so no character counts twice.

    All texts are searched as one, in which each has words with numbers of its own: so no n-gram stands in two of them,
    or across a border more than once.
    """
    counts = [len(ids) for ids in word_ids]
    texts = np.repeat(np.arange(len(counts)), counts)  # of each word
    first = np.cumsum([0, *(int(ids.max(initial=-1)) + 1 for ids in word_ids)])
    joined = np.concatenate([np.zeros(0, np.int64), *map(np.add, word_ids, first)])
    ends = np.cumsum(np.concatenate([np.zeros(1, np.int64), *word_lengths]))  # letters before each word, and all
    found = np.zeros((len(counts), 9), np.int64)
    for n, places, numbers in repeated_ngrams(joined, 10):
        if n > 1 and len(places):
            chosen, times = _most_frequent(places, numbers, texts) if n < 5 else _stood_before(n, places, numbers)
            characters = times * (ends[chosen + n] - ends[chosen] + (n - 1 if n < 5 else 0))
            np.add.at(found[:, n - 2], texts[chosen], characters)
    return found


def _most_frequent(places: np.ndarray, numbers: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each text the first place of its most frequent n-gram, and how often this stands there."""
    times = np.bincount(numbers)[numbers]
    of_text = texts[places]
    starts = np.flatnonzero(np.concatenate([[True], of_text[1:] != of_text[:-1]]))
    lengths = np.diff(np.concatenate([starts, [len(places)]]))
    most = np.flatnonzero(times == np.repeat(np.maximum.reduceat(times, starts), lengths))
    chosen = most[np.searchsorted(most, starts)]  # the first of them from where the text starts
    return places[chosen], times[chosen]


def _stood_before(n: int, places: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of n-grams that have stood before, and that none of them overlaps."""
    seen = set()
    hits = []
    free = 0  # the first word behind the last hit
    for place, number in zip(places.tolist(), numbers.tolist(), strict=True):
        if place < free:
            continue
        if number in seen:
            hits.append(place)
            free = place + n
        else:
            seen.add(number)
    return np.array(hits, np.int64), np.ones(len(hits), np.int64)
