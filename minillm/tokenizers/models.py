"""The model of a tokenizer.json: from a piece of text, as the pre-tokenizer cuts it, to ids.

    BPE         the characters of the piece, of which neighbours are joined in the order of the merges
    WordPiece   the longest token that the piece begins with, then the longest that continues from there
    WordLevel   the piece is a token as a whole, or unknown
    Unigram     the most probable of all ways to cut the piece (unigram.py)

`hidden` tokens are in the vocabulary, but no text becomes one.

Source: the code of Hugging Face's `tokenizers`, whose ids these are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from minillm.errors import InputError, did_you_mean
from minillm.tokenizers.bpe import merge_pairs
from minillm.tokenizers.components import Component, model_type, number_option, text_option
from minillm.tokenizers.normalizer import BYTE_PIECES
from minillm.tokenizers.sentencepiece import Cuts
from minillm.tokenizers.unigram import UnigramTokenizer

Model = Callable[[str], Sequence[int]]


def read_vocab(where: str, model: Component) -> dict[str, int]:
    """The tokens of a model with their ids.

    Raises: InputError for a vocab that is not a table of texts and ids, or gives one id to two tokens.
    """
    vocab: Any = model.get("vocab")
    if isinstance(vocab, list):
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in vocab):
            raise InputError(f"{where}: vocab is not a list of pieces with their scores; get the file again")
        vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
    if vocab in ({}, []):
        raise InputError(f"{where}: vocab has no tokens; get the file again")
    if not isinstance(vocab, dict):
        raise InputError(f"{where}: vocab is a {type(vocab).__name__}, expected a table of tokens; get the file again")
    token_of: dict[int, str] = {}
    for token, i in vocab.items():
        if not isinstance(token, str) or type(i) is not int or not 0 <= i < 1 << 32:
            raise InputError(f"{where}: vocab gives {token!r} the id {i!r}, expected a number from 0 on")
        if token_of.setdefault(i, token) != token:
            raise InputError(f"{where}: vocab gives {token_of[i]!r} and {token!r} one id, {i}; give each its own")
    return dict(vocab)


def read_model(where: str, content: Mapping[str, Any], hidden: Collection[str] = ()) -> Model:
    """The model of a tokenizer.json.

    Raises: InputError for a model, or an option of one, that is not supported.
    """
    model = content["model"]
    kinds: dict[str, Callable[[str, Component, Collection[str]], Model]] = {
        "BPE": BPE,
        "WordPiece": WordPiece,
        "WordLevel": WordLevel,
        "Unigram": unigram,
    }
    if (kind := model_type(content)) not in kinds:
        raise InputError(f"{where}: model has type {kind!r}, which is not supported{did_you_mean(str(kind), kinds)}")
    return kinds[str(kind)](where, model, hidden)


class BPE:
    """Byte-pair encoding of characters, or of those of the alphabet in which GPT-2 spells bytes."""

    def __init__(self, where: str, model: Component, hidden: Collection[str]):
        if model.get("dropout"):
            raise InputError(f"{where}: model has dropout {model['dropout']}, so that ids are random; set it to null")
        self.where = where
        self.all = read_vocab(where, model)
        self.vocab = {token: i for token, i in self.all.items() if token not in hidden}
        self.unk_token, self.fuse_unk = read_unk_token(where, model), bool(model.get("fuse_unk"))
        self.prefix = text_option(where, model, "continuing_subword_prefix", "")
        self.suffix = text_option(where, model, "end_of_word_suffix", "")
        self.whole = self.vocab if model.get("ignore_merges") else {}
        self.ranks: dict[tuple[int, int], int] = {}
        self.made: dict[tuple[int, int], int] = {}
        self.byte_ids = [self.all.get(piece) for piece in BYTE_PIECES] if model.get("byte_fallback") else None
        for rank, merge in enumerate(model["merges"]):
            self._add_merge(rank, merge, hidden)
        # Where no option looks at where a piece begins or ends, it can be cut where no token goes on.
        # Unknown characters matter too: left out, they let neighbours meet, and as tokens they can be merged, or fused.
        merged = {token for pair in self.ranks for token in pair}
        all_bytes = self.byte_ids is not None and None not in self.byte_ids and merged.isdisjoint(self.byte_ids)
        unk_id = self.all.get(self.unk_token or "")
        alone = unk_id is not None and unk_id not in merged and not self.fuse_unk and self.byte_ids is None
        plain = not (self.prefix or self.suffix or self.whole) and (all_bytes or alone)
        self.cuts = Cuts(self.vocab, split=False) if plain else None

    def _add_merge(self, rank: int, merge: Any, hidden: Collection[str]) -> None:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise InputError(f"{self.where}: merge {rank} is {merge!r}, expected two tokens; get the file again")
        left, right = pair
        joined = left + right.encode()[len(self.prefix.encode()) :].decode()
        for token in (left, right, joined):
            if token not in self.all:
                raise InputError(f"{self.where}: merge {rank} needs the token {token!r}, which is not in vocab; add it")
        if not hidden or not {left, right, joined} & {*hidden}:
            ids = self.vocab[left], self.vocab[right]
            self.ranks[ids], self.made[ids] = rank, self.vocab[joined]

    def __call__(self, piece: str) -> list[int]:
        if piece in self.whole:
            return [self.whole[piece]]
        words = [piece] if self.cuts is None else self.cuts.words(piece)
        return [i for word in words for i in merge_pairs(self._symbols(word), self.ranks, self.made)]

    def _symbols(self, word: str) -> list[int]:
        """The ids of the characters; unknown ones are written as the model does, or left out."""
        ids: list[int] = []
        waiting: list[int] = []  # ids of unknown characters, until a token follows
        for place, character in enumerate(word):
            symbol = (self.prefix if place else "") + character + (self.suffix if place == len(word) - 1 else "")
            if symbol in self.vocab:
                ids += [*waiting, self.vocab[symbol]]
                waiting = []
            elif (of_bytes := self._ids_of_bytes(symbol)) is not None:
                ids += of_bytes  # before the waiting ids, as in Hugging Face's code
            elif self.unk_token is not None and not (waiting and self.fuse_unk):
                ids += waiting
                waiting = [unknown_id(self.where, self.all, self.unk_token)]
        return ids + waiting

    def _ids_of_bytes(self, symbol: str) -> list[int] | None:
        """The ids of the bytes of a symbol; None where the vocabulary lacks one of them."""
        found = [self.byte_ids[byte] for byte in symbol.encode()] if self.byte_ids else [None]
        return None if None in found else [i for i in found if i is not None]


def read_unk_token(where: str, model: Component) -> str | None:
    """The token of unknown text, or None."""
    return None if model.get("unk_token") is None else text_option(where, model, "unk_token")


def unknown_id(where: str, vocab: Mapping[str, int], unk_token: str | None) -> int:
    """The id of unknown text.

    Raises: InputError where the vocabulary has none.
    """
    if unk_token is None or unk_token not in vocab:
        raise InputError(
            f"{where}: the text has something that is not a token, and unk_token {unk_token!r} is not a token either; "
            "give text of the vocabulary's characters"
        )
    return vocab[unk_token]


class WordPiece:
    """The longest tokens from left to right; one unknown token for a long piece, or one that tokens cannot fill."""

    def __init__(self, where: str, model: Component, hidden: Collection[str]):
        self.where, self.all, self.unk_token = where, read_vocab(where, model), read_unk_token(where, model)
        self.vocab = {token: i for token, i in self.all.items() if token not in hidden}
        self.prefix = text_option(where, model, "continuing_subword_prefix", "##")
        self.most = number_option(where, model, "max_input_chars_per_word")
        self.longest = max(map(len, self.vocab), default=0)

    def __call__(self, piece: str) -> list[int]:
        ids: list[int] = []
        start = 0
        while start < len(piece) <= self.most:
            prefix = self.prefix if start else ""
            for end in range(min(len(piece), start + self.longest), start, -1):
                if (i := self.vocab.get(prefix + piece[start:end])) is not None:
                    break
            else:
                break
            ids.append(i)
            start = end
        return ids if start == len(piece) else [unknown_id(self.where, self.all, self.unk_token)]


class WordLevel:
    """A piece is a token as a whole, or unknown."""

    def __init__(self, where: str, model: Component, hidden: Collection[str]):
        self.where, self.all, self.unk_token = where, read_vocab(where, model), read_unk_token(where, model)
        self.vocab = {token: i for token, i in self.all.items() if token not in hidden}

    def __call__(self, piece: str) -> list[int]:
        if (i := self.vocab.get(piece)) is None:
            i = unknown_id(self.where, self.all, self.unk_token)
        return [i]


def unigram(where: str, model: Component, hidden: Collection[str]) -> Model:
    """The most probable way to cut a piece, as in `UnigramTokenizer`."""
    vocab = read_vocab(where, model)
    return UnigramTokenizer(
        [(piece, score) for piece, score in model["vocab"]],
        model.get("unk_id"),
        {token: i for token, i in vocab.items() if token in hidden},
        byte_fallback=bool(model.get("byte_fallback")),
    ).ids_of
