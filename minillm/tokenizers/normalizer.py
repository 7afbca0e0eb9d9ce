"""The steps before any model: normalising text, and cutting it into words that begin with "▁", as in SentencePiece.

A normalizer is a chain of steps, spelled as in Hugging Face's tokenizer.json: forms of Unicode, lower case, no accents,
replacements, or SentencePiece's own compiled table (`CharacterTable`). `Metaspace` runs them, writes each space as "▁"
(U+2581), puts one in front, and cuts text before each, so that no piece reaches over the end of a word.

Sources: Unicode Standard Annex 15 for the normal forms; Kudo and Richardson, "SentencePiece" (2018, arXiv:1808.06226);
Aoe, "An Efficient Digital Search Algorithm by Using a Double-Array Structure" (1989).
"""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import regex

from minillm.errors import InputError, did_you_mean
from minillm.tokenizers.aligned import Aligned, changed, replaced
from minillm.tokenizers.basic import BasicTokenizer
from minillm.tokenizers.components import text_option
from minillm.tokenizers.normal_form import normalise
from minillm.tokenizers.patterns import ForeignPattern
from minillm.tokenizers.special import WHITE
from minillm.tokenizers.vocab_files import CHARACTER_OF_BYTE

SPACE = "\u2581"  # "▁": how a piece writes a space
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]  # how pieces write single bytes
PrependScheme = Literal["always", "first", "never"]

CACHED_GRAPHEMES = 1 << 17  # a table that remembers more graphemes begins again

PRETOKEN = regex.compile(f"{SPACE}[^{SPACE}]*|[^{SPACE}]+")
GRAPHEME, NOT_WHITE, ANY = regex.compile(r"\X"), regex.compile(f"[^{WHITE}]+"), regex.compile("(?s:.)+")

Step = Mapping[str, Any]


def strip_accents(text: str) -> str:
    """Drop marks (categories M*) from a text that NFD or NFKD has decomposed."""
    return "".join([c for c in text if not unicodedata.category(c).startswith("M")])


def strip_ends(text: str, left: bool, right: bool) -> str:
    """Drop white space from the start of the text, its end, or both."""
    text = text.lstrip(WHITE) if left else text
    return text.rstrip(WHITE) if right else text


def spell_bytes(text: str) -> str:
    """Write the bytes of the text as GPT-2 spells them."""
    return "".join([CHARACTER_OF_BYTE[byte] for byte in text.encode()])


# The characters that SentencePiece's "nmt" drops, and those that it replaces by a space.
NMT: dict[int, str | None] = {
    **dict.fromkeys([*range(1, 9), 0xB, *range(0xE, 0x20), 0x7F, 0x8F, 0x9F]),
    **dict.fromkeys([9, 10, 12, 13, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD], " "),
}

NORMALISERS: dict[str, Callable[[str], str]] = {
    "NFC": partial(normalise, "NFC"),
    "NFD": partial(normalise, "NFD"),
    "NFKC": partial(normalise, "NFKC"),
    "NFKD": partial(normalise, "NFKD"),
    "Lowercase": lambda text: "".join([c.lower() for c in text]),  # by character: a final sigma is not special
    "StripAccents": strip_accents,
    "Nmt": lambda text: text.translate(NMT),
    "ByteLevel": spell_bytes,
}
LOCAL = NORMALISERS.keys() - {"Nmt", "ByteLevel"}  # steps that never turn another character into a space


