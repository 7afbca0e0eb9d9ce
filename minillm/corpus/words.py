"""Words as numbers: texts are normalised and cut into words, and each word and each n-gram of words becomes 64 bits.

Texts have the same words if they differ only in case, accents, punctuation, white space or numbers:

1. Every character is case-folded ("ß" and "SS" are "ss") and taken apart into letters and marks (Unicode's NFD, except
   for Hangul), and marks and invisible characters are dropped: "É" is "e".
2. A run of digits is one 0, unless `numbers` is "kept".
3. Everything that is neither a letter nor a digit stands between words: "don't" is "don t", "3.14" is "0 0".
4. In scripts that write no spaces between words (Chinese, Japanese, Thai ...), each letter is a word.

`words_with_places` is this definition, character by character. `word_hashes` does the same for many texts with NumPy.
With all numbers mod 2^64 and fixed odd B and C,

    word    c_0 c_1 ...          ->  w = mix(c_0 + c_1 B + c_2 B^2 + ...)
    n-gram  w_0 w_1 ... w_(n-1)  ->  g = mix(w_0 + w_1 C + ... + w_(n-1) C^(n-1))

where `mix` is a bijection after which every bit depends on every bit of its input. A sum over the letters of each word
needs no loop over words: letter number i of the whole text is multiplied by B^i, `np.add.reduceat` adds those of each
word, and B^(-start) moves its sum to where the word begins (an odd B has an inverse mod 2^64). The letters between
words count as 0.

Collisions: where the numbers of words are random, two different n-grams are the same number with the probability 2^-64.
A million n-grams of one text and a million of another have 10^12 pairs, so about 5e-8 of them are expected to be wrong.

Source: the steps 1 to 3 follow `simplify_text` of datatrove, which has lower case in place of case folding, and makes
one 0 of "3.14"; `mix` is the end of SplitMix64 (Steele, Lea, Flood 2014, with Stafford's constants).
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

Numbers = Literal["zero", "kept"]  # a run of digits becomes one 0, or stays as it is
BASE_OF_LETTERS, BASE_OF_WORDS = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95
BLOCK = 1 << 16  # characters that are hashed together: their arrays stay in the cache
GROWTH = 4  # a character becomes at most so many letters

SEPARATOR, LETTER, DIGIT, DROPPED, ALONE, SEVERAL = range(6)  # the kinds of characters
# Scripts without spaces: Thai and Lao, Burmese, Khmer, the Japanese kana, and Chinese characters.
WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3041, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x323AF),
)


# --- the definition ------------------------------------------------------------------------------------------------


class Word(NamedTuple):
    """A word after normalisation, and the characters text[start:end] that it was made of."""

    word: str
    start: int
    end: int


def words_with_places(text: str, numbers: Numbers = "zero") -> Iterator[Word]:
    """The words of a text, one after the other, each with its place in it."""
    word, start, end, before = "", 0, 0, SEPARATOR
    for place, character in enumerate(text):
        for letter in folded(character):
            kind = kind_of(letter)
            if word and not (kind in (LETTER, DIGIT) and before in (LETTER, DIGIT)):
                yield Word(word, start, end)
                word = ""
            if kind != SEPARATOR:
                start, end = (start if word else place), place + 1
                if kind == DIGIT and numbers == "zero":
                    letter = "" if before == DIGIT else "0"
                word += letter
            before = kind
    if word:
        yield Word(word, start, end)


@functools.lru_cache(1 << 16)
def folded(character: str) -> str:
    """The letters of a character, in lower case and without marks; none where it is a mark alone."""
    if "\uac00" <= character <= "\ud7a3":  # a Hangul syllable stays whole
        return character
    apart = unicodedata.normalize("NFD", character.casefold())
    return "".join(letter for letter in apart if kind_of(letter) != DROPPED)


@functools.lru_cache(1 << 16)
def kind_of(letter: str) -> int:
    """The kind of a character that `folded` gave."""
    category = unicodedata.category(letter)
    if category[0] == "L" or category == "Mc":
        return ALONE if any(first <= ord(letter) <= last for first, last in WITHOUT_SPACES) else LETTER
    if category[0] == "N":
        return DIGIT
    return DROPPED if category in ("Mn", "Me", "Cf") else SEPARATOR


# --- the same with NumPy -------------------------------------------------------------------------------------------


class Words(NamedTuple):
    """The words of several texts, one after the other."""

    hashes: np.ndarray  # (W,), uint64
    ends: np.ndarray  # (texts + 1,), int64: text t has the words ends[t] : ends[t + 1]


def word_hashes(texts: Sequence[str], numbers: Numbers = "zero") -> Words:
    """The number of each word of each text. A word of more than 65,536 characters counts as several."""
    hashes = [np.zeros(0, np.uint64)]
    counts = np.zeros(len(texts) + 1, np.int64)
    for owners, pieces in _batches(texts):
        of_batch, of_pieces = _hash_batch(pieces, numbers)
        hashes.append(of_batch)
        np.add.at(counts, np.array(owners) + 1, of_pieces)
    return Words(np.concatenate(hashes), np.cumsum(counts))


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """The number of each n-gram of words (W,): (W - n + 1,), or none; that at place i begins with word i."""
    count = len(words) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    sums = words[n - 1 :].copy()
    for place in reversed(range(n - 1)):  # Horner's rule, from the last word to the first
        sums *= np.uint64(BASE_OF_WORDS)
        sums += words[place : place + count]
    return mix(sums)


def text_hashes(words: Words) -> np.ndarray:
    """A number for the whole of each text (texts,), made of its words; 0 where it has none."""
    lengths = np.diff(words.ends)
    sums = np.zeros(len(lengths), np.uint64)
    there = lengths > 0
    if there.any():
        places = np.arange(len(words.hashes)) - np.repeat(words.ends[:-1], lengths)
        products = words.hashes * _powers(BASE_OF_WORDS, 1 << int(lengths.max()).bit_length())[places]
        sums[there] = mix(np.add.reduceat(products, words.ends[:-1][there]))
    return sums


def mix(numbers: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers after which each bit depends on all others; changes `numbers` in place."""
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return numbers


