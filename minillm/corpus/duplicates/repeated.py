"""Lines and paragraphs that stand in many documents: menus, notices, footers.

A line (or paragraph) that stands in more than N documents is removed from all but the first of them. Lines are equal if
their words are (words.py); those without words, and those shorter than `shortest` characters, such as "Yes.", stay.
Only documents that stay are counted, once each, however often a line stands in one of them.

Counting needs one hash of 64 bits for each line, on disk. They are counted in parts that fit in memory: each part takes
a range of hashes, so that all places of a line are in one part, and the parts come in the order of their hashes. The
lowest bit of a hash tells paragraphs from lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from minillm.corpus.document import Document
from minillm.corpus.duplicates.options import Dedup
from minillm.corpus.words import text_hashes, word_hashes

BETWEEN = {"lines": re.compile(r"(\n)"), "paragraphs": re.compile(r"(\n[^\S\n]*(?:\n[^\S\n]*)+)")}
KINDS = tuple(BETWEEN)  # the lowest bit of a hash is the kind's place here
PART = 1 << 23  # hashes that are counted at once: 64 MiB, and three times as much to sort them


def kinds_of(options: Dedup) -> list[str]:
    """The kinds of pieces that are removed, the larger first."""
    return [kind for kind in reversed(KINDS) if getattr(options, kind) is not None]


class Pieces:
    """The lines or paragraphs of several texts: parts, of each text, in which separators stand between pieces.

    hashes (P,): of all pieces; 0 or 1 for one that always stays. owners (P,): the numbers of their texts.
    """

    def __init__(self, texts: Sequence[str], kind: str, options: Dedup):
        self.parts = [BETWEEN[kind].split(text) for text in texts]
        pieces = [piece for parts in self.parts for piece in parts[::2]]
        long = [piece if len(piece.strip()) >= options.shortest else "" for piece in pieces]
        self.hashes = text_hashes(word_hashes(long, options.numbers)) & ~np.uint64(1) | np.uint64(KINDS.index(kind))
        self.owners = np.repeat(np.arange(len(texts)), [len(parts) // 2 + 1 for parts in self.parts])


def repeated_hashes(texts: Sequence[str], options: Dedup) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of all pieces that could be removed, each once for each text, and how many each text (N,) has."""
    found = [Pieces(texts, kind, options) for kind in kinds_of(options)]
    hashes = np.concatenate([np.zeros(0, np.uint64), *(pieces.hashes for pieces in found)])
    owners = np.concatenate([np.zeros(0, np.int64), *(pieces.owners for pieces in found)])
    order = np.lexsort((hashes, owners))
    hashes, owners = hashes[order], owners[order]
    new = hashes > 1
    new[1:] &= (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return hashes[new], np.bincount(owners[new], minlength=len(texts))


def frequent(
    hashes: np.ndarray, counts: np.ndarray, kept: np.ndarray, options: Dedup
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The hashes of pieces that stand in too many documents, in order, and the first document of each, part by part.

    Shapes: hashes, those of all documents, one after the other; counts (N,), how many each document has; kept (N,),
    True for documents that stay.
    """
    limits = np.array([getattr(options, kind) or np.inf for kind in KINDS])
    ends = np.cumsum(counts, dtype=np.int64)
    parts = -(-len(hashes) // PART)
    for part in range(parts):
        found, owners = [], []
        for start in range(0, len(hashes), PART):
            block = hashes[start : start + PART]
            owner = np.searchsorted(ends, np.arange(start, start + len(block)), side="right")
            mine = kept[owner] & ((block >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32) == part)
            found.append(block[mine])
            owners.append(owner[mine])
        ordered = np.concatenate(found)
        order = np.argsort(ordered, kind="stable")  # so the first of equal ones is that of the first document
        ordered = ordered[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
        documents = np.diff(starts, append=len(ordered))
        starts = starts[documents > limits[(ordered[starts] & np.uint64(1)).astype(int)]]
        yield ordered[starts], np.concatenate(owners)[order[starts]]


def without_repeated(
    documents: Sequence[Document], own: np.ndarray, hashes: np.ndarray, firsts: np.ndarray, options: Dedup
) -> list[dict[str, int]]:
    """Remove the frequent pieces from all documents but their first; returns how many from each, by kind.

    Shapes: own (N,), the hashes of the documents' ids; hashes, firsts (F,), all frequent pieces, sorted, and the
    hashes of the ids of their first documents.
    """
    counts: list[dict[str, int]] = [{} for _ in documents]
    for kind in kinds_of(options) if len(hashes) else ():
        pieces = Pieces([document.text for document in documents], kind, options)
        places = np.minimum(np.searchsorted(hashes, pieces.hashes), len(hashes) - 1)
        removed = (hashes[places] == pieces.hashes) & (firsts[places] != own[pieces.owners])
        for number in np.unique(pieces.owners[removed]).tolist():
            start, end = np.searchsorted(pieces.owners, [number, number + 1])
            gone = removed[start:end]
            parts = pieces.parts[number]
            stays = np.flatnonzero(~gone).tolist()
            text = "".join(part for place in stays for part in parts[2 * place : 2 * place + 2])
            documents[number].text = text.rstrip() if gone[-1] else text
            counts[number][kind] = int(gone.sum())
    return counts
