"""The document as the rules see it, with measures that are computed once, and the checks that a rule makes of them.

A word is what stands between whitespace: "don't", "end." and "--" are one word each. Gopher's paper counts so.
FineWeb's code (datatrove) splits with spaCy, which makes "end" and "." of "end.": its counts of words are higher than
ours and its mean lengths lower, so a document near a threshold can end on the other side. Chinese, Japanese and Thai
have no spaces: a line of them is one word, and the rules that count words drop them.
A line is what stands between line breaks and has something in it; paragraphs are separated by an empty line.

Documents of more than MEASURED characters are judged by their first MEASURED, which bounds the memory of a worker.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from minillm.corpus.rules.ngrams import ngram_characters
from minillm.errors import InputError

MEASURED = 10_000_000  # characters: more than any book has
LETTER, OTHER = 1, 2  # bits of a character: it is a letter; it is neither whitespace nor punctuation
IDEOGRAPHS = 0x20000  # from here on, nearly all characters are Chinese


class Check(NamedTuple):
    """A comparison that a rule makes."""

    what: str  # what is measured, so that "0.4 " + what is a phrase: "of the lines are duplicates"
    value: float | str
    bound: float | str
    passed: bool
    sides: tuple[str, str]  # the words before the bound for what is allowed, and for what is not

    @property
    def allowed(self) -> str:
        """The values that pass: "at least 50"."""
        return f"{self.sides[0]}{number(self.bound, 6)}"

    @property
    def reason(self) -> str:
        """The reason why a document is dropped that does not pass: "12 words, under 50"."""
        value = number(self.value)
        for digits in (6, 17):  # as many as it takes to tell the value from the bound
            if isinstance(self.value, float) and float(value) == self.bound:
                value = number(self.value, digits)
        return f"{value} {self.what}, {self.sides[1]}{number(self.bound, 6)}"


LEAST, MOST = ("at least ", "under "), ("at most ", "over ")


def at_least(what: str, value: float, bound: float) -> Check:
    """The check that a value is not under a bound."""
    return Check(what, value, bound, value >= bound, LEAST)


def at_most(what: str, value: float, bound: float) -> Check:
    """The check that a value is not over a bound."""
    return Check(what, value, bound, value <= bound, MOST)


def number(value: float | str, digits: int = 3) -> str:
    """A number for a person: 100,000 or 0.333; a text as it is."""
    return f"{value:,}" if isinstance(value, int) else value if isinstance(value, str) else f"{value:.{digits}g}"


@dataclasses.dataclass(frozen=True)
class Limits:
    """The thresholds of a rule: numbers of 0 or more."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{type(self).__name__}: {name} is {value}; give a number of 0 or more")


class Page:
    """A document as the rules see it.

    facts: what the rules found out, which the document keeps in its `info`.
    removed: the lines that a rule took out, each with the reason.
    """

    def __init__(self, text: str, language: str | None = None):
        self.text = text
        self.language = language
        self.facts: dict[str, Any] = {}
        self.removed: list[tuple[str, str]] = []

    def with_text(self, text: str, removed: Sequence[tuple[str, str]] = (), **facts: Any) -> Page:
        """A page with another text, and with what was found out on the way to it."""
        page = Page(text, self.language)
        page.facts, page.removed = {**self.facts, **facts}, [*self.removed, *removed]
        return page

    def with_facts(self, **facts: Any) -> Page:
        """A page with the same text, of which more is known."""
        page = copy.copy(self)
        page.facts = {**self.facts, **facts}
        return page

    @cached_property
    def measured(self) -> str:
        """The part of the text that is measured."""
        return self.text[:MEASURED]

    @cached_property
    def lines(self) -> list[str]:
        """The lines that have something in them."""
        return [line for line in self.measured.split("\n") if line and not line.isspace()]

    @cached_property
    def paragraphs(self) -> list[str]:
        """The parts of the text between empty lines."""
        parts = (part.strip("\n") for part in self.measured.strip().split("\n\n"))
        return [part for part in parts if part]

    @cached_property
    def words(self) -> list[str]:
        """The parts of the text between whitespace."""
        return self.measured.split()

    @cached_property
    def word_ids(self) -> np.ndarray:
        """The words as numbers from 0 on, equal ones for equal words: (words,)."""
        numbers: defaultdict[str, int] = defaultdict(itertools.count().__next__)
        return np.fromiter(map(numbers.__getitem__, self.words), np.int64, len(self.words))

    @cached_property
    def word_lengths(self) -> np.ndarray:
        """Characters of each word: (words,)."""
        starts, ends = self._spans[1]
        return ends - starts

    @cached_property
    def ngram_characters(self) -> np.ndarray:
        """Characters in repeated n-grams of words, for n from 2 to 10: (9,); see ngrams.py."""
        return ngram_characters([self.word_ids], [self.word_lengths])[0]

    @cached_property
    def word_kinds(self) -> np.ndarray:
        """For each word, LETTER if it has one, plus OTHER if it has more than punctuation: (words,)."""
        kinds, (starts, _) = self._spans
        return np.bitwise_or.reduceat(kinds, starts) & (LETTER | OTHER) if len(starts) else np.zeros(0, np.uint8)

    @cached_property
    def _spans(self) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """The kind of each character of the text and of a space before and behind it; where words start and end."""
        codes = np.frombuffer(f" {self.measured} ".encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = _kinds()[np.minimum(codes, IDEOGRAPHS)]
        inside = kinds != _SPACE
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
        return kinds, (edges[::2], edges[1::2])


_SPACE = 4


@cache
def _kinds() -> np.ndarray:
    """LETTER, OTHER or _SPACE of every character below IDEOGRAPHS; the last entry stands for all others."""
    kinds = np.zeros(IDEOGRAPHS + 1, np.uint8)
    for code in range(IDEOGRAPHS):
        character = chr(code)
        if character.isspace():
            kinds[code] = _SPACE
        elif character.isalpha():
            kinds[code] = LETTER | OTHER
        elif unicodedata.category(character)[0] not in "PS" and unicodedata.category(character) != "Cc":
            kinds[code] = OTHER
    kinds[IDEOGRAPHS] = LETTER | OTHER
    return kinds


def count_ngrams(pages: Sequence[Page]) -> None:
    """Compute the ngram_characters of many pages together, which takes a fraction of the time."""
    found = ngram_characters([page.word_ids for page in pages], [page.word_lengths for page in pages])
    for page, characters in zip(pages, found, strict=True):
        page.ngram_characters = characters


def duplicates(parts: list[str]) -> tuple[int, int]:
    """The number of the parts that have stood before, and of their characters."""
    different = set(parts)
    return len(parts) - len(different), sum(map(len, parts)) - sum(map(len, different))
