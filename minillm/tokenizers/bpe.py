"""Byte-pair encoding on bytes, as GPT-2 does it.

Training starts with 256 tokens, one a byte, so that any text can be written. Then, again and again, the pair of
neighbouring tokens that occurs most often in the training text becomes one new token:

    l o w   l o w e r   l o w e s t       (l, o) occurs three times, as often as (o, w): the tie rule decides
    l ow    l ow e r    l ow e s t        merge 1: o + w
    low     low e r     low e s t         merge 2: l + ow

The list of merges, in order, is the tokenizer. To encode, cut the text into bytes and apply the merges in that order.
bpe_naive.py is this in 25 lines, with examples.

Before either, a fixed pattern cuts text into *pretokens*: words with the space before them, numbers, punctuation. No
token reaches over the end of a pretoken. Pretokens also make BPE fast: a text has few different ones, so training
works on each one once, weighted by how often it occurs, and encoding remembers the ids of those it has seen, and
merges all the new ones in a block of text together, as the rows of a NumPy array.

Later models cut text by other patterns (patterns.py) and keep the rest; `from_file` reads their `tokenizer.json`,
`from_gguf_fields` llama.cpp's fields.

Sources: Gage, "A New Algorithm for Data Compression" (1994); Sennrich et al., "Neural Machine Translation of Rare
Words with Subword Units" (2016), section 3.2; Radford et al., "Language Models are Unsupervised Multitask Learners"
(2019), section 2.2, for bytes and the pattern.
"""

from __future__ import annotations

import copy
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, count, islice, pairwise
from pathlib import Path
from typing import Any, Literal, Self

import regex

from minillm.errors import InputError, did_you_mean
from minillm.tokenizers.aligned import Aligned, Span, outer
from minillm.tokenizers.base import END_OF_TEXT, Tokenizer, check_special_tokens, check_strips, stream
from minillm.tokenizers.bpe_train import Pair, learn_merges
from minillm.tokenizers.components import model_type
from minillm.tokenizers.files import read_texts, readable
from minillm.tokenizers.gguf_fields import read_gguf_bpe
from minillm.tokenizers.hugging_face import foreign_patterns, is_byte_level, read_bpe
from minillm.tokenizers.merge_table import MergeTable
from minillm.tokenizers.patterns import PATTERNS, Splitter
from minillm.tokenizers.progress import with_progress
from minillm.tokenizers.vocab_files import read_gpt2_files, read_merge, spell, unspell, write_gpt2_files
from minillm.tokenizers.write_hugging_face import write_bpe

# GPT-2's pattern. A pretoken is an English contraction; or a run of letters, of digits, or of other signs, with one
# space before it where there is one; or a run of white space, less its last character where something else follows.
PRETOKEN = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
# A pattern for text that is all ASCII, where the standard library's `re` is twice as fast, the more so where every
# alternative begins with a character that must be there. (Its \s has \x1c-\x1f too.)
PRETOKEN_ASCII = re.compile(
    r" [A-Za-z]+|[A-Za-z]+|'(?:[sdmt]|ll|ve|re)|[^\t-\r A-Za-z0-9]+| [^\t-\r A-Za-z0-9]+|[0-9]+| [0-9]+"
    r"|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"
)
# A pattern that cuts text, at the ends of words, into stretches that are all ASCII and fit in the processor's cache,
# and others, where signs beyond ASCII are at most 31 characters apart. No pretoken reaches over the end of a word where
# white space follows.
STRETCH = re.compile(
    r"[\0-\x7f]{0,16383}[^\s\x80-\U0010ffff](?![^\t-\r ])"
    r"|(?s:.(?:[\0-\x7f]{0,31}[^\0-\x7f]+)*+.*?)(?:(?<=\S)(?=[\t-\r ])|\Z)"
)
# A pretoken is certain when this many characters follow it: two, since "'" becomes "'ll" where "ll" follows.
LOOKAHEAD = 2

