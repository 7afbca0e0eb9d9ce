"""Byte-pair encoding on bytes, as GPT-2 does it.

Training starts with 256 tokens, one a byte, so that any text can be written. Then, again and again, the pair of
neighbouring tokens that occurs most often in the training text becomes one new token:

    l o w   l o w e r   l o w e s t       (l, o) occurs three times, as often as (o, w): the tie rule decides
    l ow    l ow e r    l ow e s t        merge 1: o + w
    low     low e r     low e s t         merge 2: l + ow

The list of merges, in order, is the tokenizer. To encode, cut the text into bytes and apply the merges in that order.

Before either, a fixed pattern cuts text into *pretokens*: words with the space before them, numbers, punctuation. No
token reaches over the end of a pretoken. It also makes BPE fast: a text has few different pretokens, so training
works on each one once, weighted by how often it occurs, and encoding remembers the ids of those it has seen.

Sources: Gage, "A New Algorithm for Data Compression" (1994); Sennrich et al., "Neural Machine Translation of Rare
Words with Subword Units" (2016), section 3.2; Radford et al., "Language Models are Unsupervised Multitask Learners"
(2019), section 2.2, for bytes and the pattern.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, Literal, Self

import regex

from minillm.errors import InputError, did_you_mean
from minillm.tokenizers.base import (
    END_OF_TEXT,
    Tokenizer,
    check_special_tokens,
    read_chunks,
    read_json,
    read_texts,
    stream,
    write_text,
)

# GPT-2's pattern. A pretoken is an English contraction; or a run of letters, of digits, or of other signs, with one
# space before it where there is one; or a run of white space, less its last character where something else follows.
PRETOKEN = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
# The same for text that is all ASCII, where the standard library's `re` is twice as fast. (Its \s has \x1c-\x1f too.)
PRETOKEN_ASCII = re.compile(
    r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\t-\r A-Za-z0-9]+|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"
)
# How many characters past its end make a pretoken certain: two, since "'" becomes "'ll" where "ll" follows.
LOOKAHEAD = 2

CACHED_PRETOKENS = 1 << 17  # how many pretokens a tokenizer remembers the ids of: about 35 MB
LONG_WORD = 128  # bytes: a longer pretoken needs the algorithm for long ones, and is hardly met twice
NO_MERGE = 1 << 62  # a rank after all others

Pair = tuple[int, int]


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding with GPT-2's pattern; made by `train`, `load` or `from_gpt2_files`.

    Args:
        vocab: every ordinary token's bytes, with its id; all 256 single bytes are among them.
        merges: the pairs of tokens to join, the first learnt first.
        special_tokens: the text of every special token, with its id.

    Raises: InputError where a byte is missing, or a merge has a part or a result that is not in `vocab`.
    """

    kind = "bpe"

    def __init__(
        self,
        vocab: Mapping[bytes, int],
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Mapping[str, int] | None = None,
    ):
        super().__init__(vocab, special_tokens or {})
        for byte in range(256):
            if bytes([byte]) not in vocab:
                raise InputError(
                    f"BPETokenizer: vocab has no token for byte 0x{byte:02x}; give all 256 bytes, so any text fits"
                )
        for left, right in merges:
            for token in (left, right, left + right):
                if token not in vocab:
                    raise InputError(
                        f"BPETokenizer: the merge of {left!r} and {right!r} needs the token {token!r}, "
                        "which is not in vocab; give vocab and merges of one tokenizer"
                    )
        self.merges = list(merges)
        self.vocab = dict(vocab)
        self._ids_of_pretoken = PretokenIds(vocab, merges)

    # Training

    @classmethod
    def train(
        cls,
        text_or_files: str | Path | Iterable[str | Path],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        ties: Literal["greater", "first"] = "greater",
        progress: bool = False,
    ) -> Self:
        """Learn a vocabulary of `vocab_size` tokens from text.

        Every step merges the pair of neighbouring tokens with the highest count. Where several pairs have it:
        - `ties="greater"` takes the greatest pair, compared as `(left bytes, right bytes)`, byte by byte;
        - `ties="first"` takes the pair whose first place in the text, as it is merged by then, comes first.

        A pair that overlaps itself counts at every place ("aaa" holds (a, a) twice), and is merged from the left.
        Special tokens that occur in the text cut it, so that no token spans them. Ids: byte b is id b, then come the
        merges as they are learnt, then the special tokens. Where the text runs out of pairs, there are fewer tokens.

        Args:
            text_or_files: text (str), a UTF-8 file (pathlib.Path), or an iterable of either, each a text of its own.
            progress: show a progress bar.

        Raises: InputError for a `vocab_size` below 256 + the number of special tokens, text that is empty, or a file
        that cannot be read.
        """
        where = f"{cls.__name__}.train"
        check_special_tokens(where, special_tokens)
        if ties not in ("greater", "first"):
            raise InputError(f"{where}: ties is {ties!r}{did_you_mean(str(ties), ('greater', 'first'))}")
        wanted = vocab_size - 256 - len(special_tokens)
        if wanted < 0:
            raise InputError(
                f"{where}: vocab_size is {vocab_size}, expected at least {256 + len(special_tokens)} "
                f"(256 bytes and {len(special_tokens)} special tokens); raise it, or use a CharacterTokenizer"
            )
        counts: Counter[str] = Counter()
        for chunks in read_texts(where, text_or_files):
            for pretokens in stream(where, chunks, settled_pretokens, special_tokens, lambda token: []):
                counts.update(pretokens)
        if not counts:
            raise InputError(
                f"{where}: there is no text to learn from (empty, or special tokens alone); give some text"
            )
        learning: Iterable[tuple[bytes, bytes]] = islice(
            learn_merges({word.encode(): count for word, count in counts.items()}, ties), wanted
        )
        if progress:
            from rich.progress import track

            learning = track(learning, "learning merges", wanted)
        merges = list(learning)
        tokens = [*(bytes([byte]) for byte in range(256)), *(left + right for left, right in merges)]
        return cls(
            {token: i for i, token in enumerate(tokens)},
            merges,
            {token: i for i, token in enumerate(special_tokens, start=len(tokens))},
        )

    # Encoding

    def _encode_settled(self, text: str, more: bool) -> tuple[list[int], int]:
        pretokens, end = settled_pretokens(text, more)
        return list(chain.from_iterable(map(self._ids_of_pretoken.__getitem__, pretokens))), end

    # Files

    def _to_json(self) -> dict[str, Any]:
        return {
            "special_tokens": self.special_tokens,
            "vocab": {spell(token): i for token, i in self.vocab.items()},
            "merges": [f"{spell(left)} {spell(right)}" for left, right in self.merges],
        }

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> Self:
        vocab = {unspell(token): i for token, i in content["vocab"].items()}
        return cls(vocab, [read_merge(line) for line in content["merges"]], dict(content["special_tokens"]))

    @classmethod
    def from_gpt2_files(cls, vocab_json: str | Path, merges_txt: str | Path) -> Self:
        """Read GPT-2's two files, `vocab.json` and `merges.txt` (with or without a `#version` line).

        Special tokens are those entries of `vocab.json` that are neither a byte nor made by a merge.

        Raises: InputError for a file that cannot be read, a line that is no merge, or files that do not fit together.
        """
        where = f"{cls.__name__}.from_gpt2_files"
        spelled = read_json(where, Path(vocab_json))
        if not isinstance(spelled, dict):
            raise InputError(f"{where}: {vocab_json} holds no table of tokens and ids; give GPT-2's vocab.json")
        merges = []
        lines = "".join(read_chunks(where, Path(merges_txt))).replace("\r\n", "\n").split("\n")
        for number, line in enumerate(lines, start=1):
            if line and not (number == 1 and line.startswith("#version")):
                try:
                    merges.append(read_merge(line))
                except ValueError as error:
                    raise InputError(
                        f"{where}: line {number} of {merges_txt} is no merge ({error}); give GPT-2's merges.txt"
                    ) from error
        ordinary = {*BYTE_OF_CHARACTER, *(spell(left + right) for left, right in merges)}
        vocab = {unspell(token): i for token, i in spelled.items() if token in ordinary}
        return cls(vocab, merges, {token: i for token, i in spelled.items() if token not in ordinary})

    def save_gpt2_files(self, folder: str | Path) -> None:
        """Write GPT-2's `vocab.json` and `merges.txt` into `folder`; Hugging Face's `tokenizers` reads them too.

        Raises: InputError where a special token is spelled as an ordinary one, which these files cannot tell apart.
        """
        where = f"{type(self).__name__}.save_gpt2_files"
        vocab = {spell(token): i for token, i in self.vocab.items()}
        for token in self.special_tokens:
            if token in vocab:
                raise InputError(f"{where}: special token {token!r} is spelled as an ordinary token; use save instead")
        lines = ["#version: 0.2", *(f"{spell(left)} {spell(right)}" for left, right in self.merges), ""]
        by_id = sorted({**vocab, **self.special_tokens}.items(), key=lambda item: item[1])
        write_text(where, Path(folder) / "vocab.json", json.dumps(dict(by_id)))
        write_text(where, Path(folder) / "merges.txt", "\n".join(lines))


