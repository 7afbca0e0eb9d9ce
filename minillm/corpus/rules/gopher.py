"""Gopher's rules: is this prose, and does it repeat itself?

Source: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", arXiv:2112.11446,
A.1.1 and table A1, with the details that the paper leaves open as in datatrove's code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from minillm.corpus.rules.page import LETTER, OTHER, Check, Limits, Page, at_least, at_most, duplicates

STOP_WORDS = {
    "en": frozenset("the be to of and that have with".split()),  # Gopher's
    "de": frozenset("der die das und zu von ist mit nicht den".split()),  # ours: the paper has English alone
}


@dataclass(frozen=True)
class GopherQuality(Limits):
    """The thresholds of gopher_quality."""

    min_words: int = 50
    """Gopher: least words of a document that are more than punctuation."""
    max_words: int = 100_000
    """Gopher: most words of a document."""
    min_word_length: float = 3.0
    """Gopher: least characters a word on average."""
    max_word_length: float = 10.0
    """Gopher: most characters a word on average."""
    max_hashes: float = 0.1
    """Gopher: most signs # a word."""
    max_ellipses: float = 0.1
    """Gopher: most ellipses ("..." or "…") a word."""
    max_bullet_lines: float = 0.9
    """Gopher: largest share of lines that begin with a bullet ("•" or "-")."""
    max_ellipsis_lines: float = 0.3
    """Gopher: largest share of lines that end with an ellipsis."""
    min_letter_words: float = 0.8
    """Gopher: least share of words with a letter in them."""
    min_stop_words: int = 2
    """Gopher: how many of eight common words a text must have (the, be, to, of, and, that, have, with)."""


def gopher_quality(page: Page, limits: GopherQuality) -> Iterator[Check]:
    """Drop what is no prose: too short or long, odd words, signs, lists, no common words.

    SOURCE: Gopher, A.1.1, "Quality filtering". THRESHOLDS: 50 to 100,000 words; mean length 3 to 10; # and ellipses at
    most 0.1 a word; at most 0.9 of the lines begin with a bullet and 0.3 end with an ellipsis; 0.8 of the words have a
    letter; two of eight common words. The common words are English: a German document is asked for German ones, of any
    other known language for none, and of an unknown one for those of English or German.
    Empty lines do not count (in datatrove they do).
    """
    real = (page.word_kinds & OTHER) > 0
    count = int(real.sum())
    yield at_least("words", count, limits.min_words)
    yield at_most("words", count, limits.max_words)
    length = float(page.word_lengths[real].mean()) if count else 0.0
    yield at_least("characters a word", length, limits.min_word_length)
    yield at_most("characters a word", length, limits.max_word_length)
    words, lines = max(len(page.words), 1), max(len(page.lines), 1)
    yield at_most("signs # a word", page.measured.count("#") / words, limits.max_hashes)
    ellipses = page.measured.count("...") + page.measured.count("…")
    yield at_most("ellipses a word", ellipses / words, limits.max_ellipses)
    may_have_bullets = "-" in page.measured or "•" in page.measured
    bullets = sum(line.lstrip().startswith(("•", "-")) for line in page.lines) if may_have_bullets else 0
    yield at_most("of the lines begin with a bullet", bullets / lines, limits.max_bullet_lines)
    trailing = sum(line.rstrip().endswith(("...", "…")) for line in page.lines) if ellipses else 0
    yield at_most("of the lines end with an ellipsis", trailing / lines, limits.max_ellipsis_lines)
    with_letter = int(((page.word_kinds & LETTER) > 0).sum())
    yield at_least("of the words have a letter", with_letter / words, limits.min_letter_words)
    languages = STOP_WORDS.keys() & {page.language} if page.language else STOP_WORDS.keys()
    if languages:
        common = max(len(STOP_WORDS[language].intersection(page.words)) for language in languages)
        yield at_least("common words", common, limits.min_stop_words)


@dataclass(frozen=True)
class GopherRepetition(Limits):
    """The thresholds of gopher_repetition."""

    max_duplicate_lines: float = 0.3
    """Gopher: largest share of lines that have stood before."""
    max_duplicate_paragraphs: float = 0.3
    """Gopher: largest share of paragraphs that have stood before."""
    max_line_characters: float = 0.2
    """Gopher: largest share of characters in lines that have stood before."""
    max_paragraph_characters: float = 0.2
    """Gopher: largest share of characters in paragraphs that have stood before."""
    max_top_2gram: float = 0.20
    """Gopher: largest share of characters in the most frequent two words."""
    max_top_3gram: float = 0.18
    """Gopher: largest share of characters in the most frequent three words."""
    max_top_4gram: float = 0.16
    """Gopher: largest share of characters in the most frequent four words."""
    max_repeated_5gram: float = 0.15
    """Gopher: largest share of characters in runs of five words that have stood before."""
    max_repeated_6gram: float = 0.14
    """Gopher: largest share of characters in runs of six words that have stood before."""
    max_repeated_7gram: float = 0.13
    """Gopher: largest share of characters in runs of seven words that have stood before."""
    max_repeated_8gram: float = 0.12
    """Gopher: largest share of characters in runs of eight words that have stood before."""
    max_repeated_9gram: float = 0.11
    """Gopher: largest share of characters in runs of nine words that have stood before."""
    max_repeated_10gram: float = 0.10
    """Gopher: largest share of characters in runs of ten words that have stood before."""


def gopher_repetition(page: Page, limits: GopherRepetition) -> Iterator[Check]:
    """Drop what repeats itself: lines, paragraphs, or runs of 2 to 10 words.

    SOURCE: Gopher, A.1.1, "Repetition removal". THRESHOLDS: table A1 (those of GopherRepetition). Shares of characters
    are those of the whole text, spaces included. The most frequent n-gram counts as often as it stands (n = 2, 3, 4),
    which is twice or more; in datatrove also once, so that it drops nearly every text of ten words. A repeated n-gram
    (n = 5 to 10) counts from its second place on, and the reading goes on behind it.
    """
    size = max(len(page.measured), 1)
    for what, parts, most, most_characters in (
        ("paragraphs", page.paragraphs, limits.max_duplicate_paragraphs, limits.max_paragraph_characters),
        ("lines", page.lines, limits.max_duplicate_lines, limits.max_line_characters),
    ):
        again, characters = duplicates(parts)
        yield at_most(f"of the {what} are duplicates", again / max(len(parts), 1), most)
        yield at_most(f"of the characters are in duplicate {what}", characters / size, most_characters)
    for n, characters in enumerate(page.ngram_characters.tolist(), 2):
        what, name = ("the most frequent", f"max_top_{n}gram") if n < 5 else ("repeated", f"max_repeated_{n}gram")
        measured = f"of the characters are in {what} {n}-gram{'s' * (n > 4)}"
        yield at_most(measured, characters / size, getattr(limits, name))