CACHED_PRETOKENS = 1 << 17  # a tokenizer that remembers the ids of more pretokens (about 35 MB) begins again
LONG_WORD = 128  # bytes: a longer pretoken is hardly met twice
FEW = 16  # the longest pretokens, this many, are merged one by one: faster than with the others


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding; made by `train`, `load`, `from_file`, `from_gpt2_files` or `from_gguf_fields`.

    Args:
        vocab: every ordinary token's bytes, with its id; all 256 single bytes are among them.
        merges: the pairs of tokens to join, the first learnt first.
        special_tokens: the text of every special token, with its id.
        pattern: how text is cut into pretokens: a name in patterns.py, a regular expression, or several, one after
            the other. With expressions that patterns.py does not have, a stream is held until its end.
        normalizer: "NFC" brings ordinary text into that form first.
        prefix_space: put a space in front of ordinary text that begins with none, after every special token too.
        ignore_merges: a pretoken that is itself a token stays whole, even if no merges make that token.
        drop_bytes: `vocab` may lack bytes, which are then left out of a text (SmolLM2 has no token for the byte 0x04,
            among others); otherwise a missing byte is refused.
        strips: special tokens that absorb the white space beside them: "left", "right" or "both".

    Raises: InputError where a byte is missing, a merge has a part or a result that is not in `vocab`, or an option is
    not supported.
    """

    kind = "bpe"

    def __init__(
        self,
        vocab: Mapping[bytes, int],
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Mapping[str, int] | None = None,
        *,
        pattern: str | Sequence[str] = "gpt2",
        normalizer: str | None = None,
        prefix_space: bool = False,
        ignore_merges: bool = False,
        drop_bytes: bool = False,
        strips: Mapping[str, str] | None = None,
    ):
        super().__init__(vocab, special_tokens or {})
        for byte in range(256):
            if bytes([byte]) not in vocab and not drop_bytes:
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
        self.ignore_merges, self.drop_bytes = ignore_merges, drop_bytes
        self.splitter = Splitter(pattern, normalizer, prefix_space)
        self.strips = dict(strips or {})
        check_strips("BPETokenizer", self.strips, self.special_tokens)
        self.foreign: dict[str, Any] = {}  # for a pattern that was translated from a tokenizer.json, the one there
        self._ids_of_pretoken = PretokenIds(vocab, merges, whole=ignore_merges)

    # Training

    @classmethod
    def train(
        cls,
        text_or_files: str | Path | Iterable[str | Path],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        ties: Literal["greater", "first"] = "greater",
        progress: bool = False,
        *,
        pattern: str | Sequence[str] = "gpt2",
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
            pattern: how text is cut into pretokens, as in the constructor.

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
        splitter = Splitter(pattern)
        counts = count_pretokens(where, text_or_files, splitter, special_tokens)
        learning = islice(learn_merges({word.encode(): weight for word, weight in counts.items()}, ties), wanted)
        merges = list(with_progress(learning, wanted, "learning merges", progress))
        tokens = [*(bytes([byte]) for byte in range(256)), *(left + right for left, right in merges)]
        return cls(
            {token: i for i, token in enumerate(tokens)},
            merges,
            {token: i for i, token in enumerate(special_tokens, start=len(tokens))},
            pattern=splitter.patterns,
        )

    # Encoding

    def encode_continuation(self, text: str) -> list[int]:
        if not self.splitter.prefix_space:
            return self.encode(text)
        without = copy.copy(self)
        without.splitter = copy.copy(self.splitter)
        without.splitter.prefix_space = False
        return without.encode(text)

    def _encode_settled(self, text: str, more: bool) -> tuple[list[int], int]:
        stretches, end = settled_by(self.splitter, text, more)
        return self._ids_of_pretoken.encode(stretches), end

    def _encode_aligned(self, text: Aligned) -> Iterator[tuple[int, Span]]:
        for pretoken in self.splitter.aligned(text):
            places, ids = pretoken.spans_of_bytes, self._ids_of_pretoken.encode([[pretoken.text]])
            if len(ids) != 1 or len(self._token_bytes[ids[0]]) != len(places):  # bytes without a token are left out
                missing = self._ids_of_pretoken.missing
                places = [
                    place for byte, place in zip(pretoken.text.encode(), places, strict=True) if byte not in missing
                ]
            start = 0
            for i in ids:
                end = start + len(self._token_bytes[i])
                yield i, outer(places[start:end])
                start = end

    def _spelling(self, i: int) -> str:
        token = self._token_bytes[i]
        return token.decode() if i in self.special_tokens.values() else spell(token)

    # Files

    def _to_json(self) -> dict[str, Any]:
        return {
            "special_tokens": self.special_tokens,
            "vocab": {spell(token): i for token, i in self.vocab.items()},
            "merges": [f"{spell(left)} {spell(right)}" for left, right in self.merges],
            **{option: value for option, value in self._options().items() if value != GPT2_OPTIONS[option]},
        }

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `save` writes."""
        return super().to_json() | ({"foreign": self.foreign} if self.foreign else {})

    def to_hugging_face(self) -> dict[str, Any]:
        return write_bpe(f"{type(self).__name__}.to_hugging_face", self)

    def _options(self) -> dict[str, Any]:
        return {
            "pattern": list(self.splitter.patterns),
            "normalizer": self.splitter.normalizer,
            "prefix_space": self.splitter.prefix_space,
            "ignore_merges": self.ignore_merges,
            "drop_bytes": self.drop_bytes,
            "strips": self.strips,
        }

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> Self:
        vocab = {unspell(token): i for token, i in content["vocab"].items()}
        options = {option: content[option] for option in GPT2_OPTIONS if option in content}
        made = cls(vocab, [read_merge(line) for line in content["merges"]], dict(content["special_tokens"]), **options)
        made.foreign = dict(content.get("foreign", {}))
        return made

    @classmethod
    def _reads_hugging_face(cls, content: Mapping[str, Any]) -> bool:
        return model_type(content) == "BPE" and is_byte_level(content)

    @classmethod
    def from_hugging_face(cls, content: Mapping[str, Any]) -> Self:
        """Read the content of a Hugging Face `tokenizer.json` with a byte-level BPE, as `json.load` gives it.

        Its added tokens become special tokens: `encode(text, "all")` gives the ids of Hugging Face's
        `encode(text, add_special_tokens=False)`, and `build_inputs_with_special_tokens` adds what its post-processor
        would. Known are the normalizer NFC, and Split (isolated) and Digits before the pre-tokenizer ByteLevel; a file
        with other parts is read by `Tokenizer.from_file`, as a `ChainTokenizer`.

        Raises: InputError that names a component, or an option of one, that is not supported.
        """
        where = f"{cls.__name__}.from_hugging_face"
        with readable(where, "this is not the content of a tokenizer.json with a BPE model", "give json.load's"):
            tokenizer = cls._from_parts(read_bpe(where, content))
        tokenizer.foreign = foreign_patterns(where, content.get("pre_tokenizer"))
        return tokenizer

    @classmethod
    def from_gguf_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Read the fields `tokenizer.ggml.*` of a .gguf file with a byte-level BPE (`model` is "gpt2").

        `pre` names the pattern: gguf_fields.py has those that are known; where it is absent, GPT-2's. Tokens of type
        3 (control) and 4 (user-defined) become special tokens, and those of `bos_token_id`, `eos_token_id`,
        `padding_token_id` and `unknown_token_id` get their names.

        Raises: InputError for another kind of tokenizer, a pattern that is not known, or a field that is missing.
        """
        where = f"{cls.__name__}.from_gguf_fields"
        with readable(where, "the fields are not a complete tokenizer", "get the file again"):
            return cls._from_parts(read_gguf_bpe(where, fields))

    @classmethod
    def from_gpt2_files(cls, vocab_json: str | Path, merges_txt: str | Path) -> Self:
        """Read GPT-2's two files, `vocab.json` and `merges.txt` (with or without a `#version` line).

        Special tokens are those entries of `vocab.json` that are neither a byte nor made by a merge.

        Raises: InputError for a file that cannot be read, a line that is not a merge, or files that do not match.
        """
        return cls(*read_gpt2_files(f"{cls.__name__}.from_gpt2_files", Path(vocab_json), Path(merges_txt)))

    def save_gpt2_files(self, folder: str | Path) -> None:
        """Write GPT-2's `vocab.json` and `merges.txt` into `folder`; Hugging Face's `tokenizers` reads them too.

        Raises: InputError where a special token is spelled as an ordinary one, which these files cannot tell apart.
        """
        where = f"{type(self).__name__}.save_gpt2_files"
        write_gpt2_files(where, Path(folder), self.vocab, self.merges, self.special_tokens)


GPT2_OPTIONS: dict[str, Any] = {
    "pattern": list(PATTERNS["gpt2"]),
    "normalizer": None,
    "prefix_space": False,
    "ignore_merges": False,
    "drop_bytes": False,
    "strips": {},
}


# Pretokens


def count_pretokens(
    where: str, text_or_files: str | Path | Iterable[str | Path], splitter: Splitter, special_tokens: Sequence[str]
) -> Counter[str]:
    """Count the pretokens of training text, between special tokens.

    Raises: InputError for text that is empty, or a file that cannot be read.
    """
    counts: Counter[str] = Counter()

    def count_settled(text: str, more: bool) -> tuple[list[str], int]:
        stretches, end = settled_by(splitter, text, more)
        for pretokens in stretches:
            counts.update(pretokens)
        return [], end

    for chunks in read_texts(where, text_or_files):
        for _ in stream(where, chunks, count_settled, special_tokens, lambda token: []):
            pass
    if not counts:
        raise InputError(f"{where}: there is no text to learn from (empty, or special tokens alone); give some text")
    return counts


def settled_by(splitter: Splitter, text: str, more: bool) -> tuple[Iterable[list[str]], int]:
    """The settled pretokens of `text`, a stretch at a time, and where they end; GPT-2's pattern has a fast way."""
    if splitter.plain_gpt2:
        return settled_pretokens(text, more)
    pretokens, end = splitter.settled(text, more)
    return [pretokens], end