def normalise_with(step: Step) -> Callable[[str], str]:
    """The function of a normalisation step, which is written as in Hugging Face's tokenizer.json.

    A step is `{"type": name}` with NFC, NFD, NFKC, NFKD, Lowercase, StripAccents (which drops combining marks), Nmt
    (which drops control characters) or ByteLevel (which spells bytes as GPT-2 does);
    `{"type": "Strip", "strip_left": True, "strip_right": True}`, of white space; or
    `{"type": "Replace", "pattern": {"String": "``"}, "content": '"'}`, where "Regex", of Oniguruma, may stand for
    "String"; `{"type": "Prepend", "prepend": text}`; or `{"type": "BertNormalizer"}` with the options of
    `BasicTokenizer`; or `{"type": "Precompiled", "precompiled_charsmap": text}`, see `CharacterTable`.

    Raises: InputError for a step that is not supported, or cannot be read.
    """
    name = step.get("type")
    if name in NORMALISERS:
        return NORMALISERS[name]
    if name == "Strip":
        return partial(strip_ends, left=step.get("strip_left", True), right=step.get("strip_right", True))
    if name == "Replace":
        content, found = (
            text_option("normalizer", step, "content"),
            ForeignPattern("normalizer Replace", step["pattern"]),
        )
        if found.may_be_empty:
            raise InputError(f"normalizer Replace: {step['pattern']} may match nothing; give a pattern that does not")
        return partial(found.replace, content=content)
    if name == "Prepend":
        prepend = text_option("normalizer", step, "prepend")
        return lambda text: prepend + text if text else text
    if name == "BertNormalizer":
        return BasicTokenizer(**{option: step[option] for option in asdict(BasicTokenizer())}).normalise
    if name == "Precompiled":
        return CharacterTable(step["precompiled_charsmap"])
    known = [*NORMALISERS, "Strip", "Replace", "Prepend", "BertNormalizer", "Precompiled"]
    raise InputError(f"UnigramTokenizer: normalizer {name!r} is not supported{did_you_mean(str(name), known)}")


class Normaliser:
    """A chain of steps over a text; the arguments are those of `UnigramTokenizer`."""

    def __init__(self, normalizer: str | Sequence[Step]):
        self.steps = ({"type": normalizer},) if isinstance(normalizer, str) else tuple(normalizer)
        self.functions = [normalise_with(step) for step in self.steps]

    def __reduce__(self) -> tuple[type[Normaliser], tuple[tuple[Step, ...]]]:
        """Pickle the steps, as some of their functions have no name that a process could find them by."""
        return Normaliser, (self.steps,)

    def __call__(self, text: str) -> str:
        for function in self.functions:
            text = function(text)
        return text

    def aligned(self, text: Aligned) -> Aligned:
        """The text after all steps, each character with its place in the original."""
        for step, function in zip(self.steps, self.functions, strict=True):
            name = step["type"]
            if name == "Strip":
                start = len(text.text) - len(strip_ends(text.text, step.get("strip_left", True), False))
                text = text.part(start, start + len(function(text.text)))
            elif name == "Prepend":
                for character in reversed(step["prepend"] if text.text else ""):
                    text = text.after(character)
            elif name == "Replace":
                found = ForeignPattern("normalizer Replace", step["pattern"])
                text = replaced(text, found.spans(text.text), step["content"])
            else:
                text = changed(text, function)
        return text

    def lead(self, text: str) -> int:
        """Number of characters at the start of the normalised text that come from the first character of `text`."""
        first = text[:1]
        for step, function in zip(self.steps, self.functions, strict=True):
            name, begins = step["type"], text[:1]
            if name == "Strip":
                dropped = step.get("strip_left", True) and begins in WHITE
            elif name == "Precompiled":
                dropped = False  # in Hugging Face's code, text dropped at the start gives its place to what follows
            elif name == "Replace":
                start, end = next(ForeignPattern("normalizer Replace", step["pattern"]).spans(text), (1, 1))
                dropped = start == 0 and (end > 1 or not step["content"])  # a match of several is not first there
            else:
                dropped = not function(begins)
            if dropped:
                return 0
            text = function(text)
        return max(1, len(self(first)))


