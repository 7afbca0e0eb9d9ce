"""Sketches: all that the search for duplicates needs to know about each document, in files mapped into memory.

| file     | content, for each document that no earlier stage dropped, in input order                                |
|----------|---------------------------------------------------------------------------------------------------------|
| rows     | one record of `row_type`: hashes of the id, the text and its words, counts, and the keys of its bands     |
| shingles | its shingles, 32 bits of each, sorted, without repetitions: J of two documents is made of these           |
| repeated | 64-bit hashes of its lines and paragraphs, where these are looked for                                     |
| ids      | its id in UTF-8                                                                                          |

With 25 bands a row has 252 bytes, and the shingles have 4 bytes a word, about 0.7 of the bytes of an English text. 32
bits are enough for J: beside a document with 10,000 shingles, each of another document has a chance of 10,000 / 2^32 to
be mistaken for one of them.

The files grow chunk by chunk, and `done.json` says how many bytes of each are whole. A run that was killed cuts them to
these lengths and goes on with the next chunk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minillm.corpus.document import Document
from minillm.corpus.duplicates.lsh import band_keys
from minillm.corpus.duplicates.minhash import multipliers, signature
from minillm.corpus.duplicates.options import Dedup
from minillm.corpus.duplicates.repeated import repeated_hashes
from minillm.corpus.stage import map_chunks
from minillm.corpus.words import ngram_hashes, word_hashes

FILES = ("rows", "shingles", "repeated", "ids")


def row_type(bands: int) -> np.dtype:
    """The record of a document."""
    return np.dtype(
        [
            ("id", "<u8"),  # hash of its id
            ("text", "<u8", 2),  # hash of its text, as it is
            ("words", "<u8", 2),  # hash of its words; of its text where it has none
            ("shingles", "<u4"),  # how many different ones it has
            ("repeated", "<u4"),  # how many lines and paragraphs
            ("id_bytes", "<u4"),
            ("keys", "<u8", (bands,)),
        ]
    )


def id_hash(document: str) -> int:
    """The hash of a document's id."""
    return int.from_bytes(hashlib.blake2b(_bytes(document), digest_size=8).digest(), "little")


class Sketcher:
    """The function of a chunk of documents that makes its part of each file; it is sent to worker processes."""

    def __init__(self, options: Dedup):
        self.options = options
        self.orders = multipliers(options.bands * options.rows, options.seed)

    def __call__(self, documents: list[Document]) -> dict[str, bytes]:
        """The bytes to append to each file."""
        options = self.options
        kept = [document for document in documents if document.dropped is None]
        words = word_hashes([document.text for document in kept], options.numbers)
        shingles = ngram_hashes(words.hashes, options.ngram)
        rows = np.zeros(len(kept), row_type(options.bands))
        signatures = np.zeros((len(kept), len(self.orders)), np.uint32)
        sets, of_texts, of_words = [], [], []
        for number, document in enumerate(kept):
            start, end = words.ends[number : number + 2].tolist()
            of_texts.append(_digest(_bytes(document.text)))
            of_words.append(_digest(words.hashes[start:end].tobytes()) if end > start else of_texts[-1])
            own = shingles[start : max(start, end - options.ngram + 1)]
            own.sort()  # in place: no other document reads it
            if len(own):
                signatures[number] = signature(own, self.orders)
            sets.append(_different((own >> np.uint64(32)).astype("<u4")))
        ids = [_bytes(document.id) for document in kept]
        repeated, counts = repeated_hashes([document.text for document in kept], options)
        rows["id"] = [id_hash(document.id) for document in kept]
        rows["text"] = np.frombuffer(b"".join(of_texts), "<u8").reshape(-1, 2)
        rows["words"] = np.frombuffer(b"".join(of_words), "<u8").reshape(-1, 2)
        rows["shingles"], rows["repeated"] = [len(own) for own in sets], counts
        rows["id_bytes"] = [len(one) for one in ids]
        rows["keys"] = band_keys(signatures, options.bands)
        return {
            "rows": rows.tobytes(),
            "shingles": b"".join(own.tobytes() for own in sets),
            "repeated": repeated.astype("<u8").tobytes(),
            "ids": b"".join(ids),
        }


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _different(ordered: np.ndarray) -> np.ndarray:
    """A sorted array without repetitions."""
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def write_sketches(
    options: Dedup, inputs: Sequence[Path], folder: Path, identity: dict[str, Any], processes: int
) -> None:
    """Write the four files, or what is missing of them; `identity` says whose they are."""
    done: dict[str, Any] = {"identity": identity, "chunks": 0, "bytes": dict.fromkeys(FILES, 0)}
    before = read_state(folder)
    if before.get("identity") == identity and "chunks" in before and _are_there(folder, before["bytes"]):
        done = before
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "ab")) for name in FILES}
        for name, file in files.items():
            file.truncate(done["bytes"][name])
        for parts in map_chunks(Sketcher(options), inputs, processes, done["chunks"], title="dedup, first pass"):
            for name, data in parts.items():
                files[name].write(data)
                files[name].flush()
                os.fsync(files[name].fileno())
                done["bytes"][name] += len(data)
            done["chunks"] += 1
            write_state(folder, done)


def _are_there(folder: Path, sizes: dict[str, int]) -> bool:
    """True if no file of a folder is shorter than its whole part."""
    return all((folder / name).is_file() and (folder / name).stat().st_size >= sizes[name] for name in FILES)


def read_state(folder: Path) -> dict[str, Any]:
    """The state of the files in a folder: how much of them is whole, and whose they are; empty where nobody knows."""
    try:
        found = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write down what is whole now, all at once."""
    part = folder / "done.json.part"
    part.write_text(json.dumps(state), encoding="utf-8")
    os.replace(part, folder / "done.json")


class Sketches:
    """The four files of a folder, mapped into memory: only what is read takes room."""

    def __init__(self, folder: Path, bands: int):
        self.folder = folder
        self.rows = mapped(folder / "rows", row_type(bands))
        self.shingles = mapped(folder / "shingles", np.dtype("<u4"))
        self.repeated = mapped(folder / "repeated", np.dtype("<u8"))
        self.shingle_ends = np.concatenate([[0], np.cumsum(self.rows["shingles"], dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.rows)

    def shingles_of(self, number: int) -> np.ndarray:
        """The shingles of a document, sorted."""
        return self.shingles[self.shingle_ends[number] : self.shingle_ends[number + 1]]


def mapped(path: Path, kind: np.dtype) -> np.ndarray:
    """The records of a file, mapped into memory; an empty file cannot be mapped."""
    if path.stat().st_size == 0:
        return np.zeros(0, kind)
    return np.memmap(path, kind, mode="r").view(np.ndarray)
