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
from collections.abc import Iterator

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


def repeated_hashes(text: str, options: Dedup) -> np.ndarray:
    """The hashes of the pieces of a text that could be removed, without repetitions: uint64."""
    found = [hashes_of(BETWEEN[kind].split(text)[::2], kind, options.shortest) for kind in kinds_of(options)]
    hashes = np.unique(np.concatenate([np.zeros(0, np.uint64), *found]))
    return hashes[hashes > 1].astype("<u8")


def hashes_of(pieces: list[str], kind: str, shortest: int) -> np.ndarray:
    """The hash of each piece (n,), uint64; 0 or 1 for one that always stays."""
    long = [piece if len(piece.strip()) >= shortest else "" for piece in pieces]
    return text_hashes(word_hashes(long)) & ~np.uint64(1) | np.uint64(KINDS.index(kind))


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
    document: Document, own: int, hashes: np.ndarray, firsts: np.ndarray, options: Dedup
) -> dict[str, int]:
    """Remove the frequent pieces of a document of which it is not the first; returns how many, by kind, if any.

    own: the hash of its id. Shapes: hashes, firsts (F,): of all frequent pieces, sorted, and the ids' of their firsts.
    """
    counts = {}
    for kind in kinds_of(options):
        pieces = BETWEEN[kind].split(document.text)
        of_pieces = hashes_of(pieces[::2], kind, options.shortest)
        places = np.minimum(np.searchsorted(hashes, of_pieces), len(hashes) - 1)
        removed = (hashes[places] == of_pieces) & (firsts[places] != own)
        if removed.any():
            counts[kind] = int(removed.sum())
            stays = np.flatnonzero(~removed).tolist()
            text = "".join(piece for number in stays for piece in pieces[2 * number : 2 * number + 2])
            document.text = text.rstrip() if removed[-1] else text
    return counts
