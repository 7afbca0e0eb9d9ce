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
import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from minillm.errors import InputError

MEASURED = 10_000_000  # characters: more than any book has
LETTER, OTHER = 1, 2  # bits of a character: it is a letter; it is neither whitespace nor punctuation
IDEOGRAPHS = 0x20000  # from here on, nearly all characters are Chinese


class Check(NamedTuple):
    """One comparison that a rule makes."""

    what: str  # what is measured, so that "0.4 " + what is a phrase: "of the lines are duplicates"
    value: float | str
    allowed: str  # "at least 50"
    passed: bool
    reason: str  # why the document is dropped if it did not pass


def at_least(what: str, value: float, bound: float) -> Check:
    """The check that a value is not under a bound."""
    reason = f"{_shown(value, bound)} {what}, under {number(bound, 6)}"
    return Check(what, value, f"at least {number(bound, 6)}", value >= bound, reason)


def at_most(what: str, value: float, bound: float) -> Check:
    """The check that a value is not over a bound."""
    reason = f"{_shown(value, bound)} {what}, over {number(bound, 6)}"
    return Check(what, value, f"at most {number(bound, 6)}", value <= bound, reason)


def number(value: float | str, digits: int = 3) -> str:
    """A number for a person: 100,000 or 0.333; a text as it is."""
    return f"{value:,}" if isinstance(value, int) else value if isinstance(value, str) else f"{value:.{digits}g}"


def _shown(value: float, bound: float) -> str:
    """The value with three digits, or with as many as it takes to tell it from the bound."""
    if isinstance(value, int) or value == bound:
        return number(value)
    return next(text for digits in (3, 6, 17) if float(text := f"{value:.{digits}g}") != bound)


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
        """The same page, of which more is known."""
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
        """What stands between empty lines."""
        text = self.measured.strip()
        return re.split(r"\n{2,}", text) if text else []

    @cached_property
    def words(self) -> list[str]:
        """What stands between whitespace."""
        return self.measured.split()

    @cached_property
    def distinct(self) -> dict[str, int]:
        """The different words, in the order of their first places, each with a number."""
        return {word: number for number, word in enumerate(dict.fromkeys(self.words))}

    @cached_property
    def word_ids(self) -> np.ndarray:
        """The words as numbers, equal ones for equal words: (words,)."""
        return np.fromiter(map(self.distinct.__getitem__, self.words), np.int64, len(self.words))

    @cached_property
    def word_lengths(self) -> np.ndarray:
        """Characters of each word: (words,)."""
        return np.fromiter(map(len, self.words), np.int64, len(self.words))

    @cached_property
    def word_kinds(self) -> np.ndarray:
        """For each word, LETTER if it has one, plus OTHER if it has more than punctuation: (words,)."""
        codes = np.frombuffer(self.measured.encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = _kinds()[np.minimum(codes, IDEOGRAPHS)]
        inside = kinds != _SPACE
        starts = np.flatnonzero(inside[1:] & ~inside[:-1]) + 1
        if len(inside) and inside[0]:
            starts = np.concatenate([[0], starts])
        if not len(starts):
            return np.zeros(0, np.uint8)
        return np.bitwise_or.reduceat(kinds, starts) & (LETTER | OTHER)


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


def duplicates(parts: list[str]) -> tuple[int, int]:
    """How many of the parts have stood before, and how many characters these have."""
    different = set(parts)
    return len(parts) - len(different), sum(map(len, parts)) - sum(map(len, different))
