"""Cut the text of a byte-level BPE into pretokens, that is words, numbers and signs, before any merge.

A pattern is a regular expression. Its matches, from left to right, are pretokens, and so is the text between two
matches. Several patterns cut one after the other: each cuts the pieces that the previous one has left.

    "gpt2"     an English contraction; letters, digits or other signs, with one space before them; white space
    "smollm"   every digit alone, and the text between by GPT-2's pattern: SmolLM, StarCoder
    "llama3"   any one sign before letters; digits in threes; a line end stays with the signs before it: GPT-4 (cl100k)
    "qwen2"    as llama3, every digit alone
    "gpt4o"    as llama3, and a capital after a small letter begins anew; contractions stay with their word

Before that, options may bring text into a normal form of Unicode (Qwen2's NFC) and put a space in front (RoBERTa's).

**Settled text** (see base.py): when text is cut at an arbitrary place, a match may continue over the cut, and how far a
pattern looks ahead is hard to say: `\\s*[\\r\\n]+` looks for the last line end of the white space, however long. But
none of the patterns above joins a letter or digit to a following sign that is not a letter, mark, digit or apostrophe,
or looks beyond that sign. So text is encoded up to the last such place, "word|," or "word| ", and the rest waits. NFC
may be cut there too: only marks (and Hangul, letters) join with the character before. With another pattern, which may
do anything, the whole text waits for its end.

Sources: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019); the code of `tiktoken` (OpenAI)
for cl100k and o200k; the tokenizer.json of SmolLM2, Llama 3 and Qwen2.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import regex

from minillm.errors import InputError, did_you_mean
from minillm.tokenizers.aligned import Aligned, changed
from minillm.tokenizers.normal_form import normalise
from minillm.tokenizers.oniguruma import translate

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
BREAKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{BREAKS}"
QWEN2 = rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{BREAKS}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BREAKS}"
)
PATTERNS = {"gpt2": (GPT2,), "smollm": (DIGIT, GPT2), "llama3": (LLAMA3,), "qwen2": (QWEN2,), "gpt4o": (GPT4O,)}

# The places, from the last on, where a pretoken certainly ends: before a sign, after a letter or digit.
CUT = regex.compile(r"(?r)(?<=[\p{L}\p{N}])[^\p{L}\p{M}\p{N}']")

# The patterns above, by their spellings in files.
SPELLINGS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": GPT2,
    **{one: one for several in PATTERNS.values() for one in several},
}


class Splitter:
    """Cuts text into pretokens; the arguments are those of `BPETokenizer`.

    Raises: InputError for a pattern that is not a regular expression or has groups that capture, or a normal form that
    is not supported.
    """

    def __init__(
        self, pattern: str | Sequence[str] = "gpt2", normalizer: str | None = None, prefix_space: bool = False
    ):
        if isinstance(pattern, str):
            pattern = PATTERNS.get(pattern, (pattern,))
        if normalizer not in (None, "NFC"):
            raise InputError(f"BPETokenizer: normalizer is {normalizer!r}; give 'NFC' or None")
        self.patterns = tuple(pattern)
        self.normalizer, self.prefix_space = normalizer, prefix_space
        self.cuts = [compiled(one) for one in self.patterns]
        self.known = self.patterns in PATTERNS.values()
        self.plain_gpt2 = self.patterns == (GPT2,) and normalizer is None and not prefix_space

    def settled(self, text: str, more: bool) -> tuple[list[str], int]:
        """The settled pretokens of `text`, which no following text can change, and where they end.

        `text` is a stretch without special tokens, or the rest of one after an earlier call.
        """
        end = self.last_cut(text) if more else len(text)
        return self.pretokens(text[:end]), end

    def last_cut(self, text: str) -> int:
        """The end of the settled part of `text`."""
        for match in CUT.finditer(text) if self.known else ():
            cut = match.start()
            # A letter that NFC decomposes ends in a mark. And only text that begins with a space gets none in front.
            whole = self.normalizer is None or unicodedata.is_normalized("NFC", text[cut - 1])
            if whole and (not self.prefix_space or text[cut] == " "):
                return cut
        return 0

    def pretokens(self, text: str) -> list[str]:
        if self.normalizer is not None:
            text = normalise("NFC", text)
        if self.prefix_space and text and not text.startswith(" "):
            text = f" {text}"
        return self._pieces(text)

    def _pieces(self, text: str) -> list[str]:
        pieces = [text] if text else []
        for cut in self.cuts:
            pieces = [part for piece in pieces for part in cut.split(piece) if part]
        return pieces

    def aligned(self, text: Aligned) -> Iterator[Aligned]:
        """The pretokens of a whole text, each with its place there."""
        if self.normalizer is not None:
            text = changed(text, partial(normalise, "NFC"))
        if self.prefix_space and text.text and not text.text.startswith(" "):
            text = text.after(" ")
        return text.parts(self._pieces(text.text))


def check_foreign(where: str, pattern: str) -> str:
    """Translate a regular expression of a tokenizer.json.

    Raises: InputError for a feature without an equivalent here.
    """
    return SPELLINGS[pattern] if pattern in SPELLINGS else translate(where, pattern)[0]


class ForeignPattern:
    """A pattern of a tokenizer.json, `{"String": text}` or `{"Regex": pattern of Oniguruma}`, ready for use.

    Raises: InputError for another object, or a feature without an equivalent here.
    """

    def __init__(self, where: str, component: Mapping[str, str]):
        if len(component) != 1 or not component.keys() <= {"String", "Regex"}:
            raise InputError(f"{where}: {dict(component)} is not a pattern; give a String or a Regex")
        if "String" in component:
            self.pattern, self.may_be_empty = f"(?:{regex.escape(component['String'])})", not component["String"]
        elif component["Regex"] in SPELLINGS:
            self.pattern, self.may_be_empty = SPELLINGS[component["Regex"]], False
        else:
            self.pattern, self.may_be_empty = translate(where, component["Regex"])
        self.found = regex.compile(self.pattern)

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of each match, from left to right.

        An empty match directly after the previous match is skipped, with any other match that begins there, as in
        Oniguruma's binding for Rust.
        """
        if not self.may_be_empty:
            yield from (match.span() for match in self.found.finditer(text))
            return
        place, last = 0, -1
        while text and place <= len(text) and (match := self.found.search(text, place)):
            start, end = match.span()
            if start == end == last:
                place += 1
                continue
            yield start, end
            place = last = end

    def replace(self, text: str, content: str) -> str:
        """Replace each match in the text by `content`."""
        parts, place = [], 0
        for start, end in self.spans(text):
            parts += [text[place:start], content]
            place = end
        return "".join([*parts, text[place:]])


def compiled(pattern: str) -> regex.Pattern[str]:
    """Compile a pattern so that `split` returns its matches and the text between them."""
    if isinstance(pattern, str) and pattern.isalnum():
        hint = did_you_mean(pattern, PATTERNS)
        raise InputError(f"BPETokenizer: pattern {pattern!r} is not the name of a pattern{hint}")
    try:
        found = regex.compile(f"({pattern})")
    except regex.error as error:
        raise InputError(
            f"BPETokenizer: pattern {pattern!r} is not a regular expression ({error}); correct it"
        ) from error
    if found.groups != 1:
        raise InputError(f"BPETokenizer: pattern {pattern!r} has groups that capture; write (?:...) for (...)")
    return found
