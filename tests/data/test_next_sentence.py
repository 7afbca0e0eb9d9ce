"""Pairs of text for next sentence prediction: every token of them is found again where it came from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minillm
from minillm.data import sentence_pairs
from minillm.errors import InputError
from minillm.random import Generator

CLS, SEP = 1, 2


def numbered(sizes: list[list[int]]) -> list[list[list[int]]]:
    """Documents of sentences of these sizes, in which every token is another number, counted from 10."""
    counter = iter(range(10, 10**6))
    return [[[next(counter) for _ in range(size)] for size in document] for document in sizes]


SIZES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=8), min_size=2, max_size=6)


@given(SIZES, st.integers(5, 40), st.integers(0, 99))
def test_texts_are_stretches_of_documents_in_order(sizes, length, seed) -> None:
    documents = numbered(sizes)
    owner = {token: n for n, document in enumerate(documents) for sentence in document for token in sentence}
    last = -1
    seen = set()
    for pair in sentence_pairs(documents, length, CLS, SEP, generator=Generator(seed)):
        assert len(pair.ids) == len(pair.token_types) <= length
        first, second = (place for place, token in enumerate(pair.ids) if token == SEP)
        assert pair.ids[0] == CLS
        assert second == len(pair.ids) - 1
        a, b = pair.ids[1:first], pair.ids[first + 1 : second]
        assert a
        assert b
        for text in (a, b):  # neighbours, of one document
            assert text == list(range(text[0], text[0] + len(text)))
            assert len({owner[token] for token in text}) == 1
        assert pair.token_types == [0] * (first + 1) + [1] * (len(b) + 1)
        assert a[0] > last  # each stretch is used once
        if pair.next_sentence == 0:
            assert owner[a[0]] == owner[b[0]]
            assert b[0] > a[-1]
            last = b[-1]
        else:
            assert owner[a[0]] != owner[b[0]]
            last = a[-1]
        seen |= {owner[a[0]]}
    assert seen == set(range(len(documents)))  # none was left out


def test_what_follows_follows_at_once_where_nothing_was_cut() -> None:
    documents = numbered([[3, 3, 3, 3], [2] * 6])
    for seed in range(20):
        for pair in sentence_pairs(documents, 40, CLS, SEP, generator=Generator(seed)):
            first = pair.ids.index(SEP)
            if pair.next_sentence == 0:
                assert pair.ids[first + 1] == pair.ids[first - 1] + 1


def test_half_of_the_pairs_follow_and_nothing_is_lost() -> None:
    documents = numbered([[5] * 400 for _ in range(6)])
    pairs = list(sentence_pairs(documents, 64, CLS, SEP, generator=Generator(0)))
    assert abs(np.mean([pair.next_sentence for pair in pairs]) - 0.5) < 0.1
    # Text A, and text B where it follows, are all of each document but for what was cut to fit.
    used = {
        token for pair in pairs for token in (pair.ids if not pair.next_sentence else pair.ids[: pair.ids.index(SEP)])
    }
    assert len(used - {CLS, SEP}) > 0.9 * 6 * 2000
    short = np.mean([len(pair.ids) < 50 for pair in pairs])
    assert 0.03 < short < 0.2  # one in ten was made shorter, if its length was drawn below 50


def test_the_stream_decides() -> None:
    documents = numbered([[3, 4, 5, 2], [2, 2, 6], [7, 1, 1]])
    runs = []
    for seed in (0, 0, 1):
        minillm.manual_seed(seed)
        runs.append(list(sentence_pairs(documents, 12, CLS, SEP)))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("documents", "length", "message"),
    [
        ([[[3]], [[4]]], 4, "length is 4; give 5 or more"),
        ([[[3]]], 9, "there are 1 documents; give two"),
        ([[[3]], []], 9, "document 1 is empty"),
        ([[[3], []], [[4]]], 9, "document 0 is empty, or has an empty sentence"),
    ],
)
def test_what_cannot_be_used(documents, length, message) -> None:
    with pytest.raises(InputError, match=f"^sentence_pairs: {message}"):
        list(sentence_pairs(documents, length, CLS, SEP))
