"""BERT's basic tokenization: text to words, before these are cut into pieces.

Invisible characters are removed, each ideograph is a word, case and accents are dropped if the options say so, and
words end at white space and punctuation:

    "Café, isn't it?"   ->   cafe , isn ' t it ?

Python's Unicode tables say which characters are marks, punctuation or format characters: Unicode 14 in Python 3.11, 16
in 3.14. Hugging Face's `tokenizers` (0.23) uses Unicode 8, of 2015, and leaves later characters alone: for instance
U+2E43, punctuation since 2016, is part of a word there. On Python 3.11 the two treat 815 characters differently: 384
accents, 104 signs of punctuation and 13 format characters that are newer than Unicode 8 or became such since; 55
capitals newer than Python's Unicode, whose small letters Rust knows; U+11938, which NFD takes apart since Unicode 13;
U+166D and U+1734, which are no punctuation and no accent any more; and the 256 ideographs from U+2B820, which Google's
code counts and theirs, beginning at U+2B920, does not. The tests find them one by one.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding" (2019), with
`tokenization.py` of its code.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial

from minillm.errors import DtypeError
from minillm.tokenizers.aligned import Aligned, changed
from minillm.tokenizers.normal_form import normalise
from minillm.tokenizers.special import WHITE

WORD = re.compile("[^ ]+")
BERT_TOKENS = PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"


@dataclass(frozen=True)
class BasicTokenizer:
    """BERT's first step, text to words, with the options of Hugging Face's `BertNormalizer`.

    Two passes over the characters, one before NFD separates accents from their letters and one after, look up the
    replacement of each character, and put a space wherever a word ends.

    Raises: DtypeError for an option that is not True, False or, for `strip_accents`, None.
    """

    clean_text: bool = True  # remove control, format and private characters, and make all white space spaces
    handle_chinese_chars: bool = True  # each CJK ideograph (of Chinese, Japanese, Korean) becomes a word
    strip_accents: bool | None = None  # remove accents (category Mn after NFD); None: as `lowercase` is
    lowercase: bool = True

    def __post_init__(self):
        for option, value in asdict(self).items():
            if not isinstance(value, bool) and not (option == "strip_accents" and value is None):
                raise DtypeError(f"BasicTokenizer: {option} is {value!r}, expected a bool; give True or False")

    def tokenize(self, text: str) -> list[str]:
        """The words of `text`; each sign of punctuation is one."""
        text = text.translate(self._cleaned)
        if self._strips:
            text = normalise("NFD", text)
        return [word for word in text.translate(self._folded).split(" ") if word]

    def aligned(self, text: Aligned) -> Iterator[Aligned]:
        """The words of a whole text, each with its place there."""
        text = changed(text, lambda part: part.translate(self._cleaned))
        if self._strips:
            text = changed(text, partial(normalise, "NFD"))
        text = changed(text, lambda part: part.translate(self._folded))
        yield from (text.part(*match.span()) for match in WORD.finditer(text.text))

    def normalise(self, text: str) -> str:
        """Make all of `tokenize`'s changes to the text, without cutting it."""
        text = text.translate(self._cleaned)
        if self._strips:
            text = normalise("NFD", text)
            text = "".join([c for c in text if unicodedata.category(c) != "Mn"])
        return "".join([c.lower() for c in text]) if self.lowercase else text

    @property
    def _strips(self) -> bool:
        return self.lowercase if self.strip_accents is None else self.strip_accents

    @cached_property
    def _cleaned(self) -> CharacterTable:
        return CharacterTable(self._clean)

    @cached_property
    def _folded(self) -> CharacterTable:
        return CharacterTable(self._fold)

    def _clean(self, character: str) -> str:
        if self.clean_text:
            # Google's code keeps private characters (Co), and transformers' Python code removes unassigned ones too;
            # this keeps the unassigned ones, like Hugging Face's tokenizers, so an older Python loses nothing new.
            seen = unicodedata.category(character) not in ("Cc", "Cf", "Co") or character in "\t\n\r"
            if not seen or character == "\ufffd":
                return ""
            if character in WHITE_SPACE:
                return " "
        return f" {character} " if self.handle_chinese_chars and is_ideograph(character) else character

    def _fold(self, character: str) -> str:
        if self._strips and unicodedata.category(character) == "Mn":
            return ""
        if character in WHITE_SPACE:
            return " "
        if is_punctuation(character):
            return f" {character} "
        # By single characters: `str.lower` of a whole word would write the last Σ as ς.
        return character.lower() if self.lowercase else character


class CharacterTable(dict[int, str]):
    """The replacement of each character, for `str.translate`; computed when a character first occurs."""

    def __init__(self, rule: Callable[[str], str]):
        self.rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = result = self.rule(chr(code))
        return result


IDEOGRAPHS = (  # the blocks that BERT counts: without Hangul, Hiragana and Katakana, and without what came after 2015
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def is_ideograph(character: str) -> bool:
    """True if a character is one of the CJK ideographs that stand alone, by BERT's list."""
    return any(first <= ord(character) <= last for first, last in IDEOGRAPHS)


def is_punctuation(character: str) -> bool:
    """True for Unicode's punctuation, and for all signs of ASCII, such as "$" and "^", which to Unicode are symbols."""
    return character in string.punctuation or unicodedata.category(character).startswith("P")


# Unicode's White_Space. Of these, VT, FF and NEL are control characters too, and `clean_text` removes them: words may
# go on behind them. The others end a word under any option.
BREAKS = "\t\n\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
WHITE_SPACE = frozenset(WHITE)
CHUNK = re.compile(f"[^{BREAKS}]+")
ALSO_SPLIT = re.compile("[\v\f\x1c-\x1f\x85]")  # where `str.split` cuts too
# The text up to the last sign that certainly ends a word: a break or a sign of ASCII, or one of Chinese and Japanese
# text, which has no spaces. Marks that follow such a sign are a word of their own, or removed.
SETTLED = re.compile(rf"(?s:.*)[{BREAKS}!-/:-@\[-`{{-~\u3001\u3002\uff0c]")


def chunks_of(text: str) -> list[str]:
    """Cut `text` at white space, into chunks whose words are the words of `text` under any options."""
    return CHUNK.findall(text) if ALSO_SPLIT.search(text) else text.split()


def settled_end(text: str) -> int:
    """The end of the part of `text` whose words no following text can change."""
    match = SETTLED.match(text)
    return match.end() if match else 0
