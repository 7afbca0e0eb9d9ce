"""FineWeb's own rules: lists, menus and pages of short lines.

Source: Penedo et al. 2024, "The FineWeb Datasets", arXiv:2406.17557, section 3.6 and appendix; datatrove's code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from minillm.corpus.rules.page import Check, Limits, Page, at_least, at_most, duplicates

# FineWeb's are the first five.
ENDS = (".", "!", "?", '"', "'", "”", "“", "’", "»", "«", "…", "。", "！", "？")  # noqa: RUF001


@dataclass(frozen=True)
class FineWeb(Limits):
    """The thresholds of fineweb."""

    min_ended_lines: float = 0.12
    """FineWeb: least share of lines that end with punctuation."""
    short_line: int = 30
    """FineWeb: most characters of a short line."""
    max_short_lines: float = 0.67
    """FineWeb: largest share of short lines."""
    max_repeated_characters: float = 0.01
    """FineWeb: largest share of characters in lines that have stood before."""
    max_line_breaks: float = 0.3
    """FineWeb: most line breaks a word."""


def fineweb(page: Page, limits: FineWeb) -> Iterator[Check]:
    """Drop lists and menus.

    SOURCE: FineWeb. THRESHOLDS: at least 0.12 of the lines end with punctuation; at most 0.67 have 30 characters or
    fewer; at most 0.01 of the characters (line breaks apart) are in duplicate lines; at most 0.3 line breaks a word.
    Empty lines add no line breaks to the count: in FineWeb, C4's rules have removed them before.
    """
    lines = max(len(page.lines), 1)
    ended = sum(line.endswith(ENDS) for line in page.lines)
    yield at_least("of the lines end with punctuation", ended / lines, limits.min_ended_lines)
    short = sum(len(line) <= limits.short_line for line in page.lines)
    yield at_most(f"of the lines have {limits.short_line} characters or fewer", short / lines, limits.max_short_lines)
    characters = max(len(page.measured) - page.measured.count("\n"), 1)
    share = duplicates(page.lines)[1] / characters
    yield at_most("of the characters are in duplicate lines", share, limits.max_repeated_characters)
    yield at_most("line breaks a word", (lines - 1) / max(len(page.words), 1), limits.max_line_breaks)