# Pretokens


def settled_pretokens(text: str, more: bool) -> tuple[list[str], int]:
    """The pretokens of the start of `text` that nothing can change that may follow it, and where that start ends."""
    pretokens = (PRETOKEN_ASCII if text.isascii() else PRETOKEN).findall(text)
    end = len(text)
    while more and pretokens and len(text) - end < LOOKAHEAD:
        end -= len(pretokens.pop())
    return pretokens, end


class PretokenIds(dict[str, tuple[int, ...]]):
    """The ids of each pretoken: worked out when first asked for, then remembered.

    When `CACHED_PRETOKENS` are held it forgets them all and starts again; those that are common are soon back.
    """

    def __init__(self, vocab: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]]):
        self.byte_ids = [vocab[bytes([byte])] for byte in range(256)]
        self.ranks = {(vocab[left], vocab[right]): rank for rank, (left, right) in enumerate(merges)}
        self.merged = [vocab[left + right] for left, right in merges]  # the id that a merge of that rank makes

    def __missing__(self, pretoken: str) -> tuple[int, ...]:
        word = pretoken.encode()
        if len(word) > LONG_WORD:
            return tuple(self.merge_long(word))
        if len(self) >= CACHED_PRETOKENS:
            self.clear()
        ids = self[pretoken] = tuple(self.merge_short(word))
        return ids

    def merge_short(self, word: bytes) -> list[int]:
        """The ids of one pretoken: join the pair with the lowest rank, the leftmost of equals, until none is left.

        Every join looks at all pairs, so the time grows with the square of the length: short words only.
        """
        ids = [self.byte_ids[byte] for byte in word]
        rank_of = self.ranks.get
        ranks = [rank_of(pair, NO_MERGE) for pair in pairwise(ids)]  # ranks[i]: of the pair of ids[i] and ids[i + 1]
        while ranks and (rank := min(ranks)) != NO_MERGE:
            i = ranks.index(rank)
            ids[i : i + 2] = [self.merged[rank]]
            del ranks[i]
            if i > 0:
                ranks[i - 1] = rank_of((ids[i - 1], ids[i]), NO_MERGE)
            if i < len(ranks):
                ranks[i] = rank_of((ids[i], ids[i + 1]), NO_MERGE)
        return ids

    def merge_long(self, word: bytes) -> list[int]:
        """The ids of `merge_short` in n log n steps: pairs wait in a heap, tokens are linked to their neighbours.

        A join leaves the left token in place, with a new id, and unlinks the right one. A pair in the heap whose
        tokens have changed since is passed over.
        """
        ids = [self.byte_ids[byte] for byte in word]
        rank_of = self.ranks.get
        after, before = list(range(1, len(ids) + 1)), list(range(-1, len(ids) - 1))
        heap = [(rank, i) for i, pair in enumerate(pairwise(ids)) if (rank := rank_of(pair)) is not None]
        heapify(heap)
        while heap:
            rank, i = heappop(heap)
            j = after[i]
            if j == len(ids) or rank_of((ids[i], ids[j])) != rank:
                continue
            ids[i], ids[j] = self.merged[rank], -1
            after[i] = after[j]
            if after[i] < len(ids):
                before[after[i]] = i
            for left, right in ((before[i], i), (i, after[i])):
                if left >= 0 and right < len(ids) and (rank_new := rank_of((ids[left], ids[right]))) is not None:
                    heappush(heap, (rank_new, left))
        return [i for i in ids if i >= 0]


