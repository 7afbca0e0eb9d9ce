"""Which documents are duplicates of which: clusters, and what becomes of each document in one.

Documents with the same words are found by sorting the hashes of their words. The first of each such group goes on:
these are compared by bands (lsh.py), and the candidates verified by the exact J of their shingles. A document with
fewer words than a shingle has no shingles, so it can only have the same words as another.

Clusters are transitive: where A is similar to B, and B to C, all three are one cluster, even if A and C alone would not
be similar enough. The first document of a cluster in input order stays. The others are dropped, and their J is that
with this first one, so it may be below the threshold where a document belongs to the cluster through another.

Memory: about 130 bytes for each document (hashes of words, the keys of one band, parents and counts), so 130 MB for a
million, and nothing for their texts: shingles are read from disk, of two documents at a time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minillm.corpus.duplicates.lsh import Clusters, candidates
from minillm.corpus.duplicates.minhash import jaccard
from minillm.corpus.duplicates.options import Dedup
from minillm.corpus.duplicates.sketches import Sketches
from minillm.errors import InputError

FIRST, SAME_TEXT, SAME_WORDS, SIMILAR = range(4)  # what a document is to its cluster
VERDICT = np.dtype(
    [
        ("id", "<u8"),  # hash of the document's id, by which the verdicts are sorted
        ("kind", "<u1"),
        ("jaccard", "<f8"),  # with the first of the cluster
        ("first_start", "<u8"),  # the id of the first: its place in `ids`
        ("first_bytes", "<u4"),
    ]
)


def find_clusters(sketches: Sketches, options: Dedup) -> np.ndarray:
    """The first document of the cluster of every document, (N,)."""
    clusters = Clusters(len(sketches))
    same = _firsts_of_equal(sketches.rows["words"])
    for number in np.flatnonzero(same != np.arange(len(same))).tolist():
        clusters.join(number, int(same[number]))
    _join_similar(sketches, options, clusters)
    return clusters.firsts()


def _firsts_of_equal(hashes: np.ndarray) -> np.ndarray:
    """For each row of hashes (N, 2), the number of the first row that is equal to it: (N,)."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal rows keep their order
    ordered = hashes[order]
    new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])[: len(order)]
    firsts = np.empty(len(order), np.int64)
    firsts[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1] if len(order) else order
    return firsts


def _join_similar(sketches: Sketches, options: Dedup, clusters: Clusters) -> None:
    """Join the clusters of near-duplicates, of which each group of equal documents has one."""
    sizes = sketches.rows["shingles"].astype(np.int64)
    texts = np.flatnonzero((clusters.firsts() == np.arange(len(sizes))) & (sizes > 0))
    keys = (sketches.rows["keys"][:, band][texts] for band in range(options.bands))
    for ones, others in candidates(texts, sizes[texts], keys, clusters):
        small, large = np.sort([sizes[ones], sizes[others]], axis=0)
        possible = small >= options.threshold * large  # J is at most the ratio of the sizes
        for one, other in zip(ones[possible].tolist(), others[possible].tolist(), strict=True):
            apart = clusters.find(one) != clusters.find(other)
            if apart and _similarity(sketches, one, other) >= options.threshold:
                clusters.join(one, other)


def _similarity(sketches: Sketches, one: int, other: int) -> float:
    return jaccard(sketches.shingles_of(one), sketches.shingles_of(other))


def write_verdicts(sketches: Sketches, firsts: np.ndarray, path: Path) -> None:
    """Write what becomes of every document that is in a cluster with others."""
    rows = sketches.rows
    dropped = np.flatnonzero(firsts != np.arange(len(firsts)))
    members = np.union1d(dropped, firsts[dropped])
    verdicts = np.zeros(len(members), VERDICT)
    first = firsts[members]
    starts = np.cumsum(rows["id_bytes"], dtype=np.int64) - rows["id_bytes"]
    verdicts["id"], verdicts["first_start"] = rows["id"][members], starts[first]
    verdicts["first_bytes"] = rows["id_bytes"][first]
    same_words = (rows["words"][members] == rows["words"][first]).all(axis=1)
    same_text = same_words & (rows["text"][members] == rows["text"][first]).all(axis=1)
    kinds = np.select([members == first, same_text, same_words], [FIRST, SAME_TEXT, SAME_WORDS], SIMILAR)
    verdicts["kind"], verdicts["jaccard"] = kinds, 1
    for place in np.flatnonzero(kinds == SIMILAR).tolist():
        verdicts["jaccard"][place] = _similarity(sketches, int(members[place]), int(first[place]))
    np.sort(verdicts, order="id").tofile(path)


def check_ids(sketches: Sketches, ids: Path) -> None:
    """Raise InputError where two documents have the same id: verdicts are found by ids."""
    order = np.argsort(sketches.rows["id"], kind="stable")
    ordered = sketches.rows["id"][order]
    twice = order[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        number = int(twice.min())
        end = int(sketches.rows["id_bytes"][: number + 1].sum(dtype=np.int64))
        name = ids.read_bytes()[end - int(sketches.rows["id_bytes"][number]) : end].decode("utf-8", "replace")
        raise InputError(
            f"dedup: {len(twice):,} ids stand for two documents or more, the first is {name!r}; give each input once, "
            "and files whose documents have ids of their own"
        )