def settled_pretokens(text: str, more: bool) -> tuple[Iterator[list[str]], int]:
    """The settled pretokens of `text`, which no following text can change, and where they end.

    They come a stretch at a time. Only the last stretch has pretokens that are not settled.
    """
    *stretches, last = STRETCH.findall(text) or [""]
    pretokens, end = pretokens_of(last), len(text)
    while more and pretokens and len(text) - end < LOOKAHEAD:
        end -= len(pretokens.pop())
    return chain(map(pretokens_of, stretches), [pretokens]), end


def pretokens_of(stretch: str) -> list[str]:
    """The words, numbers and signs that no merge may cross, by GPT-2's pattern."""
    return (PRETOKEN_ASCII if stretch.isascii() else PRETOKEN).findall(stretch)


class PretokenIds(dict[str, tuple[int, ...]]):
    """The ids of each pretoken: those that `learn` got are remembered, those of long ones computed each time.

    With `whole`, a pretoken that is a token stays whole, and is remembered however long it is. Bytes without a token
    are left out.
    """

    def __init__(self, vocab: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]], whole: bool = False):
        self.whole = vocab if whole else {}
        self.missing = bytes([byte for byte in range(256) if bytes([byte]) not in vocab])
        self.byte_ids = [vocab.get(bytes([byte]), -1) for byte in range(256)]
        self.ranks = {(vocab[left], vocab[right]): rank for rank, (left, right) in enumerate(merges)}
        merged = [vocab[left + right] for left, right in merges]  # the id that a merge of that rank makes
        self.made = {pair: merged[rank] for pair, rank in self.ranks.items()}
        self.table = MergeTable(self.byte_ids, self.ranks, merged)

    def encode(self, stretches: Iterable[list[str]]) -> list[int]:
        """The ids of the pretokens of a block. The different pretokens are numbered, and each is looked up once.

        So all new pretokens are merged together, and the strings of the block need not be kept.
        """
        number_of: defaultdict[str, int] = defaultdict(count().__next__)
        numbers: list[int] = []
        for pretokens in stretches:
            numbers += map(number_of.__getitem__, pretokens)
        self.learn(number_of)
        ids_of_number = list(map(self.__getitem__, number_of))
        return list(chain.from_iterable(map(ids_of_number.__getitem__, numbers)))

    def learn(self, pretokens: Iterable[str]) -> None:
        """Compute and remember the ids of all pretokens that are new and not long.

        When more than `CACHED_PRETOKENS` are held, all are forgotten first; the common ones are soon back.
        """
        if len(self) > CACHED_PRETOKENS:
            self.clear()
        new = {pretoken.encode(): pretoken for pretoken in pretokens if pretoken not in self}
        if self.whole or self.missing:
            self.update((pretoken, (self.whole[word],)) for word, pretoken in new.items() if word in self.whole)
            new = {word.translate(None, self.missing): new[word] for word in new if word not in self.whole}
        shortest_first = sorted([word for word in new if len(word) <= LONG_WORD], key=len)
        many, few = shortest_first[:-FEW], shortest_first[-FEW:]  # the table takes a round per byte of its longest
        ids = chain(self.table.merge(many) if many else (), map(self.merge, few))
        self.update(zip(map(new.__getitem__, shortest_first), ids, strict=True))

    def __missing__(self, pretoken: str) -> tuple[int, ...]:
        return self.merge(pretoken.encode().translate(None, self.missing))

    def merge(self, word: bytes) -> tuple[int, ...]:
        """The ids of one pretoken: the pair with the lowest rank, the leftmost of equals, is joined, and so on."""
        return tuple(merge_pairs([self.byte_ids[byte] for byte in word], self.ranks, self.made))


