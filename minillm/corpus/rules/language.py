"""The language of a document, by py3langid, which knows 140 languages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from minillm.corpus.rules.langid import Identifier
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
        if self.min_language_score > 1:
            score = self.min_language_score
            raise InputError(f"Language: min_language_score is {score}; give a probability of at most 1, such as 0.65")


def names_in(text: str) -> list[str]:
    """The names in a text such as "en, de"."""
    return text.replace(",", " ").split()


def identify(texts: Sequence[str]) -> list[tuple[str, float]]:
    """The most probable language of each text, and its probability among all that py3langid knows.

    It is not restricted to the wanted ones: between English and German alone, French would be certainly one of them. A
    text over 500 characters is judged by its first 250 and 250 from its middle, which takes a fraction of the time.
    A text without letters is in no language ("zxx", 0).
    """
    samples = []
    for text in texts:
        middle = len(text) // 2
        samples.append(text if len(text) <= 2 * SAMPLE else f"{text[:SAMPLE]}\n{text[middle : middle + SAMPLE]}")
    identifier = _identifier()
    found = []
    for sample, probabilities in zip(samples, identifier.probabilities(samples), strict=True):
        best = int(probabilities.argmax())
        letters = any(map(str.isalpha, sample))
        found.append((identifier.names[best], round(float(probabilities[best]), 4)) if letters else (NONE, 0.0))
    return found


_identifier = cache(Identifier)  # it is read once


def check_languages(limits: Language) -> None:
    """Raise InputError for a language that py3langid does not know: every document would be dropped."""
    known = _identifier().names
    for name in names_in(limits.languages):
        if name not in known:
            raise InputError(
                f"clean: languages has {name!r}, which the rule language does not know; give ISO 639-1 codes in small "
                f"letters: {', '.join(known)}"
            )


def find_languages(pages: Sequence[Page]) -> None:
    """Write down the languages of pages, and their probabilities."""
    for page, (found, score) in zip(pages, identify([page.measured for page in pages]), strict=True):
        page.language = found
        page.facts["language_score"] = score


def find_language(page: Page, limits: Language) -> Page:
    """Write down the language of the page and its probability, unless they are known."""
    if "language_score" not in page.facts:
        page = page.with_facts()
        find_languages([page])
    return page


def language(page: Page, limits: Language) -> Iterator[Check]:
    """Drop what is in another language, or in none that can be told.

    SOURCE: FineWeb keeps English with a probability of 0.65 or more. THRESHOLDS: 0.65; the languages English and
    German. FineWeb's probabilities are fastText's. py3langid gave 98.6 % of 4,000 English captions of 60 characters
    0.65 or more for English, and 99.6 % of as many German ones of 70 for German; no caption had as much for another
    language, and of texts of 200 characters none had less (multi30k). Numbers and formulas are in no language, but
    programs with English names and comments are English; `c4` drops those that have "{".
    """
    score = page.facts["language_score"]
    yield at_least(f"is the probability of {page.language}", score, limits.min_language_score)
    wanted = " or ".join(names_in(limits.languages))
    passed = page.language in names_in(limits.languages)
    yield Check("is the language", str(page.language), wanted, passed, ("", "not "))