class CharacterTable:
    """SentencePiece's compiled table of normalisation: its "nmt_nfkc", or whatever a model was trained with.

    After base64 there are the size of a trie (4 bytes), the trie, and replacements that each end in a zero byte. The
    trie is a "double array" (Aoe 1989, in the layout of the library darts-clone) of 32-bit units: a child by byte b is
    at the place of its parent's children xor b, and carries b as its label. Where a key ends, the unit at xor 0 has the
    place of its replacement.

    A grapheme of at most 5 bytes is looked up as a whole, then every character by itself; the *shortest* key that the
    text begins with counts. All this is as in Hugging Face's `tokenizers`.

    Raises: InputError for a table that is damaged.
    """

    LABEL, VALUE = 1 << 31 | 0xFF, (1 << 31) - 1

    def __init__(self, table: str):
        try:
            content = base64.b64decode(table, validate=True)
            size = int.from_bytes(content[:4], "little")
            self.units = np.frombuffer(content[4 : 4 + size], "<u4").tolist()
            if not self.units or len(self.units) * 4 != size:
                raise ValueError("it is too short")
        except ValueError as error:
            raise InputError(
                f"UnigramTokenizer: normalizer Precompiled cannot be read ({error}); take the tokenizer.json again"
            ) from error
        self.replacements = content[4 + size :]
        self.known: dict[str, str] = {}  # graphemes that were looked up

    def __call__(self, text: str) -> str:
        if len(self.known) >= CACHED_GRAPHEMES:
            self.known.clear()
        graphemes = GRAPHEME.findall(text)
        for grapheme in {*graphemes} - self.known.keys():
            whole = self.find(grapheme) if len(grapheme.encode()) < 6 else None
            parts = (self.find(character) for character in grapheme)
            self.known[grapheme] = (
                whole
                if whole is not None
                else "".join(
                    [character if part is None else part for character, part in zip(grapheme, parts, strict=True)]
                )
            )
        return "".join(map(self.known.__getitem__, graphemes))

    def find(self, text: str) -> str | None:
        """The replacement of the shortest key that `text` begins with."""
        place = self.children(self.units[0])
        for byte in text.encode():
            place ^= byte
            if byte == 0 or place >= len(self.units) or self.units[place] & self.LABEL != byte:
                return None
            unit = self.units[place]
            place ^= self.children(unit)
            if unit >> 8 & 1:  # a key ends here
                start = self.units[place] & self.VALUE
                return self.replacements[start : self.replacements.index(b"\0", start)].decode()
        return None

    @staticmethod
    def children(unit: int) -> int:
        """The offset, by xor, from a unit to its children: 21 bits, in units of 256 where bit 9 is set."""
        return unit >> 10 << ((unit & 1 << 9) >> 6)


class Metaspace:
    """Normalises text and cuts it into pretokens; the arguments are those of `UnigramTokenizer`."""

    def __init__(self, normalizer: str | Sequence[Step], prepend_scheme: PrependScheme, split: bool, by_white: bool):
        if prepend_scheme not in (schemes := get_args(PrependScheme)):
            hint = did_you_mean(str(prepend_scheme), schemes)
            raise InputError(f"UnigramTokenizer: prepend_scheme is {prepend_scheme!r}{hint}")
        self.normalise = Normaliser(normalizer)
        self.prepend_scheme, self.split, self.whitespace_split = prepend_scheme, split, by_white
        # A normal form joins and reorders nothing across a space; Strip, Replace and a table may look beyond it.
        self.local = (split or by_white) and all(step["type"] in LOCAL for step in self.normalise.steps)

    def settled(self, text: str) -> int:
        """The position of the last cut, before a space, that no following text can change; 0 without such a cut.

        If the normaliser may look across spaces, or without a split, a stretch is held until its end is known.
        """
        return max(0, text.rfind(" ")) if self.local else 0

    def aligned(self, text: Aligned) -> Iterator[Aligned]:
        """The pretokens of a whole text, each with its place there."""
        lead = self.normalise.lead(text.text) if self.prepend_scheme == "first" else 0
        text = self.normalise.aligned(text)
        for match in self._stretches(text.text):
            spaced, spans = text.part(*match.span())
            stretch = Aligned(spaced.replace(" ", SPACE), spans)
            prepend = self.prepend_scheme == "always" or match.start() < lead
            if prepend and not stretch.text.startswith(SPACE):
                stretch = stretch.after(SPACE)
            yield from stretch.parts(PRETOKEN.findall(stretch.text) if self.split else [stretch.text])

    def _stretches(self, text: str) -> Iterator[regex.Match[str]]:
        return NOT_WHITE.finditer(text) if self.whitespace_split else ANY.finditer(text)

    def pretokens(self, text: str, first: bool) -> list[str]:
        """The pretokens of `text`, a stretch without special tokens; `first`: it is the start of all text."""
        lead = self.normalise.lead(text) if first and self.prepend_scheme == "first" else 0
        text = self.normalise(text)
        pretokens: list[str] = []
        for match in self._stretches(text):
            stretch = match.group().replace(" ", SPACE)
            prepend = self.prepend_scheme == "always" or match.start() < lead
            if prepend and not stretch.startswith(SPACE):
                stretch = SPACE + stretch
            pretokens += PRETOKEN.findall(stretch) if self.split else [stretch]
        return pretokens