def merge_pairs(ids: list[int], ranks: Mapping[Pair, int], made: Mapping[Pair, int]) -> list[int]:
    """Join the pair with the lowest rank, the leftmost of equals, until none is left; return the resulting ids.

    A pair becomes the id `made[pair]`; several pairs may share a rank. It takes n log n steps: pairs wait in a heap,
    and tokens are linked to their neighbours. A join leaves the left token in place, with a new id, and unlinks the
    right one, which becomes -1. A pair in the heap whose tokens have changed since is passed over.
    """
    rank_of = ranks.get
    after, before = list(range(1, len(ids) + 1)), list(range(-1, len(ids) - 1))
    heap = [(rank, i) for i, pair in enumerate(pairwise(ids)) if (rank := rank_of(pair)) is not None]
    heapify(heap)
    while heap:
        rank, i = heappop(heap)
        j = after[i]
        if j == len(ids) or rank_of(pair := (ids[i], ids[j])) != rank:
            continue
        ids[i], ids[j] = made[pair], -1
        after[i] = after[j]
        if after[i] < len(ids):
            before[after[i]] = i
        for left, right in ((before[i], i), (i, after[i])):
            if left >= 0 and right < len(ids) and (rank_new := rank_of((ids[left], ids[right]))) is not None:
                heappush(heap, (rank_new, left))
    return [i for i in ids if i != -1]
