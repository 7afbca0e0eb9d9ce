"""WordPiece, as BERT does it: words first, then the longest pieces that the vocabulary has.

Text is cut into words by BERT's *basic* tokenization (basic.py): options can drop case and accents, and words end at
white space and punctuation. A word is then cut greedily: from its start the longest piece in the vocabulary, from there
the longest again. Pieces that continue a word are spelled with `##`, and are not the same tokens as those that begin
one:

    "Unaffable, isn't it?"   ->   un ##aff ##able , isn ' t it ?

A word that cannot be cut to its end, or is longer than 100 characters, becomes the one token `[UNK]`. So encoding
loses white space, unknown words and, in an "uncased" vocabulary, case and accents: `decode` gives readable text, not
the text that was encoded.

Training (wordpiece_train.py) is byte-pair encoding within words, of which only the resulting pieces are kept.

Sources: Schuster and Nakajima, "Japanese and Korean Voice Search" (2012), section 3; Wu et al., "Google's Neural
Machine Translation System" (2016), section 4.1; Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers
for Language Understanding" (2019), with `tokenization.py` of its code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from minillm.errors import InputError, did_you_mean
from minillm.tokenizers.aligned import Aligned, Span
from minillm.tokenizers.base import Specials, Tokenizer, check_special_tokens, join_surrogates
from minillm.tokenizers.basic import BERT_TOKENS, CLS, MASK, PAD, SEP, UNK, BasicTokenizer, chunks_of, settled_end
from minillm.tokenizers.components import model_type
from minillm.tokenizers.decoders import clean_up
from minillm.tokenizers.files import readable
from minillm.tokenizers.hugging_face import read_wordpiece
from minillm.tokenizers.progress import with_progress
from minillm.tokenizers.special import SpecialTokens
from minillm.tokenizers.vocab_files import read_vocab_txt, write_vocab_txt
from minillm.tokenizers.wordpiece_train import PREFIX, count_words, first_symbols, learn_pieces
from minillm.tokenizers.write_hugging_face import write_wordpiece

CACHED_CHUNKS = 1 << 17  # a tokenizer that remembers the ids of more chunks begins again
LONG_CHUNK = 128  # characters: a longer chunk is hardly met twice

Truncation = Literal["longest_first", "only_first", "only_second"]


class WordPieceTokenizer(Tokenizer):
    """BERT's tokenizer; made by `train`, `load`, `from_vocab_txt` or `from_hugging_face`.

    Encoding loses white space, so tokens do not stand for exact bytes: the base's table of bytes holds the spelling of
    each token here ("##ing"), and `decode` joins the pieces by rules of its own.

    Args:
        vocab: the spelling of every token, with its id.
        special_tokens: the text of every special token, with its id; None takes those of `[PAD]`, `[UNK]`, `[CLS]`,
            `[SEP]` and `[MASK]` that `vocab` has.
        max_input_chars_per_word: longer words become `[UNK]`.
        wraps: put `[CLS]` and `[SEP]` around a text.
        unsought: special tokens that are never looked for in a text, whatever `allowed_special` says.
        basic: the options of `BasicTokenizer`.

    Raises: InputError for ids with gaps or repeats, or a token that cannot be written as UTF-8.
    """

    kind = "wordpiece"
    NAMES: ClassVar[dict[str, str]] = {
        "pad_token": PAD,
        "unk_token": UNK,
        "cls_token": CLS,
        "sep_token": SEP,
        "mask_token": MASK,
    }

    def __init__(
        self,
        vocab: Mapping[str, int],
        special_tokens: Mapping[str, int] | None = None,
        max_input_chars_per_word: int = 100,
        wraps: bool = True,
        unsought: Sequence[str] = (),
        **basic: Any,
    ):
        if special_tokens is None:
            special_tokens = {token: vocab[token] for token in BERT_TOKENS if token in vocab}
            vocab = {token: i for token, i in vocab.items() if token not in special_tokens}
        for token in vocab:
            if not isinstance(token, str) or join_surrogates(token) != token:
                raise InputError(f"WordPieceTokenizer: {token!r} cannot be a token; give text without lone surrogates")
        if not isinstance(max_input_chars_per_word, int) or max_input_chars_per_word < 1:
            raise InputError(
                f"WordPieceTokenizer: max_input_chars_per_word is {max_input_chars_per_word!r}; give 1 or more"
            )
        super().__init__({token.encode(): i for token, i in vocab.items()}, special_tokens)
        self.vocab = dict(vocab)
        self.basic = BasicTokenizer(**basic)
        self.max_input_chars_per_word = max_input_chars_per_word
        self.wraps, self.unsought = wraps, tuple(unsought)
        self._first = {token: i for token, i in vocab.items() if not token.startswith(PREFIX)}
        self._later = {token[len(PREFIX) :]: i for token, i in vocab.items() if token.startswith(PREFIX)}
        self._longest = max(map(len, vocab), default=0)
        self._ids_of_chunk = ChunkIds(self._encode_chunk)

    @property
    def cls_id(self) -> int | None:
        """The id of `[CLS]`, or None."""
        return self._named("cls_token")

    @property
    def sep_id(self) -> int | None:
        """The id of `[SEP]`, or None."""
        return self._named("sep_token")

    @property
    def mask_id(self) -> int | None:
        """The id of `[MASK]`, or None."""
        return self._named("mask_token")

    # Training

    @classmethod
    def train(
        cls,
        text_or_files: str | Path | Iterable[str | Path],
        vocab_size: int,
        special_tokens: Sequence[str] = BERT_TOKENS,
        min_frequency: int = 2,
        limit_alphabet: int | None = 1000,
        progress: bool = False,
        **basic: Any,
    ) -> Self:
        """Learn a vocabulary of `vocab_size` tokens from text.

        Ids: the special tokens come first, then the characters of the text in the order of their code points, then
        those that occur within words, with `##`, in the same order, then the pieces as they are learnt. Every step
        joins the pair with the highest count; of equals, the one with the smallest ids, compared as (left, right).
        Special tokens that occur in the text cut it. If no pair is left that occurs often enough, there are fewer
        tokens.

        Hugging Face's trainer has the same rule, but numbers the `##` characters in the order of a hash table. So their
        ids, and the choice between equals, differ from run to run. Given the ids of one run, `learn_pieces` learns the
        same pieces.

        Args:
            text_or_files: text (str), a UTF-8 file (pathlib.Path), or an iterable of either, each a text of its own.
            min_frequency: a pair that occurs less often is not joined.
            limit_alphabet: the number of characters to keep, the most frequent, of equals those of smaller code points.
                Words with other characters become `[UNK]`. None keeps all.
            progress: show a progress bar.
            basic: the options of `BasicTokenizer`, such as `lowercase=False`.

        Raises: InputError for a `vocab_size` that does not hold special tokens and characters, text that is empty, or
        a file that cannot be read.
        """
        where = f"{cls.__name__}.train"
        check_special_tokens(where, special_tokens)
        if limit_alphabet is not None and limit_alphabet < 1:
            raise InputError(f"{where}: limit_alphabet is {limit_alphabet}; give 1 or more, or None to keep all")
        words = count_words(where, text_or_files, BasicTokenizer(**basic), special_tokens)
        if not words:
            raise InputError(
                f"{where}: there is no text to learn from (empty, or special tokens alone); give some text"
            )
        symbols = list(dict.fromkeys([*special_tokens, *first_symbols(words, limit_alphabet)]))
        wanted = vocab_size - len(symbols)
        if wanted < 0:
            raise InputError(
                f"{where}: vocab_size is {vocab_size}, expected at least {len(symbols)} ({len(special_tokens)} special "
                f"tokens, the others characters, with and without {PREFIX!r}); raise it, or lower limit_alphabet"
            )
        learning = islice(learn_pieces(words, symbols, min_frequency), wanted)
        learnt = with_progress(learning, wanted, "learning pieces", progress)
        ids = {token: i for i, token in enumerate([*symbols, *learnt])}
        special_ids = {token: ids.pop(token) for token in special_tokens}
        return cls(ids, special_ids, **basic)

    # Text to ids

    def tokenize(self, text: str, allowed_special: Specials = "none") -> list[str]:
        """The tokens of `text` as they are spelled: `["un", "##aff", "##able"]`."""
        return [self._spelling(i) for i in self.encode(text, allowed_special)]

    def _make_finder(self, tokens: Collection[str]) -> SpecialTokens:
        return SpecialTokens([token for token in tokens if token not in self.unsought], self.strips)

    def _encode_settled(self, text: str, more: bool) -> tuple[list[int], int]:
        end = settled_end(text) if more else len(text)
        return self._ids_of_chunk.encode(chunks_of(text[:end])), end

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        return tuple(chain.from_iterable(map(self._encode_word, self.basic.tokenize(chunk))))

    def _encode_word(self, word: str) -> list[int]:
        """The ids of one word: the longest piece that it begins with, then the longest that continues it, and so on."""
        if len(word) > self.max_input_chars_per_word:
            return [self._unknown(word)]
        ids: list[int] = []
        table, start = self._first, 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                if (i := table.get(word[start:end])) is not None:
                    break
            else:
                return [self._unknown(word)]
            ids.append(i)
            table, start = self._later, end
        return ids

    def _encode_aligned(self, text: Aligned) -> Iterator[tuple[int, Span]]:
        for word in self.basic.aligned(text):
            ids, start = self._encode_word(word.text), 0
            for number, i in enumerate(ids):
                end = start + len(self._spelling(i)) - (len(PREFIX) if number else 0)
                is_all = len(ids) == 1  # such as [UNK], whose spelling has another length
                yield i, word.span if is_all else word.part(start, end).span
                start = end

    def _unknown(self, word: str) -> int:
        if self.unk_id is None:
            raise InputError(
                f"WordPieceTokenizer.encode: the word {word!r} has no pieces in this vocabulary, which lacks {UNK!r}; "
                f"train it with {UNK!r} in special_tokens"
            )
        return self.unk_id

    # BERT's input

    def __call__(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        max_length: int | None = None,
        truncation: Truncation | bool = "longest_first",
        allowed_special: Specials = "none",
    ) -> dict[str, list[int]]:
        """BERT's input of one or two texts, under the names of transformers.

            input_ids         [CLS] a a a [SEP] b b [SEP]
            token_type_ids      0   0 0 0   0   1 1   1
            attention_mask      1   1 1 1   1   1 1   1

        Args:
            max_length: the maximum number of ids, including special tokens; None for no limit.
            truncation: the text to cut at its end: "longest_first" (or True) cuts the longer one down to the length of
                the other, then both equally, where an odd id is left to the longer one (or to the second, of equals);
                "only_first" and "only_second" cut that text; False raises an error instead.
            allowed_special: as in `encode`.

        Raises: InputError where there is no `[CLS]` or `[SEP]`, or truncation cannot make the input short enough.
        """
        ids = self.encode(text, allowed_special)
        pair_ids = None if text_pair is None else self.encode(text_pair, allowed_special)
        if max_length is not None:
            budget = max_length - len(self.build_inputs_with_special_tokens([], None if pair_ids is None else []))
            ids, pair_ids = truncate("WordPieceTokenizer", ids, pair_ids, budget, truncation)
        input_ids = self.build_inputs_with_special_tokens(ids, pair_ids)
        return {
            "input_ids": input_ids,
            "token_type_ids": self.create_token_type_ids_from_sequences(ids, pair_ids),
            "attention_mask": [1] * len(input_ids),
        }

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Build `[CLS] a [SEP]`, or `[CLS] a [SEP] b [SEP]`; just `a` or `a b` in a tokenizer that does not wrap.

        Raises: InputError where there is no `[CLS]` or `[SEP]`.
        """
        if not self.wraps:
            return [*token_ids_0, *(token_ids_1 or ())]
        if self.cls_id is None or self.sep_id is None:
            missing = CLS if self.cls_id is None else SEP
            raise InputError(
                f"WordPieceTokenizer: this tokenizer has no {missing!r} to build BERT's input with; "
                f"train it with {missing!r} in special_tokens"
            )
        second = [] if token_ids_1 is None else [*token_ids_1, self.sep_id]
        return [self.cls_id, *token_ids_0, self.sep_id, *second]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """The text of each id of `build_inputs_with_special_tokens`: 0 for the first, 1 for the second."""
        second = [] if token_ids_1 is None else [*token_ids_1, *([0] if self.wraps else [])]
        return [0] * (len(token_ids_0) + 2 * self.wraps) + [1] * len(second)

    # Ids to text

    def decode(
        self,
        ids: Iterable[int] | NDArray[np.integer],
        errors: str = "replace",
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = True,
    ) -> str:
        """Readable text of a sequence of token ids: pieces with `##` are joined, others get a space before them.

        Args:
            errors: has no effect here, since tokens are whole characters; every tokenizer's `decode` has it.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: put no space before `.`, `,`, `?`, `!` or an English contraction.

        Raises: InputError for an id out of range; DtypeError for anything that is not an integer.
        """
        left_out = set(self.special_tokens.values()) if skip_special_tokens else set()
        kept = [i for i in self._checked("decode", ids) if i not in left_out]
        return self._text(kept, errors, clean_up_tokenization_spaces=clean_up_tokenization_spaces)

    def _text(self, ids: list[int], errors: str, more: bool = False, clean_up_tokenization_spaces: bool = True) -> str:
        if self.decoder is not None:
            return super()._text(ids, errors, more)
        parts: list[str] = []
        for part in map(self._spelling, ids):
            if parts:
                part = part[len(PREFIX) :] if part.startswith(PREFIX) else f" {part}"
            parts.append(clean_up(part) if clean_up_tokenization_spaces else part)
        return "".join(parts)

    # Files

    def _to_json(self) -> dict[str, Any]:
        return {
            "special_tokens": self.special_tokens,
            "vocab": self.vocab,
            "max_input_chars_per_word": self.max_input_chars_per_word,
            **({} if self.wraps else {"wraps": False}),
            **({"unsought": list(self.unsought)} if self.unsought else {}),
            **asdict(self.basic),
        }

    def to_hugging_face(self) -> dict[str, Any]:
        return write_wordpiece(f"{type(self).__name__}.to_hugging_face", self)

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> Self:
        options = {option: content[option] for option in (*asdict(BasicTokenizer()), "max_input_chars_per_word")}
        options |= {option: content[option] for option in ("wraps", "unsought") if option in content}
        return cls(content["vocab"], dict(content["special_tokens"]), **options)

    @classmethod
    def from_vocab_txt(cls, vocab_txt: str | Path, special_tokens: Sequence[str] = BERT_TOKENS, **basic: Any) -> Self:
        """Read BERT's `vocab.txt`, one token a line, the first with id 0.

        The file does not say how text is to be cut: for a "cased" vocabulary give `lowercase=False`.

        Args:
            special_tokens: which tokens of the file are special.
            basic: the options of `BasicTokenizer`.

        Raises: InputError for a file that cannot be read, or a token that occurs twice.
        """
        where = f"{cls.__name__}.from_vocab_txt"
        check_special_tokens(where, special_tokens)
        ids = read_vocab_txt(where, Path(vocab_txt))
        special_ids = {token: ids.pop(token) for token in special_tokens if token in ids}
        return cls(ids, special_ids, **basic)

    def save_vocab_txt(self, path: str | Path) -> None:
        """Write BERT's `vocab.txt`: what `from_vocab_txt` read, byte for byte, where its lines end with "\\n".

        Raises: InputError where a token has a line end in it, or a special token is spelled as an ordinary one.
        """
        where = f"{type(self).__name__}.save_vocab_txt"
        tokens = [self._spelling(i) for i in range(self.vocab_size)]
        write_vocab_txt(where, Path(path), tokens, self.vocab, self.special_tokens)

    @classmethod
    def _reads_hugging_face(cls, content: Mapping[str, Any]) -> bool:
        return model_type(content) == "WordPiece"

    @classmethod
    def from_hugging_face(cls, content: Mapping[str, Any]) -> Self:
        """The tokenizer that a Hugging Face `tokenizer.json`, parsed, describes.

        It must have a WordPiece model with BERT's normalizer (or none), pre-tokenizer, post-processor and decoder.
        `truncation` and `padding` are settings of a call, and ignored. Added tokens become special tokens, and so do
        BERT's five if the vocabulary has them; `encode(text, "all")` gives Hugging Face's ids.

        Raises: InputError for any other component, which would give other ids.
        """
        where = f"{cls.__name__}.from_hugging_face"
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise InputError(f"{where}: there is no 'model' in it; give the content of a Hugging Face tokenizer.json")
        with readable(where, "this is not a complete tokenizer.json", "download it again", passing=where):
            return cls._from_parts(read_wordpiece(where, content))