# Training


def learn_merges(words: Mapping[bytes, int], ties: Literal["greater", "first"]) -> Iterator[tuple[bytes, bytes]]:
    """The merges that `BPETokenizer.train` learns from different words and their counts, until no pair is left.

    Nothing is counted twice: a merge changes only the counts of the pairs beside the places where it happens. Nor is
    the list of pairs searched: they wait in a heap, best first. A merge can only lower the count of a pair that was
    there before, and only move its first place on. So what the heap promises of a pair is never too little: a pair
    that comes out with its promise still true is the best of all, and any other goes back with what is true now.
    """
    tokens = [bytes([byte]) for byte in range(256)]
    index = PairIndex(words)

    def promise(pair: Pair) -> tuple:
        if ties == "first":
            return -index.counts[pair], index.first_place(pair), pair
        return -index.counts[pair], *(greatest_first(tokens[i]) for i in pair), pair

    heap = [promise(pair) for pair in index.counts]
    heapify(heap)
    while heap:
        promised = heappop(heap)
        pair = promised[-1]
        if not index.counts[pair]:
            continue
        if promised != (true := promise(pair)):
            heappush(heap, true)
            continue
        left, right = (tokens[i] for i in pair)
        yield left, right
        tokens.append(left + right)
        for new_pair in index.merge(pair, len(tokens) - 1):
            heappush(heap, promise(new_pair))


