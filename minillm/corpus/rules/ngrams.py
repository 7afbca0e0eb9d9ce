"""Repeated n-grams of words, found by NumPy: the costly part of Gopher's rules.

An n-gram that is repeated begins with an (n-1)-gram that is repeated, so each n looks only at the places that are left
from n-1, and in prose hardly any are left after n = 4. At such a place the n-gram is named by a pair: the number of the
(n-1)-gram that begins there, and that of the word that follows. Pairs are sorted and numbered anew for every n; these
are numbers, not hashes, so two different n-grams are never taken for each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def repeated_ngrams(word_ids: np.ndarray, longest: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For n from 1 to `longest`: n, the places of the n-grams that stand in the text twice or more, and their numbers.

    word_ids: (words,) int64, from 0 on. The places ascend; places with equal n-grams have equal numbers.
    """
    places, numbers = np.arange(len(word_ids)), word_ids
    vocabulary = int(word_ids.max(initial=0)) + 1
    for n in range(1, longest + 1):
        if len(places):
            again = np.bincount(numbers)[numbers] > 1
            places, numbers = places[again], numbers[again]
        yield n, places, numbers
        if len(places):
            inside = places < len(word_ids) - n
            places = places[inside]
            pairs = numbers[inside] * vocabulary + word_ids[places + n]
            numbers = np.unique(pairs, return_inverse=True)[1]


def most_frequent_characters(n: int, places: np.ndarray, numbers: np.ndarray, ends: np.ndarray) -> int:
    """Characters of the most frequent n-gram, spaces included, times how often it stands in the text.

    Of several that are as frequent, the one that comes first counts, and where none is repeated, the first of the text.
    ends: (words + 1,), the letters before each word, and those of all words. Occurrences may overlap.
    """
    if len(ends) <= n:
        return 0
    first, times = 0, 1
    if len(places):
        times_of = np.bincount(numbers)[numbers]
        most = times_of.argmax()
        first, times = places[most], times_of[most]
    return int(times * (ends[first + n] - ends[first] + n - 1))


def repeated_characters(n: int, places: np.ndarray, numbers: np.ndarray, ends: np.ndarray) -> int:
    """Characters, without spaces, of the n-grams that have stood before, read from left to right.

    After such an n-gram the reading goes on behind it, so no character counts twice.
    """
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
    found = np.array(hits, np.int64)
    return int((ends[found + n] - ends[found]).sum())
