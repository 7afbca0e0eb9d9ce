"""The decoder of a tokenizer.json, from tokens back to text: a chain of steps over a list of texts.

The list begins as the tokens, as they are spelled; at the end its texts are joined. Without a decoder the tokens
themselves are joined, with a space between.

    ["▁a", "▁bee", "<0x0A>"]   -- Replace ▁ by a space -->   [" a", " bee", "<0x0A>"]
                               -- ByteFallback -->           [" a", " bee", "\\n"]
                               -- Fuse -->                   [" a bee\\n"]
                               -- Strip a space in front --> ["a bee\\n"]

Source: the code of Hugging Face's `tokenizers`, whose text this is.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, takewhile

from minillm.errors import InputError, did_you_mean
from minillm.tokenizers.components import Component, flatten, number_option, text_option
from minillm.tokenizers.normalizer import SPACE
from minillm.tokenizers.patterns import ForeignPattern
from minillm.tokenizers.vocab_files import BYTE_OF_CHARACTER

BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")
CLEAN_UP = (  # in this order; applied to one token at a time, so an entry of two words never matches
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)

Step = Callable[[list[str]], list[str]]


def clean_up(part: str) -> str:
    """Remove the spaces that joining left before punctuation and in contractions."""
    for spaced, joined in CLEAN_UP:
        part = part.replace(spaced, joined)
    return part


class Decoder:
    """Joins tokens to text; `component` is the decoder of a tokenizer.json, or None.

    Raises: InputError for a step that is not known.
    """

    def __init__(self, where: str, component: Component | None):
        self.where, self.component = where, component
        self.names = [str(step["type"]) for step in flatten(component, "decoders")]
        self.steps = [read_step(where, step) for step in flatten(component, "decoders")]
        self.whole = self._may_change_what_was_whole()

    def __reduce__(self) -> tuple[type[Decoder], tuple[str, Component | None]]:
        """Pickle the component, as the functions of its steps have no name that a process could find them by."""
        return Decoder, (self.where, self.component)

    def __call__(self, tokens: Iterable[str]) -> str:
        parts = list(tokens)
        if self.component is None:
            return " ".join(parts)
        for step in self.steps:
            parts = step(parts)
        return "".join(parts)

    def settled(self, tokens: Sequence[str]) -> str:
        """The text of `tokens` that no following token can change."""
        if self.component is None:
            return self(tokens)
        if self.whole:
            return ""
        end = len(tokens)
        if "ByteFallback" in self.names:  # one invalid byte changes its whole run
            while end and BYTE_PIECE.fullmatch(tokens[end - 1]):
                end -= 1
        if self.names == ["BPEDecoder"]:  # the last token is decoded differently when more follow
            return "".join(self.steps[0](list(tokens))[:-1])
        if "BPEDecoder" in self.names and end:  # a suffix is a space, except in the last token
            pairs = zip(self(tokens[: end - 1]), self(tokens[:end]), strict=False)
            return "".join([before for before, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)])
        if self.names == ["ByteLevel"]:
            return codecs.getincrementaldecoder("utf-8")("replace").decode(bytes_of(tokens))
        return self(tokens[:end])

    def _may_change_what_was_whole(self) -> bool:
        """True if a step looks across tokens in a way that `settled` does not handle.

        It handles a single step; and steps on each token, then perhaps ByteFallback, Fuse, and steps that drop
        something from the start or replace one character by another.
        """
        if len(self.names) < 2:
            return False
        place = 0  # in that order
        for name, step in zip(self.names, flatten(self.component, "decoders"), strict=True):
            one = name == "Replace" and len(step["pattern"].get("String", "")) == 1
            alone = name in ("Replace", "Strip") and "ByteFallback" not in self.names  # works on each token by itself
            if name == "ByteFallback" and place == 0:
                place = 1
            elif name == "Fuse":
                place = 2
            elif place == 0 and (one or alone):
                continue
            elif not (place == 2 and (one or (name == "Strip" and step["stop"] == 0))):
                return True
        return False


def read_step(where: str, step: Component) -> Step:
    """The function of one step."""
    name = step["type"]
    makers: dict[str, Callable[[str, Component], Step]] = {
        "ByteLevel": lambda *_: lambda parts: [bytes_of(parts).decode("utf-8", "replace")],
        "ByteFallback": lambda *_: join_bytes,
        "Fuse": lambda *_: lambda parts: ["".join(parts)],
        "Strip": strip,
        "WordPiece": wordpiece,
        "Metaspace": metaspace,
        "BPEDecoder": end_of_words,
        "CTC": collapse,
    }
    if name == "Replace":
        found, content = ForeignPattern(where, step["pattern"]), text_option(where, step, "content")
        return lambda parts: [found.replace(part, content) for part in parts]
    if name not in makers:
        raise InputError(
            f"{where}: decoder {name!r} is not supported{did_you_mean(str(name), [*makers, 'Replace', 'Sequence'])}"
        )
    return makers[name](where, step)


def bytes_of(parts: Iterable[str]) -> bytes:
    """The bytes that parts spell as GPT-2 does; a part with a character that spells none stands for its own bytes."""
    byte_of = BYTE_OF_CHARACTER
    return b"".join(
        [bytes([byte_of[c] for c in part]) if byte_of.keys() >= {*part} else part.encode() for part in parts]
    )


def join_bytes(parts: list[str]) -> list[str]:
    """Turn runs of byte tokens such as `<0x41>` into text; each byte of an invalid run becomes U+FFFD."""
    joined: list[str] = []
    for are_bytes, run in groupby(parts, lambda part: len(part) == 6 and BYTE_PIECE.fullmatch(part) is not None):
        if not are_bytes:
            joined += run
            continue
        content = bytes([int(part[3:5], 16) for part in run])
        try:
            joined.append(content.decode())
        except UnicodeDecodeError:
            joined += ["\ufffd"] * len(content)
    return joined


def strip(where: str, step: Component) -> Step:
    """Drop up to `start` of one character from the start of each part, and up to `stop` from its end."""
    content = f"(?:{re.escape(text_option(where, step, 'content'))})"
    start, stop = (min(number_option(where, step, side), 1 << 16) for side in ("start", "stop"))
    ends = f"(.*?){content}{{0,{stop}}}" if stop else "(.*)"
    pattern = re.compile(rf"(?s)\A{content}{{0,{start}}}{ends}\Z")

    def strip_one(part: str) -> str:
        match = pattern.match(part)
        return match.group(1) if match else part

    return lambda parts: list(map(strip_one, parts))


def wordpiece(where: str, step: Component) -> Step:
    """Put a space before each part but the first; a part with the prefix loses it instead."""
    prefix, cleanup = text_option(where, step, "prefix"), step["cleanup"]

    def join(parts: list[str]) -> list[str]:
        spaced = [part[len(prefix) :] if part.startswith(prefix) else f" {part}" for part in parts[1:]]
        return [clean_up(part) if cleanup else part for part in (*parts[:1], *spaced)]

    return join


def metaspace(where: str, step: Component) -> Step:
    """Replace "▁" by a space; the first part loses the one that was put in front."""
    mark = text_option(where, step, "replacement", SPACE)
    old = "always" if step.get("add_prefix_space", True) else "never"
    first = " " if step.get("prepend_scheme", old) == "never" else ""
    return lambda parts: [part.replace(mark, " " if number else first) for number, part in enumerate(parts)]


def end_of_words(where: str, step: Component) -> Step:
    """Replace the suffix that ends words by a space; the last part just loses it."""
    suffix = text_option(where, step, "suffix")
    return lambda parts: [
        part.replace(suffix, " " if number < len(parts) - 1 else "") for number, part in enumerate(parts)
    ]


def collapse(where: str, step: Component) -> Step:
    """Merge equal neighbours (CTC), drop padding, and replace the mark between words by a space."""
    padding, mark = (text_option(where, step, name) for name in ("pad_token", "word_delimiter_token"))
    cleanup = step["cleanup"]

    def join(parts: list[str]) -> list[str]:
        once = [part.replace(padding, "") for part, _ in groupby(parts)]
        cleaned = [clean_up(part).replace(mark, " ") if cleanup else part for part in once]
        return [part for part in cleaned if part]  # the next step sees only the parts that are left

    return join
