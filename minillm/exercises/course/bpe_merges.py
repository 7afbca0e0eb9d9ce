"""Byte-pair encoding: learn which pairs to join.

The text is given as words, each with the number of times that it occurs. At first a word is a sequence of single
bytes. Then, again and again: count every pair of neighbouring tokens in all words, and join the most frequent pair to
one token wherever it occurs. If several pairs are equally frequent, take the greatest, as Python compares pairs of
bytes. Stop after `count` pairs, or when no pair is left.
"""

from __future__ import annotations

import itertools
from collections import Counter

from minillm.exercises.exercise import Exercise
from minillm.tokenizers.bpe_naive import count_pairs, join, learn_merges, split


def merges(words, count):
    """Return pairs, a list of pairs of bytes such as (b"t", b"he"), in the order in which they are joined.

    words is a dictionary {b"the": 3, ...}: the number of times that each word occurs.
    """
    raise NotImplementedError("replace this line")


def right(words, count):
    return list(itertools.islice(learn_merges(words), count))


def cases(rng):
    yield dict(words={b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}, count=1)
    yield dict(words={b"abc": 1, b"abd": 9, b"bcbcbc": 2}, count=2)
    yield dict(words={b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}, count=6)
    yield dict(words={b"aaab": 1}, count=3)
    yield dict(words={b"ababab": 3, b"abxab": 4, b"ba": 4}, count=3)
    yield dict(words={b"aaaa": 2, b"baab": 3, b"aab": 1}, count=4)
    yield dict(words={b"ab": 2, b"c": 9}, count=5)
    yield dict(words={bytes(rng.choice(list(b"abc"), 6).tolist()): int(n) for n in range(1, 9)}, count=8)


EXERCISE = Exercise(
    starter=merges,
    returns="pairs",
    right=right,
    cases=cases,
    hints=(
        "Keep each word as a tuple of tokens, with its count. A loop of three parts: count, choose, join.",
        "A word that occurs five times adds five to each of its pairs.",
        "max with a key of (count, pair) takes the most frequent pair, and of several the greatest.",
        "Join from left to right: in a a a, the pair (a, a) is joined once, and the third a stays alone.",
    ),
    read="minillm/tokenizers/bpe_naive.py",
)


def greatest(counts):
    return max(counts, key=lambda pair: (counts[pair], pair))


def learn(words, count, choose=greatest, count_all=count_pairs, join_pair=join):
    """Learn merges with one of the three parts replaced."""
    tokens = {split(word): n for word, n in words.items()}
    found: list = []
    while len(found) < count and (counts := count_all(tokens)):
        best = choose(counts)
        found.append(best)
        tokens = {join_pair(word, best): n for word, n in tokens.items()}
    return found


@EXERCISE.mistake("Every word counts once; a word that occurs five times adds five to each of its pairs.")
def word_counts_ignored(words, count):
    return learn(words, count, count_all=lambda tokens: count_pairs(dict.fromkeys(tokens, 1)))


@EXERCISE.mistake("Of several equally frequent pairs, the first one that occurs is taken; the greatest is asked for.")
def first_of_equals(words, count):
    return list(itertools.islice(learn_merges(words, "first"), count))


@EXERCISE.mistake("Of several equally frequent pairs, the smallest is taken; the greatest is asked for.")
def smallest_of_equals(words, count):
    return learn(words, count, lambda counts: min(counts, key=lambda pair: (-counts[pair], pair)))


@EXERCISE.mistake("The pairs are counted once, at the beginning; each join makes new pairs, so they are counted again.")
def counted_once(words, count):
    counts = count_pairs({split(word): n for word, n in words.items()})
    return sorted(counts, key=lambda pair: (counts[pair], pair), reverse=True)[:count]


@EXERCISE.mistake("A pair is joined once in a word; it is joined wherever it occurs.")
def joined_once_a_word(words, count):
    def join_first(word, pair):
        for i in range(len(word) - 1):
            if word[i : i + 2] == pair:
                return (*word[:i], word[i] + word[i + 1], *word[i + 2 :])
        return word

    return learn(words, count, join_pair=join_first)


@EXERCISE.mistake("Pairs are joined from right to left; in a a a the first two belong together.")
def joined_from_the_right(words, count):
    def join_last(word, pair):
        turned = join(tuple(token[::-1] for token in word[::-1]), tuple(token[::-1] for token in pair[::-1]))
        return tuple(token[::-1] for token in turned[::-1])

    return learn(words, count, join_pair=join_last)


@EXERCISE.mistake("Pairs are counted across the ends of words, as if all words were one text.")
def across_words(words, count):
    def count_text(tokens):
        text = [token for word, n in tokens.items() for token in word * n]
        return Counter(itertools.pairwise(text))

    return learn(words, count, count_all=count_text)


@EXERCISE.mistake("When no pair is left there is nothing to choose from; stop then, even before `count` pairs.")
def no_pair_left(words, count):
    tokens = {split(word): n for word, n in words.items()}
    found = []
    for _ in range(count):
        found.append(greatest(count_pairs(tokens)))
        tokens = {join(word, found[-1]): n for word, n in tokens.items()}
    return found


@EXERCISE.mistake("Pairs that overlap are counted once, as in a a a; every two neighbours are a pair.")
def overlapping_pairs_left_out(words, count):
    def count_apart(tokens):
        counts: Counter = Counter()
        for word, n in tokens.items():
            before, end = None, -1
            for i, pair in enumerate(itertools.pairwise(word)):
                if pair == before and i == end:
                    before = None
                    continue
                counts[pair] += n
                before, end = pair, i + 1
        return counts

    return learn(words, count, count_all=count_apart)