def _batches(texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
    """The texts in batches of at most BLOCK characters, each with its number; a longer one is cut between words."""
    owners: list[int] = []
    pieces: list[str] = []
    size = 0
    for number, text in enumerate(texts):
        for piece in _pieces(text):
            if size + len(piece) >= BLOCK and pieces:
                yield owners, pieces
                owners, pieces, size = [], [], 0
            owners.append(number)
            pieces.append(piece)
            size += len(piece) + 1
    if pieces:
        yield owners, pieces


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > BLOCK:
        space = max(text.rfind(" ", start + 1, start + BLOCK), text.rfind("\n", start + 1, start + BLOCK))
        end = start + BLOCK if space < 0 else space
        yield text[start:end]
        start = end
    yield text[start:]


def _hash_batch(pieces: list[str], numbers: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the words of some texts, at most GROWTH * BLOCK letters, and how many words each text has."""
    joined = "\n".join(pieces)
    letters, kinds = _letters(joined)
    if len(several := np.flatnonzero(kinds == SEVERAL)):
        for character in sorted({joined[place] for place in several.tolist()}):
            pieces = [piece.replace(character, folded(character)) for piece in pieces]
        joined = "\n".join(pieces)
        letters, kinds = _letters(joined)
    places = np.arange(len(kinds))
    if (kinds == DROPPED).any():
        places = np.flatnonzero(kinds != DROPPED)
        letters, kinds = letters[places], kinds[places]
    if numbers == "zero":
        digit = kinds == DIGIT
        repeated = digit[1:] & digit[:-1]
        letters = np.where(digit, np.uint32(ord("0")), letters)
        if repeated.any():
            kept = np.flatnonzero(np.concatenate([[True], ~repeated]))
            letters, kinds, places = letters[kept], kinds[kept], places[kept]
    if not len(kinds):
        return np.zeros(0, np.uint64), np.zeros(len(pieces), np.int64)
    in_word, alone = kinds != SEPARATOR, kinds == ALONE
    starts = in_word.copy()
    starts[1:] &= ~in_word[:-1] | alone[1:] | alone[:-1]
    first = np.flatnonzero(starts)
    products = letters * _powers(BASE_OF_LETTERS)[: len(letters)]
    sums = np.add.reduceat(products, first) if len(first) else np.zeros(0, np.uint64)
    sums *= _powers(pow(BASE_OF_LETTERS, -1, 1 << 64))[first]
    ends = np.cumsum([len(piece) + 1 for piece in pieces])
    return mix(sums), np.diff(np.searchsorted(places[first], ends), prepend=0)


@functools.cache
def _powers(base: int, count: int = GROWTH * BLOCK) -> np.ndarray:
    """1, base, base^2 ... mod 2^64, (count,)."""
    return np.concatenate([np.ones(1, np.uint64), np.cumprod(np.full(count - 1, base, np.uint64))])


def _letters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The letter of each character (n,), 0 for one between words, and its kind (n,)."""
    try:
        coded = text.encode("latin-1")
    except UnicodeEncodeError:
        letters, kinds = _tables()
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        return letters[points], kinds[points]
    low_letters, low_kinds = _low_tables()
    letters, kinds = (np.frombuffer(coded.translate(table), np.uint8) for table in (low_letters, low_kinds))
    return letters, kinds


@functools.cache
def _low_tables() -> tuple[bytes, bytes]:
    """The tables of the first 256 characters, all of whose letters are among them."""
    found = [_entry(point) for point in range(256)]
    return bytes(letter if letter < 256 else 0 for letter, _ in found), bytes(
        kind if letter < 256 else SEVERAL for letter, kind in found
    )


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """The letter and the kind of every character. Large blocks, whose characters are all alike, are filled at once."""
    points = np.arange(0x110000, dtype=np.uint32)
    letters, kinds = np.zeros_like(points), np.zeros(len(points), np.uint8)
    for first, last, kind in (
        (0x3400, 0x4DBF, ALONE),
        (0x4E00, 0x9FFF, ALONE),
        (0xAC00, 0xD7A3, LETTER),
        (0x20000, 0x2A6D6, ALONE),
    ):
        letters[first : last + 1], kinds[first : last + 1] = points[first : last + 1], kind
    looked_at = ((0, 0x3400), (0x4DC0, 0x4E00), (0xA000, 0xAC00), (0xD7A4, 0xD800), (0xF900, 0x20000))
    above = ((0x2A6D7, 0x32400), (0xE0000, 0xE0200))
    for point in itertools.chain.from_iterable(range(*block) for block in looked_at + above):
        letters[point], kinds[point] = _entry(point)
    return letters, kinds


def _entry(point: int) -> tuple[int, int]:
    """The letter of a character and its kind."""
    letters = folded(chr(point))
    if len(letters) > 1:
        return 0, SEVERAL
    if not letters:
        return 0, DROPPED
    kind = kind_of(letters)
    return (0 if kind == SEPARATOR else ord(letters)), kind
