"""Unicode's normal forms, in linear time.

Within a run of combining marks, a normal form sorts them by their classes. Python's `unicodedata.normalize` uses
insertion sort, quadratic in the length of a run: a text of a million marks, an accent above and one below in turn,
would take hours. Long runs are sorted here first.

Source: Unicode Standard Annex 15; section 3.11 of the standard for the order of marks.
"""

from __future__ import annotations

import unicodedata
from typing import Literal

import regex

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
LONG_RUN = regex.compile(r"\P{Canonical_Combining_Class=0}{64,}")


def normalise(form: Form, text: str) -> str:
    """Bring `text` into a normal form of Unicode."""
    apart: Form = "NFKD" if "K" in form else "NFD"

    def in_order(match: regex.Match[str]) -> str:
        marks = "".join([unicodedata.normalize(apart, mark) for mark in match.group()])
        return "".join(sorted(marks, key=unicodedata.combining))

    return unicodedata.normalize(form, text if text.isascii() else LONG_RUN.sub(in_order, text))
