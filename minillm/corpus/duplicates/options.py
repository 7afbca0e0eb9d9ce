"""The settings of the stage `dedup`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from minillm.corpus.words import Numbers
from minillm.errors import InputError


@dataclass(frozen=True)
class Dedup:
    """Mark documents, and remove lines, that stand elsewhere already; the first in input order stays."""

    ngram: int = 5
    """Words of a shingle; documents with fewer words are duplicates only of those with the same words."""
    bands: int = 25
    """Bands of a signature: more of them find more duplicates."""
    rows: int = 8
    """Minima in a band: more of them compare fewer pairs that are no duplicates."""
    threshold: float = 0.8
    """Share of common shingles (Jaccard) from which on two documents are near-duplicates; 1 for the same shingles."""
    lines: int | None = None
    """Remove a line that stands in more than so many documents from all but the first; by default none is removed."""
    paragraphs: int | None = None
    """Remove a paragraph, the text between two empty lines, that stands in more than so many documents, likewise."""
    shortest: int = 20
    """Characters of the shortest line or paragraph that is removed."""
    numbers: Numbers = "zero"
    """`zero`: texts that differ in numbers alone are equal, as pages with dates are; `kept`: numbers are words."""
    seed: int = 0
    """Seed of the random orders of shingles."""

    def __post_init__(self) -> None:
        for name, least in (("ngram", 1), ("bands", 1), ("rows", 1), ("lines", 1), ("paragraphs", 1), ("shortest", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise InputError(f"dedup: {name} is {value}; give {least} or more")
        if self.numbers not in get_args(Numbers):
            raise InputError(f"dedup: numbers is {self.numbers!r}; give {' or '.join(get_args(Numbers))}")
        if not 0 < self.threshold <= 1:
            raise InputError(f"dedup: threshold is {self.threshold}; give a share above 0 and at most 1, such as 0.8")
        if self.bands * self.rows > 10_000:
            raise InputError(
                f"dedup: bands x rows is {self.bands} x {self.rows}, {self.bands * self.rows:,} minima a document; "
                "give 10,000 at most"
            )
