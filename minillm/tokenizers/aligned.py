"""Texts that remember, for each character, the place in the original text that it came from.

A tokenizer changes a text before it cuts it: case, accents, normal forms, spaces. To say where in the *original* text a
token stands, every change is made with an eye on the places: `spans[n]` is the start and the end of what character n
came from.

    "Ça  va"  ->  lower case, NFD  ->  "c" (0, 1), cedilla (0, 1), "a" (1, 2), " " (2, 3), " " (3, 4), ...

A change by a function is traced as finely as it allows: character by character where the function treats each by
itself, else grapheme by grapheme (a letter with its marks, a syllable of Hangul), else word by word. A mark that is
dropped belongs to the character before it, as for a reader.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import regex

Span = tuple[int, int]

GRAPHEME, WORD_OR_SPACE, ALL = regex.compile(r"\X"), regex.compile(r"\S+|\s+"), regex.compile("(?s:.+)")
SURROGATE_PAIR = regex.compile("[\ud800-\udbff][\udc00-\udfff]|.", regex.DOTALL)


class Aligned(NamedTuple):
    """A text, and the start and the end, in the original, of what each of its characters came from."""

    text: str
    spans: list[Span]

    def part(self, start: int, end: int) -> Aligned:
        """The characters from `start` to `end`."""
        return Aligned(self.text[start:end], self.spans[start:end])

    def parts(self, pieces: Iterable[str]) -> Iterator[Aligned]:
        """The pieces that make up the text, one after the other."""
        start = 0
        for piece in pieces:
            end = start + len(piece)
            yield self.part(start, end)
            start = end

    def after(self, character: str) -> Aligned:
        """The text with a character in front, which has the place of the first."""
        return Aligned(character + self.text, [self.spans[0], *self.spans])

    @property
    def span(self) -> Span:
        """The place of the whole text."""
        return outer(self.spans)

    @property
    def spans_of_bytes(self) -> list[Span]:
        """The place of the character that each byte of the text, in UTF-8, belongs to."""
        return [span for character, span in zip(self.text, self.spans, strict=True) for _ in character.encode()]


def outer(spans: list[Span]) -> Span:
    """The place from the first of these to the last; they are not empty."""
    return spans[0][0], spans[-1][1]


def aligned(text: str) -> Aligned:
    """A text with its own places. Surrogates, which UTF-8 cannot write, are joined or replaced, as in `encode`."""
    if not regex.search("[\ud800-\udfff]", text):
        return Aligned(text, [(place, place + 1) for place in range(len(text))])
    matches = list(SURROGATE_PAIR.finditer(text))
    characters = [m.group().encode("utf-16", "surrogatepass").decode("utf-16", "replace") for m in matches]
    return Aligned("".join(characters), [match.span() for match in matches])


def changed(before: Aligned, change: Callable[[str], str]) -> Aligned:
    """The text after `change`, each character with the place of what it came from."""
    whole = change(before.text)
    for unit in (GRAPHEME, WORD_OR_SPACE):
        if "".join(map(change, unit.findall(before.text))) == whole:
            break
    else:
        unit = ALL
    made: list[str] = []
    spans: list[Span] = []
    for match in unit.finditer(before.text):
        _add_changed(made, spans, before.part(*match.span()), change)
    return Aligned("".join(made), spans)


def _add_changed(made: list[str], spans: list[Span], part: Aligned, change: Callable[[str], str]) -> None:
    """Add what becomes of a part: of each of its characters, or of all together if they depend on each other."""
    whole, single = change(part.text), [change(character) for character in part.text]
    if "".join(single) != whole:
        made.append(whole)
        spans += [part.span] * len(whole)
        return
    for character, new, span in zip(part.text, single, part.spans, strict=True):
        if not new and spans and unicodedata.category(character).startswith("M"):
            spans[-1] = spans[-1][0], span[1]
        made.append(new)
        spans += [span] * len(new)


def replaced(before: Aligned, matches: Iterable[Span], content: str) -> Aligned:
    """The text with each match replaced by `content`, which has the place of the match."""
    made: list[str] = []
    spans: list[Span] = []
    place = 0
    for start, end in matches:
        made += [before.text[place:start], content]
        spans += before.spans[place:start]
        spans += [before.part(start, end).span] * len(content)
        place = end
    return Aligned("".join([*made, before.text[place:]]), [*spans, *before.spans[place:]])