class PairIndex:
    """The different words of a text, laid end to end, with the count and the places of every pair of tokens in them.

    A token is known by the place of its first byte. `ids[i]` is the token at place i, NOTHING between words and where
    a merge has taken a byte in; `after[i]` and `before[i]` are the places of its neighbours.
    """

    NOTHING = -1

    def __init__(self, words: Mapping[bytes, int]):
        self.ids, self.weights = [self.NOTHING], [0]  # weights[i]: how often the text has the word at place i
        for word, count in words.items():
            self.ids += [*word, self.NOTHING]
            self.weights += [count] * (len(word) + 1)
        self.after = list(range(1, len(self.ids) + 1))
        self.before = list(range(-1, len(self.ids) - 1))
        self.counts: defaultdict[Pair, int] = defaultdict(int)
        self.places: defaultdict[Pair, list[int]] = defaultdict(list)  # of the left token, ascending
        for i, pair in enumerate(pairwise(self.ids)):
            if self.NOTHING not in pair:
                self.counts[pair] += self.weights[i]
                self.places[pair].append(i)

    def first_place(self, pair: Pair) -> int:
        """Where the pair, whose count is not 0, first occurs."""
        return next(i for i in self.places[pair] if (self.ids[i], self.ids[self.after[i]]) == pair)

    def merge(self, pair: Pair, merged: int) -> list[Pair]:
        """Replace the pair by the token `merged` wherever it occurs, from the left; returns the pairs this makes."""
        ids, after, before, counts, places = self.ids, self.after, self.before, self.counts, self.places
        made: set[Pair] = set()
        for i in places.pop(pair):
            j = after[i]
            if (ids[i], ids[j]) != pair:  # changed since by another merge, or in "aaa" by this one
                continue
            h, k, weight = before[i], after[j], self.weights[i]  # now h i j k, to become h i k
            if ids[h] != self.NOTHING:
                counts[ids[h], ids[i]] -= weight
                counts[ids[h], merged] += weight
                places[ids[h], merged].append(h)
                made.add((ids[h], merged))
            if ids[k] != self.NOTHING:
                counts[ids[j], ids[k]] -= weight
                counts[merged, ids[k]] += weight
                places[merged, ids[k]].append(i)
                made.add((merged, ids[k]))
            ids[i], ids[j] = merged, self.NOTHING
            after[i], before[k] = k, i
        counts[pair] = 0
        return [new_pair for new_pair in made if counts[new_pair]]


# A heap gives the smallest first, so bytes are turned round: 255 becomes 0, and the end of a token, which sorts
# before every byte, comes after them.
COMPLEMENT = bytes(255 - byte for byte in range(256))


def greatest_first(token: bytes) -> str:
    """A key that orders as byte strings do, but backwards."""
    return token.translate(COMPLEMENT).decode("latin-1") + "\u0100"


# GPT-2's spelling: each byte as a character that can be seen. Those of Latin-1 that can be seen stand for themselves;
# the others, in order, are the characters from U+0100 on. A space is "\u0120".


def character_of_bytes() -> list[str]:
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    unseen = iter(range(256, 512))
    return [chr(byte if byte in seen else next(unseen)) for byte in range(256)]


CHARACTER_OF_BYTE = character_of_bytes()
BYTE_OF_CHARACTER = {character: byte for byte, character in enumerate(CHARACTER_OF_BYTE)}


def spell(token: bytes) -> str:
    """Bytes as GPT-2's files write them: b" the" is "Ġthe"."""
    return "".join([CHARACTER_OF_BYTE[byte] for byte in token])


def unspell(token: str) -> bytes:
    """The bytes of a token as GPT-2's files write it."""
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in token])
    except KeyError as error:
        raise ValueError(f"{token!r} has {error}, which stands for no byte") from None


def read_merge(line: str) -> tuple[bytes, bytes]:
    """A merge as GPT-2's files write it: two tokens with a space between."""
    left, _, right = line.partition(" ")
    if not left or not right or " " in right:
        raise ValueError(f"{line!r} is not two tokens with one space between")
    return unspell(left), unspell(right)
