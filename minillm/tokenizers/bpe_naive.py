"""Byte-pair encoding in its simplest form. Read this file first; bpe_train.py and bpe.py give the same result faster.

A word is a tuple of tokens, at first one token for each byte. Training counts every pair of neighbouring tokens, joins
the most frequent pair wherever it occurs, and starts again. The joined pairs, in order, are all that is learnt: to
encode a new word, join the same pairs in the same order.

    >>> words = {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}
    >>> merges = list(learn_merges(words))[:4]
    >>> merges
    [(b's', b't'), (b'e', b'st'), (b'o', b'w'), (b'l', b'ow')]
    >>> encode(b"lowest", merges)
    (b'low', b'est')

Each merge costs a pass over all words. That is the price of simplicity: for 10,000 merges, bpe_train.py updates only
the counts that a merge changes.
Source: Sennrich et al. 2016, arXiv:1508.07909, algorithm 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Literal

Word = tuple[bytes, ...]
Pair = tuple[bytes, bytes]


def learn_merges(words: Mapping[bytes, int], ties: Literal["greater", "first"] = "greater") -> Iterator[Pair]:
    """Yield the pairs to join, most frequent first, until no pair is left. `words` has the count of each word.

    Several pairs may be equally frequent. Then "greater" takes the greatest, compared byte by byte, and "first" takes
    the one that occurs first in `words`: a Counter keeps that order, and `max` returns the first of equals.

    >>> list(learn_merges({b"aaab": 1}))
    [(b'a', b'a'), (b'aa', b'a'), (b'aaa', b'b')]
    """
    counts_of_words = {split(word): count for word, count in words.items()}
    while counts := count_pairs(counts_of_words):
        best = max(counts, key=lambda pair: (counts[pair], pair) if ties == "greater" else counts[pair])
        yield best
        counts_of_words = {join(word, best): count for word, count in counts_of_words.items()}


def encode(word: bytes, merges: Iterable[Pair]) -> Word:
    """Join the learnt pairs in the order of learning."""
    tokens = split(word)
    for pair in merges:
        tokens = join(tokens, pair)
    return tokens


def split(word: bytes) -> Word:
    """Make one token of each byte.

    >>> split(b"low")
    (b'l', b'o', b'w')
    """
    return tuple(bytes([byte]) for byte in word)


def count_pairs(words: Mapping[Word, int]) -> Counter[Pair]:
    """Count every pair of neighbouring tokens.

    >>> count_pairs({(b"l", b"o", b"w"): 3, (b"l", b"o", b"o"): 1})
    Counter({(b'l', b'o'): 4, (b'o', b'w'): 3, (b'o', b'o'): 1})
    """
    counts: Counter[Pair] = Counter()
    for word, count in words.items():
        for pair in pairwise(word):
            counts[pair] += count
    return counts


def join(word: Word, pair: Pair) -> Word:
    """Make one token of the pair wherever it occurs, from left to right.

    >>> join((b"a", b"a", b"a", b"b"), (b"a", b"a"))
    (b'aa', b'a', b'b')
    """
    joined: list[bytes] = []
    for token in word:
        if joined and (joined[-1], token) == pair:
            joined[-1] += token
        else:
            joined.append(token)
    return tuple(joined)
