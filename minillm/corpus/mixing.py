"""Mixing sources: how often each document comes, and in which order.

    weights   the shares that sources shall have in the bytes of text of the mixture. A tokenizer makes nearly equally
              many tokens of a byte everywhere, so these are nearly the shares in tokens, and need no tokenizer.
    epochs    how often a document of the source comes: 2.5 is twice, and a third time for half of the documents. With
              weights, the most that it may come.

With weights w and epochs e, a source of b bytes comes t w / b times, where t is the largest total for which no source
comes more often than it may: t = min over the sources of e b / w. Without weights, every source comes e times.

A third copy of half the documents is one of those whose hash of (seed, id) is below 0.5: a whole document or none.
All copies lie in one random order: the permutation of NumPy's Philox generator with the key (seed, number of copies).
It depends on nothing else, so every run has it.

Memory: 30 bytes for each document and each copy. The order is one of offsets into a plain file of all lines, which
lies beside the output while it is written, and is as large as the documents without compression.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minillm.corpus.document import Document, compressed
from minillm.corpus.journal import Done
from minillm.corpus.split import spread
from minillm.corpus.stage import CHUNK_BYTES, append, map_chunks, open_journal, size_of, watched
from minillm.errors import InputError


@dataclass(frozen=True)
class Mixture:
    """The weight of each source by its name, and how often its documents come; a source without either comes once."""

    weights: Mapping[str, float]
    epochs: Mapping[str, float]
    seed: int = 0

    def __post_init__(self) -> None:
        for what, numbers in (("weight", self.weights), ("epochs", self.epochs)):
            for source, number in numbers.items():
                if not 0 < number < float("inf"):
                    raise InputError(f"mix: the {what} of source {source!r} is {number}; give a number above 0")


class Index(NamedTuple):
    """The places of the documents in the plain file, and what decides how often each comes; (N,) each."""

    starts: np.ndarray  # int64, of the lines
    lengths: np.ndarray  # int64, of the lines
    sizes: np.ndarray  # int64, bytes of the texts
    sources: np.ndarray  # int32, into `names`
    places: np.ndarray  # float64, the hash of (seed, id)
    names: list[str]


class Copies(NamedTuple):
    """A piece of the output: lines of the plain file, in order."""

    starts: np.ndarray  # int64
    lengths: np.ndarray  # int64
    sizes: np.ndarray  # int64
    sources: list[str]
    read: int  # bytes of the output's lines with this piece


def mix(
    inputs: Sequence[Path], out: Path, mixture: Mixture, processes: int = 1, progress: bool = True
) -> dict[str, float]:
    """Write the documents of the inputs in one random order, each as often as its source comes; returns the epochs.

    Raises: InputError where some sources have a weight and others none, or a name is of no source.
    """
    settings = {"weights": dict(mixture.weights), "epochs": dict(mixture.epochs), "seed": mixture.seed}
    journal = open_journal("mix", settings, inputs, out.with_name("mix.json"), [out], progress)
    with contextlib.closing(journal):
        if not journal.done:
            plain = out.with_name(f".{out.name}.plain")
            try:
                index = write_plain(inputs, plain, mixture.seed, processes, progress)
                epochs = epochs_of(bytes_by_source(index), mixture)
                pieces = pieces_of(index, order_of(index, epochs, mixture.seed))
                left = itertools.islice(pieces, journal.chunks, None)
                found = watched(_Gather(plain, out), left, processes, lambda read: None)
                with contextlib.closing(found):
                    for done in found:
                        append(journal, done)
            finally:
                plain.unlink(missing_ok=True)
            journal.state["mixture"] = epochs
            journal.finish()
    return journal.state["mixture"]


@dataclass(frozen=True)
class _Lines:
    """The lines of a chunk of documents, and what the index says of them; dropped ones are left out."""

    seed: int

    def __call__(self, documents: list[Document]) -> tuple[list[bytes], list[tuple[str, int, float]]]:
        kept = [document for document in documents if document.dropped is None]
        facts = [(one.source, size_of(one), spread(f"mix {self.seed} {one.id}")) for one in kept]
        return [document.to_line() for document in kept], facts


def write_plain(inputs: Sequence[Path], plain: Path, seed: int, processes: int, progress: bool) -> Index:
    """Write the lines of all documents one behind the other, and return where they are."""
    lengths, sizes, sources, places = [], [], [], []
    names: dict[str, int] = {}
    title = "mix: reading" if progress else None
    with open(plain, "wb") as file, contextlib.closing(map_chunks(_Lines(seed), inputs, processes, 0, title)) as found:
        for lines, facts in found:
            file.writelines(lines)
            lengths.append(np.array([len(line) for line in lines], np.int64))
            sizes.append(np.array([size for _, size, _ in facts], np.int64))
            sources.append(np.array([names.setdefault(name, len(names)) for name, _, _ in facts], np.int32))
            places.append(np.array([place for _, _, place in facts]))
    if not names:
        raise InputError(f"mix: {', '.join(map(str, inputs))} has no document that was kept; give the output of split")
    together = np.concatenate(lengths)  # (N,)
    starts = np.cumsum(together) - together
    return Index(starts, together, np.concatenate(sizes), np.concatenate(sources), np.concatenate(places), list(names))


def bytes_by_source(index: Index) -> dict[str, int]:
    """Bytes of text of each source."""
    totals = np.bincount(index.sources, index.sizes, len(index.names))
    return {name: int(total) for name, total in zip(index.names, totals, strict=True)}


def epochs_of(sizes: Mapping[str, int], mixture: Mixture) -> dict[str, float]:
    """The number of times that the documents of each source come, from the bytes of the sources."""
    weights, limits = mixture.weights, {name: mixture.epochs.get(name, 1.0) for name in sizes}
    if unknown := (weights.keys() | mixture.epochs.keys()) - sizes.keys():
        raise InputError(
            f"mix: no document that was kept is of source {min(unknown)!r}, but of {', '.join(sizes)}; leave its "
            "weight and epochs out"
        )
    if not weights:
        return limits
    if without := sizes.keys() - weights.keys():
        raise InputError(f"mix: source {min(without)!r} has no weight, but others have; give all sources one, or none")
    total = min(limits[name] * size / weights[name] for name, size in sizes.items() if size)
    return {name: total * weights[name] / size if size else limits[name] for name, size in sizes.items()}


def order_of(index: Index, epochs: Mapping[str, float], seed: int) -> np.ndarray:
    """The numbers of the documents in the order in which they come, each as often as its source says; (M,), int64."""
    times = np.array([epochs[name] for name in index.names])[index.sources]  # (N,)
    whole = np.floor(times)
    copies = (whole + (index.places < times - whole)).astype(np.int64)
    order = np.repeat(np.arange(len(copies)), copies)
    key = np.array([seed, len(order)], np.uint64)
    np.random.Generator(np.random.Philox(key=key)).shuffle(order)
    return order


def pieces_of(index: Index, order: np.ndarray) -> Iterator[Copies]:
    """The order in pieces of about CHUNK_BYTES of lines."""
    ends = np.cumsum(index.lengths[order])
    first = 0
    while first < len(order):
        before = ends[first - 1] if first else 0
        last = min(int(np.searchsorted(ends, before + CHUNK_BYTES)) + 1, len(order))
        chosen = order[first:last]
        sources = [index.names[source] for source in index.sources[chosen]]
        yield Copies(index.starts[chosen], index.lengths[chosen], index.sizes[chosen], sources, int(ends[last - 1]))
        first = last


@dataclass(frozen=True)
class _Gather:
    """The lines of a piece, from the plain file."""

    plain: Path
    out: Path

    def __call__(self, piece: Copies) -> Done:
        lines = []
        with open(self.plain, "rb") as file:
            for start, length in zip(piece.starts.tolist(), piece.lengths.tolist(), strict=True):
                file.seek(start)
                lines.append(file.read(length))
        sizes: Counter = Counter()
        for source, size in zip(piece.sources, piece.sizes.tolist(), strict=True):
            sizes[source] += size
        return Done([compressed(b"".join(lines), self.out)], Counter(piece.sources), sizes)
