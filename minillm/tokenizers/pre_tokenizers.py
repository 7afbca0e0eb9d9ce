"""The pre-tokenizer of a tokenizer.json: a chain of steps that cut a text into pieces for the model.

Most steps look for matches of a pattern, or for a kind of characters. The behavior of a step (`cut`) removes these,
isolates them, or joins them with the text before or after. `Metaspace` and `ByteLevel` also change the text.

Source: the code of Hugging Face's `tokenizers`, whose pieces these are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import regex

from minillm.errors import InputError, did_you_mean
from minillm.tokenizers.basic import is_punctuation
from minillm.tokenizers.components import Component, flatten, number_option, text_option
from minillm.tokenizers.normalizer import SPACE, spell_bytes
from minillm.tokenizers.patterns import GPT2, ForeignPattern
from minillm.tokenizers.special import WHITE

BEHAVIORS = "Removed", "Isolated", "Contiguous", "MergedWithPrevious", "MergedWithNext"
RUST_WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}"


class Piece(NamedTuple):
    """A piece of a text, and its start in the original text."""

    text: str
    start: int


class Span(NamedTuple):
    """A part of a text: a match, or the text between two."""

    start: int
    end: int
    is_match: bool


Step = Callable[[list[Piece], int], list[Piece]]
Find = Callable[[str], Iterable[tuple[int, int]]]


class PreTokenizer:
    """Cuts a text into pieces; `component` is the pre-tokenizer of a tokenizer.json, or None, which cuts nothing.

    Raises: InputError for a step that is not supported.
    """

    def __init__(self, where: str, component: Component | None, normalizes: bool = False):
        self.made_from = where, component, normalizes
        steps = flatten(component, "pretokenizers")
        self.steps = [read_step(where, step) for step in steps]
        changed = normalizes  # True once the start of a piece in the text is uncertain
        for number, step in enumerate(steps):
            if step.get("prepend_scheme") == "first" and step["type"] == "Metaspace" and number and changed:
                raise InputError(
                    f"{where}: Metaspace has prepend_scheme 'first' after steps that change text, so the first piece "
                    "cannot be told; put it before them"
                )
            changed |= step["type"] in ("Metaspace", "ByteLevel")

    def __reduce__(self) -> tuple[type[PreTokenizer], tuple[str, Component | None, bool]]:
        """Pickle the component, as the functions of its steps have no name that a process could find them by."""
        return PreTokenizer, self.made_from

    def __call__(self, text: str, lead: int) -> list[str]:
        """The pieces of a text; `lead` is the number of characters that come from the first character of all text."""
        pieces = [Piece(text, 0)] if text else []
        for step in self.steps:
            pieces = step(pieces, lead)
        return [piece.text for piece in pieces]


def read_step(where: str, step: Component) -> Step:
    """The function of one step."""
    name = step["type"]
    if name == "WhitespaceSplit":
        return cutting(of_pattern(f"[{WHITE}]"), "Removed")
    if name == "Whitespace":
        return cutting(of_pattern(f"[{RUST_WORD}]+|[^{RUST_WORD}{WHITE}]+"), "Removed", invert=True)
    if name == "BertPreTokenizer":
        words, signs = cutting(of_pattern(f"[{WHITE}]"), "Removed"), cutting(punctuation, "Isolated")
        return lambda pieces, lead: signs(words(pieces, lead), lead)
    if name == "CharDelimiterSplit":
        return cutting(of_pattern(regex.escape(text_option(where, step, "delimiter"))), "Removed")
    if name == "Punctuation":
        return cutting(punctuation, read_behavior(where, step))
    if name == "Digits":
        return cutting(of_pattern(r"\p{N}"), "Isolated" if step["individual_digits"] else "Contiguous")
    if name == "Split":
        found = ForeignPattern(where, step["pattern"])
        return cutting(found.spans, read_behavior(where, step), invert=step.get("invert", False))
    if name == "FixedLength":
        length = max(1, number_option(where, step, "length"))
        return cutting(lambda text: ((i, i + length) for i in range(0, len(text), length)), "Isolated")
    if name == "Metaspace":
        return metaspace(where, step)
    if name == "ByteLevel":
        return byte_level(step)
    known = [
        "WhitespaceSplit",
        "Whitespace",
        "BertPreTokenizer",
        "CharDelimiterSplit",
        "Punctuation",
        "Digits",
        "Split",
    ]
    known += ["FixedLength", "Metaspace", "ByteLevel", "Sequence"]
    raise InputError(f"{where}: pre_tokenizer {name!r} is not supported{did_you_mean(str(name), known)}")


def read_behavior(where: str, step: Component) -> str:
    """The behavior of a step, which says what to do with its matches."""
    behavior = step.get("behavior", "Isolated")
    if behavior not in BEHAVIORS:
        raise InputError(f"{where}: {step['type']} has behavior {behavior!r}{did_you_mean(str(behavior), BEHAVIORS)}")
    return str(behavior)


def of_pattern(pattern: str) -> Find:
    """A function that finds the matches of a pattern for `regex`."""
    compiled = regex.compile(pattern)
    return lambda text: (match.span() for match in compiled.finditer(text))


def punctuation(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each sign of punctuation."""
    return ((i, i + 1) for i, character in enumerate(text) if is_punctuation(character))