class ChunkIds(dict[str, tuple[int, ...]]):
    """The ids of each chunk; those of short chunks are remembered."""

    def __init__(self, encode_chunk: Callable[[str], tuple[int, ...]]):
        self.encode_chunk = encode_chunk

    def encode(self, chunks: Iterable[str]) -> list[int]:
        if len(self) > CACHED_CHUNKS:
            self.clear()
        return list(chain.from_iterable(map(self.__getitem__, chunks)))

    def __missing__(self, chunk: str) -> tuple[int, ...]:
        ids = self.encode_chunk(chunk)
        if len(chunk) <= LONG_CHUNK:
            self[chunk] = ids
        return ids


# BERT's input and output


def truncate(
    where: str, ids: list[int], pair_ids: list[int] | None, budget: int, truncation: Truncation | bool
) -> tuple[list[int], list[int] | None]:
    """Cut one or two sequences at their ends to `budget` ids together (see `WordPieceTokenizer.__call__`)."""
    strategies = ("longest_first", "only_first", "only_second")
    if truncation is True:
        truncation = "longest_first"
    if truncation is not False and truncation not in strategies:
        raise InputError(f"{where}: truncation is {truncation!r}{did_you_mean(str(truncation), strategies)}")
    if budget < 0:
        raise InputError(f"{where}: max_length is too small for the special tokens alone; raise it by {-budget}")
    n, m = len(ids), len(pair_ids or ())
    excess = n + m - budget
    if excess <= 0:
        return ids, pair_ids
    if truncation == "longest_first":
        shorter = min(n, m, budget // 2)
        n, m = (shorter, budget - shorter) if n <= m else (budget - shorter, shorter)
        return ids[:n], None if pair_ids is None else pair_ids[:m]
    if truncation == "only_first" and n > excess:
        return ids[: n - excess], pair_ids
    if truncation == "only_second" and pair_ids is not None and m > excess:
        return ids, pair_ids[: m - excess]
    raise InputError(
        f"{where}: the input has {excess} tokens more than max_length, and truncation={truncation!r} "
        "cannot cut so many; raise max_length, or give truncation='longest_first'"
    )
