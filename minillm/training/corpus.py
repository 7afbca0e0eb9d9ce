"""The text of a training: a tokenizer, the tokens of both parts, and the batches made of them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm.data import Batches, Tokens, open_tokens, read_text, split_text
from minillm.errors import InputError
from minillm.tokenizers import BPETokenizer, CharacterTokenizer, Tokenizer, UnigramTokenizer, WordPieceTokenizer


class Corpus(NamedTuple):
    """The tokenizer and both parts of the data; the fingerprint tells one corpus from another."""

    tokenizer: Tokenizer
    train: Tokens | np.ndarray  # (N,) token ids, uint16 where all ids fit, otherwise uint32
    validation: Tokens | np.ndarray  # the same for the validation part

    def fingerprint(self) -> str:
        """The numbers of tokens, the tokenizer, and a checksum of the first million tokens of each part."""
        checksum = 0
        for tokens in (self.train, self.validation):
            checksum = zlib.crc32(np.asarray(tokens[: 1 << 20], np.uint32).tobytes(), checksum)
        return f"{len(self.train)}+{len(self.validation)}-{self.tokenizer.fingerprint()}-{checksum:08x}"


KINDS = ("bpe", "char", "wordpiece", "unigram")  # tokenizers that are trained here


def load_corpus(config: Any, tokenizer: Tokenizer | None = None, special_tokens: Sequence[str] | None = None) -> Corpus:
    """Read, split and encode the text of a TrainConfig; train a tokenizer if none is given.

    A tokenizer is trained on the training part. That of characters gets the characters of both parts, so that
    validation text has none that it does not know. special_tokens: of a tokenizer that is trained; None: its own.

    A folder with `train_*.bin` and `validation_*.bin` holds tokens already; it needs the tokenizer that made them.
    """
    tokenizer = saved_tokenizer(config) if tokenizer is None else tokenizer
    folder = Path(config.data)
    if config.data != "builtin" and (shards := sorted(folder.glob("train_*.bin"))):
        if tokenizer is None:
            raise InputError(f"train: {folder} holds tokens; say whose with --tokenizer FOLDER")
        validation_shards = sorted(folder.glob("validation_*.bin"))
        if not validation_shards:
            raise InputError(
                f"train: {folder} has train_*.bin, but no validation_*.bin; make both with `minillm tokenizer encode`"
            )
        if config.field is not None:
            raise InputError(
                f"train: field={config.field!r} is for .jsonl files, but {folder} holds tokens; leave it out"
            )
        fingerprint = tokenizer.fingerprint()
        return Corpus(tokenizer, open_tokens(shards, fingerprint), open_tokens(validation_shards, fingerprint))
    text, validation_text = split_text(read_text(config.data, config.field), config.validation_fraction)
    if tokenizer is None:
        both = text + validation_text if config.tokenizer == "char" else text
        tokenizer = train_tokenizer(config, both, special_tokens)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    return Corpus(
        tokenizer, np.array(tokenizer.encode(text), dtype), np.array(tokenizer.encode(validation_text), dtype)
    )  # (N,) each


def saved_tokenizer(config: Any) -> Tokenizer | None:
    """The tokenizer that the settings name by its folder; None where one is to be trained."""
    if config.tokenizer in KINDS:
        return None
    try:
        return Tokenizer.load(config.tokenizer)
    except InputError as error:
        raise InputError(f"{error}, or one of {', '.join(KINDS)}, which are trained here") from None


def train_tokenizer(config: Any, texts: str | Iterable[str], special_tokens: Sequence[str] | None = None) -> Tokenizer:
    """A tokenizer of the settings' kind and size, trained on these texts."""
    given: dict[str, Any] = {} if special_tokens is None else {"special_tokens": special_tokens}
    if config.tokenizer == "char":
        return CharacterTokenizer.train(texts, **given)
    kinds: dict[str, Any] = {"bpe": BPETokenizer, "wordpiece": WordPieceTokenizer, "unigram": UnigramTokenizer}
    return kinds[config.tokenizer].train(texts, config.model.vocab_size, progress=True, **given)


def make_batches(corpus: Corpus, config: Any, length: int | None = None) -> tuple[Batches, Batches]:
    """The batches of both parts of the corpus, of sequences of this length; None: the model's context."""
    context = length or config.model.context
    for part, tokens in (("training", corpus.train), ("validation", corpus.validation)):
        if len(tokens) <= context:
            raise InputError(
                f"train: the {part} text has {len(tokens)} tokens, but a context of {context} needs at least "
                f"{context + 1}; give more text, a smaller --context, or another --validation-fraction"
            )
    return (
        Batches(corpus.train, config.batch_size, context, config.seed, to_the_end=config.format > 1),
        Batches(corpus.validation, config.batch_size, context, config.seed, shuffle=False),
    )
