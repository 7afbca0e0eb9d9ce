"""The stage `shards`: documents as token ids, in the files that `minillm train --data` reads (data/shards.py).

Each document is the special tokens that the tokenizer puts in front, its text, and the token that ends a text. That
token tells `minillm train --boundaries` where documents end. A text that spells it ("<|endoftext|>") is encoded as the
letters it is, so no text can end a document.

A part is one shard, which workers encode and which grows by chunks: a run that was killed goes on within it. Its header
is written last, when the number of ids is known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minillm.corpus.document import Document, read_documents
from minillm.corpus.journal import Done, Journal
from minillm.corpus.split import spread
from minillm.corpus.stage import append, map_chunks, open_journal, run_chunks, size_of
from minillm.data.shard_file import HEADER_BYTES, dtype_for, seal_shard
from minillm.errors import InputError
from minillm.tokenizers import BPETokenizer, CharacterTokenizer, Tokenizer, UnigramTokenizer
from minillm.tokenizers.base import END_OF_TEXT

TRAINED = ("bpe", "unigram", "char")  # tokenizers that are trained here
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Shards:
    """Encode the parts of a split as token shards, with a tokenizer that is given or trained on the training part."""

    tokenizer: str = "bpe"
    """`bpe` or `unigram`, trained on the training part; `char`, the characters of all parts; or a folder with a saved
    tokenizer, or a model that has one."""
    vocab_size: int = 4096
    """Number of tokens of a tokenizer that is trained here; of `char` it is what the text has."""
    tokenizer_bytes: int = 50_000_000
    """Most bytes of text that a tokenizer is trained on: whole documents, chosen by the hash of their ids."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "tokenizer_bytes"):
            if getattr(self, name) < 1:
                raise InputError(f"shards: {name} is {getattr(self, name)}; give 1 or more")


def write_parts(
    parts: Mapping[str, Path], out: Path, options: Shards, processes: int = 1, progress: bool = True
) -> dict[str, int]:
    """Write train_00000.bin, validation_00000.bin and the folder `tokenizer`; returns the number of ids of each part.

    parts: the .jsonl file of each; "train" is among them.
    Raises: InputError for a tokenizer without a token that ends a text, and for a part without text.
    """
    tokenizer = tokenizer_for(parts, out / "tokenizer", options, processes, progress)
    if tokenizer.eos_id is None:
        raise InputError(
            f"shards: the tokenizer {options.tokenizer} has no token that ends a text, so documents would run into "
            f"each other; train one with {END_OF_TEXT} among its special tokens"
        )
    return {name: write_part(name, path, out, tokenizer, processes, progress) for name, path in parts.items()}


def tokenizer_for(
    parts: Mapping[str, Path], folder: Path, options: Shards, processes: int, progress: bool
) -> Tokenizer:
    """The tokenizer of the settings, saved in the folder: a copy of one that is given, or one that is trained."""
    if options.tokenizer not in TRAINED:
        from minillm.beside import load_tokenizer

        tokenizer = load_tokenizer(options.tokenizer)
        shutil.rmtree(folder, ignore_errors=True)
        tokenizer.save(folder)
        return tokenizer
    record = folder.with_name("tokenizer_record.json")  # there is a tokenizer.json in the folder already
    inputs = list(parts.values()) if options.tokenizer == "char" else [parts["train"]]
    journal = open_journal("tokenizer", dataclasses.asdict(options), inputs, record, [], say=False)
    with contextlib.closing(journal):
        if not (journal.done and folder.is_dir()):
            tokenizer = trained(inputs, options, processes, progress)
            shutil.rmtree(folder, ignore_errors=True)
            tokenizer.save(folder)
            journal.finish()
    return Tokenizer.load(folder)


def trained(inputs: list[Path], options: Shards, processes: int, progress: bool) -> Tokenizer:
    """A tokenizer that is trained on documents of the inputs."""
    if options.tokenizer == "char":
        characters: set[str] = set().union(*map_chunks(_characters, inputs, processes))
        return CharacterTokenizer.train("".join(sorted(characters)), (END_OF_TEXT,))
    share = options.tokenizer_bytes / max(1, sum(map_chunks(_size, inputs, processes)))
    documents = (document for path in inputs for document in read_documents(path))
    texts = (one.text for one in documents if one.dropped is None and spread(f"tokenizer {one.id}") < share)
    if options.tokenizer == "unigram":
        return UnigramTokenizer.train(texts, options.vocab_size, (END_OF_TEXT,), progress=progress)
    return BPETokenizer.train(texts, options.vocab_size, (END_OF_TEXT,), progress=progress)


def _size(documents: list[Document]) -> int:
    return sum(size_of(document) for document in documents if document.dropped is None)


def _characters(documents: list[Document]) -> set[str]:
    return {character for document in documents if document.dropped is None for character in document.text}


@functools.cache
def _loaded(folder: Path, fingerprint: str) -> Tokenizer:
    """The tokenizer with this fingerprint, which a process loads once."""
    return Tokenizer.load(folder)


@dataclass(frozen=True)
class Encode:
    """The ids of the kept documents of a chunk, as the bytes of a shard."""

    folder: Path
    fingerprint: str  # of the tokenizer in the folder

    def __call__(self, documents: list[Document]) -> Done:
        tokenizer = _loaded(self.folder, self.fingerprint)
        end = tokenizer.eos_id
        ids: list[int | None] = []
        for document in documents:
            if document.dropped is None:
                ids += tokenizer.build_inputs_with_special_tokens(tokenizer.encode(document.text))
                ids += [end] if ids[-1:] != [end] else []  # some tokenizers put it there themselves
        kept = sum(document.dropped is None for document in documents)
        data = np.array(ids, dtype_for(tokenizer.vocab_size)).tobytes()
        return Done([data], Counter(kept=kept), Counter(kept=_size(documents)))


def write_part(name: str, path: Path, out: Path, tokenizer: Tokenizer, processes: int, progress: bool) -> int:
    """Encode a part as a shard; returns the number of ids."""
    fingerprint, shard = tokenizer.fingerprint(), out / f"{name}_00000.bin"
    settings = {"tokenizer": fingerprint, "around": [list(side) for side in tokenizer.around]}
    journal = open_journal("shards", settings, [path], out / f"{name}.json", [shard], progress)
    with contextlib.closing(journal):
        if not journal.done:
            if not journal.chunks:
                append(journal, Done([bytes(HEADER_BYTES)]))  # the header follows when the count is known
            work = Encode(out / "tokenizer", fingerprint)
            run_chunks(journal, f"shards: {name}", work, [path], processes, progress, start=journal.chunks - 1)
            if not ids_in(journal, tokenizer):
                raise InputError(f"shards: {path} has no text; give the output of `minillm data split`")
            with open(journal.parts[0], "r+b") as file:
                table = seal_shard(file, ids_in(journal, tokenizer), tokenizer.vocab_size, fingerprint)
            journal.state |= {"ids": ids_in(journal, tokenizer)}
            journal.state["bytes"][0] += table
            journal.finish()
    return journal.state.get("ids", ids_in(journal, tokenizer))  # older records have none, nor had files a table


def ids_in(journal: Journal, tokenizer: Tokenizer) -> int:
    """The number of ids that have been written."""
    return (journal.state["bytes"][0] - HEADER_BYTES) // dtype_for(tokenizer.vocab_size).itemsize