def cutting(find: Find, behavior: str, invert: bool = False) -> Step:
    """A step that cuts at the matches of `find`, or with `invert` at the text between them."""

    def step(pieces: list[Piece], lead: int) -> list[Piece]:
        made: list[Piece] = []
        for text, start in pieces:
            spans = cut(cover(text, find(text), invert), behavior)
            made += [Piece(text[begin:end], start + begin) for begin, end in spans if begin < end]
        return made

    return step


def cover(text: str, matches: Iterable[tuple[int, int]], invert: bool) -> list[Span]:
    """Divide all of a text into matches and the text between them."""
    spans: list[Span] = []
    place = 0
    for start, end in matches:
        if place < start:
            spans.append(Span(place, start, invert))
        spans.append(Span(start, end, not invert))
        place = end
    return [*spans, Span(place, len(text), invert)] if place < len(text) else spans


def cut(spans: Sequence[Span], behavior: str) -> Iterable[tuple[int, int]]:
    """Start and end of the parts that are left.

    In a run of neighbouring matches, only the first merges with the text before, and only the last with the text
    after, as in Hugging Face's code, which merges a match only with a part that is not a match.
    """
    if behavior == "Removed":
        return [(start, end) for start, end, is_match in spans if not is_match]
    if behavior == "Isolated":
        return [(start, end) for start, end, _ in spans]
    if behavior == "MergedWithNext":
        turned = cut([Span(-end, -start, is_match) for start, end, is_match in reversed(spans)], "MergedWithPrevious")
        return [(-end, -start) for start, end in reversed(list(turned))]
    parts: list[tuple[int, int]] = []
    before = False
    for start, end, is_match in spans:
        joins = is_match == before if behavior == "Contiguous" else is_match and not before
        if joins and parts:
            parts[-1] = (parts[-1][0], end)
        else:
            parts.append((start, end))
        before = is_match
    return parts


def metaspace(where: str, step: Component) -> Step:
    """A step that writes spaces as "▁", puts one in front, and cuts before each."""
    mark = text_option(where, step, "replacement", SPACE)
    old = "always" if step.get("add_prefix_space", True) else "never"  # of files older than the schemes
    scheme = step.get("prepend_scheme", old)
    split = cutting(of_pattern(regex.escape(mark)), "MergedWithNext") if step.get("split", True) else None

    def run(pieces: list[Piece], lead: int) -> list[Piece]:
        made: list[Piece] = []
        for text, start in pieces:
            text = text.replace(" ", mark)
            if not text.startswith(mark) and (scheme == "always" or (scheme == "first" and start < lead)):
                text = mark + text
            made.append(Piece(text, start))
        return split(made, lead) if split else made

    return run


def byte_level(step: Component) -> Step:
    """A step that puts a space in front, cuts by GPT-2's pattern, and spells bytes as GPT-2 does."""
    prefix = step.get("add_prefix_space", True)
    split = cutting(of_pattern(GPT2), "Isolated") if step.get("use_regex", True) else None

    def run(pieces: list[Piece], lead: int) -> list[Piece]:
        if prefix:
            pieces = [piece if piece.text.startswith(" ") else Piece(f" {piece.text}", piece.start) for piece in pieces]
        pieces = split(pieces, lead) if split else pieces
        return [Piece(spell_bytes(text), start) for text, start in pieces]

    return run
