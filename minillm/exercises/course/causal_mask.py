"""The causal mask, also where earlier keys come from a cache.

A token may look at itself and at what stands before it. The queries are the last `queries` of `keys` tokens: without
a cache the two numbers are equal; with one there are more keys than queries. Some sequences are padded: the first
`padding` keys are no text, and no query may see them.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.ops.attention import visible_keys


def causal_mask(queries, keys, padding=0):
    """Return visible (queries, keys), an array of bool: True where a query may see a key."""
    raise NotImplementedError("replace this line")


def right(queries, keys, padding):
    q, k = np.empty((1, 1, queries, 1)), np.empty((1, 1, keys, 1))
    return visible_keys(q, k, None, None, True, np.full((1, queries), padding))[0, 0]


def cases(rng):
    for queries, keys, padding in ((4, 4, 0), (1, 1, 0), (1, 5, 0), (3, 7, 0), (4, 6, 2), (5, 5, 3)):
        yield dict(queries=queries, keys=keys, padding=padding)


EXERCISE = Exercise(
    starter=causal_mask,
    returns="visible",
    right=right,
    cases=cases,
    hints=(
        "Number the tokens: key j is token j. Which token is query i?",
        "The last query is the last token, so query i is token i + keys - queries.",
        "Compare a column of queries with a row of keys, by broadcasting; then leave out the padding.",
    ),
    read="minillm/ops/attention.py",
)


def compared(queries, keys, padding, compare, offset):
    i, j = np.arange(queries)[:, None] + offset, np.arange(keys)
    return compare(j, i) & (j >= padding)


@EXERCISE.mistake("Query 0 is taken for token 0. With a cache it is a later token: the last query is the last key.")
def aligned_at_the_front(queries, keys, padding=0):
    return compared(queries, keys, padding, np.less_equal, 0)


@EXERCISE.mistake("A token may not see itself; its own key is visible too. (The first query would see nothing at all.)")
def itself_hidden(queries, keys, padding=0):
    return compared(queries, keys, padding, np.less, keys - queries)


@EXERCISE.mistake("The mask shows the future and hides the past: a query sees keys up to its own place.")
def future_visible(queries, keys, padding=0):
    return compared(queries, keys, padding, np.greater_equal, keys - queries)


@EXERCISE.mistake("The mask is the wrong way round: True stands for a key that may be seen.")
def inverted(queries, keys, padding=0):
    return ~right(queries, keys, padding)


@EXERCISE.mistake("Padding is visible; the first `padding` keys must be hidden from every query.")
def padding_visible(queries, keys, padding=0):
    return right(queries, keys, 0)


@EXERCISE.mistake("Padding is hidden at the end; here it stands in front of the text.")
def padding_at_the_end(queries, keys, padding=0):
    return right(queries, keys, 0) & (np.arange(keys) < keys - padding)


@EXERCISE.mistake("The mask holds numbers to be added to scores; booleans are asked for, True where a key is visible.")
def numbers(queries, keys, padding=0):
    return np.where(right(queries, keys, padding), 0.0, -np.inf)


@EXERCISE.mistake(
    "Every query sees one key too many, the next token: with n keys the last query is token n - 1, not n."
)
def next_token_visible(queries, keys, padding=0):
    return compared(queries, keys, padding, np.less_equal, keys - queries + 1)
