"""C4's rules: lines that are no sentences go, and documents with code, filler or hardly a sentence.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
arXiv:1910.10683, section 2.2, and the code that made C4 (tensorflow_datasets, c4_utils.py), which does more than the
paper says. Its list of bad words is not used here; `word_lists` has one of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from minillm.corpus.rules.page import Check, Limits, Page, at_least, at_most

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
# C4's are the first five. German closes quotations with “ and «.
ENDS = (".", "?", "!", '"', "'", "”", "“", "’", "»", "«")  # noqa: RUF001
ELLIPSES = ("...", "…")
POLICIES = {
    "en": ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"),  # C4's
    "de": ("nutzungsbedingungen", "datenschutzerklärung", "verwendet cookies", "verwendung von cookies"),  # ours
}
# The end of a sentence before the end of its line: a new one follows, which does not begin with a small letter.
SENTENCE_END = re.compile(r"[.!?…][\"'”“’»«)\]]*[^\S\n]+(?![a-zà-öø-ÿß])(?=\S)")  # noqa: RUF001


@dataclass(frozen=True)
class C4(Limits):
    """The thresholds of c4."""

    end_punctuation: bool = False
    """C4: remove lines that do not end like a sentence, as C4 does; FineWeb does not, as it costs too much text."""
    max_line_word: int = 1000
    """C4: remove lines with a word of more characters."""
    min_line_words: int = 3
    """C4: remove lines with fewer words."""
    min_sentences: int = 5
    """C4: least sentences of a document, in the lines that are left."""


def c4_lines(page: Page, limits: C4) -> Page:
    """Remove citation marks, such as [12], and lines that are not prose: a menu, a notice about cookies or JavaScript.

    SOURCE: C4. THRESHOLDS: a word over 1,000 characters; fewer than three words; "javascript" in the line; a phrase of
    POLICIES. With `end_punctuation` also lines that do not end with one of ENDS, or end with an ellipsis.
    Empty lines between two that stay become one (C4 removes them; here they go on separating paragraphs).
    """
    phrases = POLICIES["en"] + (POLICIES["de"] if page.language == "de" else ())
    lowered = page.text.lower()
    phrases = tuple(phrase for phrase in phrases if phrase in lowered)  # nearly always none
    javascript = "javascript" in lowered
    cited = "[" in page.text
    kept: list[str] = []
    removed: list[tuple[str, str]] = []
    for whole in page.text.splitlines():
        line = whole.strip()
        if not line:
            if kept and kept[-1]:
                kept.append("")
            continue
        if len(line) > limits.max_line_word and max(map(len, line.split())) > limits.max_line_word:
            removed.append((line, f"a word over {limits.max_line_word} characters"))
            continue
        words = line.split(None, limits.min_line_words)  # no more of them than need be
        if cited:
            line = CITATION.sub("", line)
        if limits.end_punctuation and (not line.endswith(ENDS) or line.endswith(ELLIPSES)):
            removed.append((line, "no end of a sentence"))
        elif len(words) < limits.min_line_words:
            removed.append((line, f"under {limits.min_line_words} words"))
        elif (javascript or phrases) and (why := _notice(line, phrases)):
            removed.append((line, why))
        else:
            kept.append(line)
    text = "\n".join(kept).strip()
    facts = {"lines_removed": dict(Counter(why for _, why in removed))} if removed else {}
    return page if text == page.text else page.with_text(text, removed, **facts)


def _notice(line: str, phrases: tuple[str, ...]) -> str | None:
    """The phrase that makes the line a notice; a line for which the whole document is dropped stays, to be seen."""
    lowered = line.lower()
    if "lorem ipsum" in lowered:
        return None
    if "javascript" in lowered:
        return "javascript"
    return None if "{" in line else next((phrase for phrase in phrases if phrase in lowered), None)


def c4(page: Page, limits: C4) -> Iterator[Check]:
    """Drop documents with filler or code, and those of which the lines that c4_lines left have too few sentences.

    SOURCE: C4. THRESHOLDS: no "lorem ipsum", no "{", at least five sentences. A sentence ends where a line does, or at
    . ! ? … before a new word that does not begin with a small letter; "Dr. Miller" counts as two (C4 uses NLTK's Punkt,
    which knows such abbreviations).
    """
    yield at_most('times "lorem ipsum"', page.measured.lower().count("lorem ipsum"), 0)
    yield at_most('signs "{"', page.measured.count("{"), 0)
    yield at_least("sentences", len(page.lines) + len(SENTENCE_END.findall(page.measured)), limits.min_sentences)
