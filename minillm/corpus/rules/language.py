"""The language of a document, by py3langid: naive Bayes over byte n-grams, for 97 languages and more.

Source: Lui and Baldwin 2012, "langid.py: An Off-the-shelf Language Identification Tool", ACL, in the package py3langid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from minillm.corpus.rules.page import Check, Limits, Page, at_least
from minillm.errors import InputError

SAMPLE = 250  # characters of each of the two pieces of a long text
NONE = "zxx"  # the code of ISO 639 for text in no language, which py3langid knows too


@dataclass(frozen=True)
class Language(Limits):
    """The thresholds of language."""

    languages: str = "en, de"
    """Languages to keep, by their ISO 639-1 codes."""
    min_language_score: float = 0.65
    """FineWeb: least probability of the language."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "languages", ", ".join(names_in(self.languages)))
        if not self.languages:
            raise InputError("Language: languages is empty; name one, such as en, or leave out the rule")


def names_in(text: str) -> list[str]:
    """The names in a text such as "en, de"."""
    return text.replace(",", " ").split()


def identify(text: str) -> tuple[str, float]:
    """The most probable language, and its probability, normalised over all that py3langid knows.

    It is not restricted to the wanted ones: between English and German alone, French would be certainly one of them. A
    text over 500 characters is judged by its first 250 and 250 from its middle, which takes a fraction of the time.
    A text without letters is in no language ("zxx", 0).
    """
    middle = len(text) // 2
    sample = text if len(text) <= 2 * SAMPLE else f"{text[:SAMPLE]}\n{text[middle : middle + SAMPLE]}"
    if not any(map(str.isalpha, sample)):
        return NONE, 0.0
    language, score = _identifier().classify(sample)
    return language, round(float(score), 4)


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise InputError('clean: the rule language needs py3langid; pip install ".[data]"') from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.nb_ptc = identifier.nb_ptc.astype(np.float32)  # from float16, which a CPU has to convert at every use
    return identifier


def find_language(page: Page, limits: Language) -> Page:
    """Write down the language of the page and its probability."""
    found, score = identify(page.measured)
    page = page.with_facts(language_score=score)
    page.language = found
    return page


def language(page: Page, limits: Language) -> Iterator[Check]:
    """Drop what is in another language, or in none that can be told.

    SOURCE: FineWeb keeps English with a probability of 0.65 or more (by fastText; py3langid's probabilities are others,
    but prose has over 0.95 and program text under 0.5 in both). THRESHOLDS: 0.65; the languages English and German.
    """
    score = page.facts["language_score"]
    yield at_least(f"is the probability of {page.language}", score, limits.min_language_score)
    wanted = " or ".join(names_in(limits.languages))
    passed = page.language in names_in(limits.languages)
    yield Check("is the language", str(page.language), wanted, passed, ("", "not "))
