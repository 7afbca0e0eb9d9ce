"""Words as numbers: what NumPy makes of many texts at once is what the definition says of each, letter by letter."""

from __future__ import annotations

import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.corpus import words
from minillm.corpus.words import folded, kind_of, mix, ngram_hashes, text_hashes, word_hashes, words_with_places

MASK = (1 << 64) - 1


def slow_mix(number: int) -> int:
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & MASK
    return number ^ (number >> 31)


def slow_hash(numbers: list[int], base: int) -> int:
    return slow_mix(sum(number * pow(base, place, 1 << 64) for place, number in enumerate(numbers)) & MASK)


def slow_words(text: str, numbers: str) -> list[int]:
    found = [word.word for word in words_with_places(text, numbers)]
    return [slow_hash([ord(letter) for letter in word], words.BASE_OF_LETTERS) for word in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat, the CAT!", "the cat the cat"),
        ("Straße STRASSE", "strasse strasse"),
        ("École e\u0301cole ÉCOLE", "ecole ecole ecole"),
        ("don't — well-known", "don t well known"),
        ("3.14 and 2,718 in 1999", "0 0 and 0 0 in 0"),
        ("abc123def", "abc0def"),
        ("soft\u00adhyphen zero\u200bwidth \ufeffmark", "softhyphen zerowidth mark"),
        ("我们 hello世界", "我 们 hello 世 界"),
        ("ﬁne ΟΔΟΣ οδος", "fine οδοσ οδοσ"),
        ("한국어 텍스트", "한국어 텍스트"),
        ("\x00 \u2028 ... ?!", ""),
        ("", ""),
    ],
)
def test_texts_are_normalised(text, expected):
    assert " ".join(word.word for word in words_with_places(text)) == expected
    assert word_hashes([text]).hashes.tolist() == slow_words(text, "zero")


def test_numbers_can_be_kept():
    kept = [word.word for word in words_with_places("17 + 25 = 42", "kept")]
    assert kept == ["17", "25", "42"]
    assert len(set(word_hashes(["17 + 25 = 42"], "kept").hashes.tolist())) == 3
    assert len(set(word_hashes(["17 + 25 = 42"]).hashes.tolist())) == 1


def test_places_are_those_of_the_words():
    text = "  Straße, e\u0301cole\n1,5 我们!"
    assert [text[word.start : word.end] for word in words_with_places(text)] == [
        "Straße",
        "e\u0301cole",
        "1",
        "5",
        "我",
        "们",
    ]


@given(st.lists(st.text(max_size=60), max_size=6), st.sampled_from(["zero", "kept"]))
def test_many_texts_at_once_are_each_text_alone(texts, numbers):
    found = word_hashes(texts, numbers)
    assert found.hashes.tolist() == [number for text in texts for number in slow_words(text, numbers)]
    assert np.diff(found.ends).tolist() == [len(slow_words(text, numbers)) for text in texts]


def test_long_texts_are_cut_between_words(monkeypatch, rng):
    """Blocks are of no account: neither their size, nor what else is in them."""
    letters = [*"ab ,.é1ß世\n", "\u0301"]
    texts = ["".join(rng.choice(letters, size)) for size in (0, 700, 3, 250, 90)]
    whole = word_hashes(texts)
    monkeypatch.setattr(words, "BLOCK", 100)
    cut = word_hashes(texts)
    assert whole.hashes.tolist() == cut.hashes.tolist()
    assert whole.ends.tolist() == cut.ends.tolist()
    assert len(whole.hashes) > 100


def test_the_tables_have_the_definition_of_every_character():
    letters, kinds = words._tables()
    low_letters, low_kinds = words._low_tables()
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        if unicodedata.category(character) in ("Cn", "Co", "Cs"):
            assert kinds[point] == words.SEPARATOR
            continue
        expected = folded(character)
        if kinds[point] == words.SEVERAL:
            assert 1 < len(expected) <= words.GROWTH
            assert all(folded(letter) == letter for letter in expected)
        else:
            kind = kind_of(expected) if expected else words.DROPPED
            assert kinds[point] == kind
            assert letters[point] == (0 if kind in (words.SEPARATOR, words.DROPPED) else ord(expected))
        if point < 256 and low_kinds[point] != words.SEVERAL:
            assert (low_letters[point], low_kinds[point]) == (letters[point], kinds[point])


@pytest.mark.parametrize("n", [1, 2, 5, 13])
def test_ngrams_are_polynomials_of_their_words(n, rng):
    hashes = rng.integers(0, 1 << 64, 20, np.uint64)
    expected = [slow_hash(hashes[start : start + n].tolist(), words.BASE_OF_WORDS) for start in range(20 - n + 1)]
    assert ngram_hashes(hashes, n).tolist() == expected
    assert ngram_hashes(hashes[: n - 1], n).tolist() == []


def test_texts_have_a_number_each():
    texts = ["one two three", "", "ONE, two: three!", "three two one", "one two", "?"]
    found = text_hashes(word_hashes(texts))
    assert found[0] == found[2]
    assert found[1] == found[5] == 0
    assert len(set(found.tolist())) == 4
    hashes = word_hashes(["one two three"]).hashes.tolist()
    assert found[0] == slow_hash(hashes, words.BASE_OF_WORDS)


def test_mix_is_a_bijection_that_spreads_every_bit(rng):
    numbers = rng.integers(0, 1 << 64, 2000, np.uint64)
    for bit in (0, 1, 31, 63):
        changed = mix(numbers.copy()) ^ mix(numbers ^ np.uint64(1 << bit))
        share = np.unpackbits(changed.view(np.uint8)).reshape(2000, 64).mean(axis=0)
        assert (abs(share - 0.5) < 0.06).all()  # 5 standard deviations of 2,000 coins
