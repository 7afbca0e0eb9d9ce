"""`minillm tokenizer train`, `encode` and `decode`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from minillm.beside import load_tokenizer
from minillm.counted import counted
from minillm.errors import InputError
from minillm.files import sweep
from minillm.options import Positional, read


@dataclass(frozen=True)
class TokenizerTrain:
    """Train a tokenizer on a text and save it."""

    out: Positional[Path]
    """Folder to save it in."""
    data: str = "builtin"
    """Text: a file, a folder, a glob pattern, a .jsonl, or `builtin`."""
    field: str | None = None
    """Field of a .jsonl line that holds the text; `text` by default."""
    kind: Literal["bpe", "wordpiece", "unigram", "char"] = "bpe"
    """Byte-level BPE, BERT's WordPiece, Unigram, or one token a character."""
    vocab_size: int = 1024
    """Number of tokens, characters or bytes and special tokens included; of `char` it is what the text has."""


def tokenizer_train(arguments: list[str]) -> None:
    """Train a tokenizer and save it."""
    from minillm.data import read_text
    from minillm.tokenizers import BPETokenizer, CharacterTokenizer, UnigramTokenizer, WordPieceTokenizer

    given = read(TokenizerTrain, "tokenizer train", arguments)
    if given.out.is_dir():
        sweep(given.out)  # what a process that was killed has left
    if given.out.exists() and any(given.out.iterdir() if given.out.is_dir() else [given.out]):
        raise InputError(
            f"tokenizer train: {given.out} exists already and is never written over; choose another folder"
        )
    text = read_text(given.data, given.field)
    if given.kind == "char":
        tokenizer: Any = CharacterTokenizer.train(text)
    else:
        kinds: dict[str, Any] = {"bpe": BPETokenizer, "wordpiece": WordPieceTokenizer, "unigram": UnigramTokenizer}
        tokenizer = kinds[given.kind].train(text, given.vocab_size, progress=True)
    tokenizer.save(given.out)
    print(f"{counted(tokenizer.vocab_size, 'token')}, saved in {given.out}")


@dataclass(frozen=True)
class TokenizerEncode:
    """Print the ids of a text, or write a corpus as token shards to train on."""

    tokenizer: Positional[Path]
    """Folder of a saved tokenizer, or a model with one: a run directory, a Hugging Face folder, a .gguf."""
    text: Positional[str | None] = None
    """Text to encode."""
    data: str | None = None
    """Instead of a text: a file, a folder, a glob pattern, a .jsonl, or `builtin`."""
    field: str | None = None
    """Field of a .jsonl line that holds the text; `text` by default."""
    out: Path | None = None
    """With --data: folder for train_*.bin and validation_*.bin, which `minillm train --data` reads."""
    validation_fraction: float = 0.1
    """Share of the text, at its end, for validation."""


def tokenizer_encode(arguments: list[str]) -> None:
    """Print the ids of a text, or write a corpus as shards."""
    from minillm.data import read_text, split_text, write_shards

    given = read(TokenizerEncode, "tokenizer encode", arguments)
    if given.text is not None and given.data is None:
        if given.field is not None:
            raise InputError("tokenizer encode: --field is for --data, of which it names a field; leave it out")
        text = given.text
    elif given.text is None and given.data is not None:
        text = read_text(given.data, given.field)
    else:
        raise InputError("tokenizer encode: give a text, or --data with where the text is; one of the two")
    tokenizer = load_tokenizer(given.tokenizer)
    if given.out is None:
        print(*tokenizer.encode(text))
        return
    parts = split_text(text, given.validation_fraction)
    # Both parts are encoded before either is written, so that a character without a token leaves nothing behind.
    encoded = [np.fromiter(tokenizer.encode_iterable([part]), np.uint32) for part in parts]
    for name, ids in zip(("train", "validation"), encoded, strict=True):
        if not len(ids):
            raise InputError(
                f"tokenizer encode: no text is left for {name} when {given.validation_fraction} of "
                f"{len(text)} characters are for validation; change --validation-fraction, or give more text"
            )
    for name, ids in zip(("train", "validation"), encoded, strict=True):
        print(*write_shards(given.out, name, ids, tokenizer.vocab_size, tokenizer.fingerprint()))


@dataclass(frozen=True)
class TokenizerDecode:
    """Print the text of token ids."""

    tokenizer: Positional[Path]
    """Folder of a saved tokenizer, or a model with one."""
    ids: Positional[tuple[int, ...]]
    """Token ids."""


def tokenizer_decode(arguments: list[str]) -> None:
    """Print the text of ids."""
    given = read(TokenizerDecode, "tokenizer decode", arguments)
    print(load_tokenizer(given.tokenizer).decode(given.ids))
