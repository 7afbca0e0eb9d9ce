"""The guide: twelve chapters in Markdown, from the chain rule of a scalar to several GPUs. `minillm guide` shows them.

Each chapter is a file beside this one, `05-attention.md`, whose first line is its title. tests/test_guide.py runs every
block of code and every command of every chapter, in order, and compares what is printed; the rules are in
tests/documents.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from minillm.errors import InputError, did_you_mean

FOLDER = Path(__file__).parent


class Chapter(NamedTuple):
    """A chapter of the guide."""

    number: int
    name: str  # "attention"
    title: str
    path: Path

    @property
    def text(self) -> str:
        """The chapter in Markdown."""
        return self.path.read_text(encoding="utf-8")


def chapters() -> list[Chapter]:
    """All chapters, in reading order."""
    found = []
    for path in sorted(FOLDER.glob("[0-9][0-9]-*.md")):
        number, _, name = path.stem.partition("-")
        with path.open(encoding="utf-8") as lines:
            title = next(lines).lstrip("# ").strip()
        found.append(Chapter(int(number), name, title, path))
    return found


def chapter(word: str) -> Chapter:
    """The chapter with this number or name. Raises: InputError with the names that there are."""
    named = {key: one for one in chapters() for key in (str(one.number), one.name)}
    if word not in named:
        raise InputError(f"guide: there is no chapter {word!r}{did_you_mean(word, named)}")
    return named[word]
