"""Locality-sensitive hashing: pairs of similar texts, without comparing every text with every other.

The k = b r minima of a signature (minhash.py) are cut into b bands of r rows. Two texts are candidates if all rows of
one band or more are equal. One row is equal with the probability J, all r of a band with J^r, so no band is equal with
(1 - J^r)^b, and

    P(candidate) = 1 - (1 - J^r)^b                                                               (the S-curve)

It rises from 0 to 1 around J = (1/b)^(1/r), where it is 1 - (1 - 1/b)^b, about 0.63 for many bands. More bands find
more pairs, more rows keep more pairs out that are not similar enough. Each candidate is verified by its exact J, so the
curve at the threshold decides which duplicates are missed, and below it only how much work is wasted.

Each band becomes one 64-bit key, and texts with equal keys are found by sorting, one band at a time. Sorting first by
the number of shingles, and then by the key, brings texts together that are alike: in a bucket of more than WINDOW
texts, each is compared with those WINDOW places before it, so that 100,000 texts with one key mean 100,000 x WINDOW
comparisons at most, and not 5,000,000,000. Texts that are already known to be in one cluster are not compared again.

Source: Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from minillm.corpus.words import BASE_OF_WORDS, mix

WINDOW = 32  # texts of a bucket with which each is compared, at most
SHOWN = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)  # similarities at which the curve is printed


def candidate_probability(similarity: float, bands: int, rows: int) -> float:
    """The probability that two texts of this Jaccard similarity are candidates."""
    return 1 - (1 - similarity**rows) ** bands


def curve_lines(bands: int, rows: int, threshold: float) -> list[str]:
    """The S-curve as lines to print: the similarity, the probability of being compared, and a bar."""
    formula = f"P(candidate) = 1 - (1 - J^{rows})^{bands}"
    lines = [f"{bands} bands of {rows} rows: {formula}; duplicates are candidates with J >= {threshold:g}"]
    for similarity in sorted({*SHOWN, threshold}):
        probability = candidate_probability(similarity, bands, rows)
        mark = " <- the threshold" if similarity == threshold else ""
        lines.append(f"  J = {similarity:<5g} {probability:8.4f}  {'#' * round(40 * probability)}{mark}")
    return lines


def band_keys(signatures: np.ndarray, bands: int) -> np.ndarray:
    """A number for each band: (N, bands), uint64, from signatures (N, bands * rows)."""
    rows = signatures.reshape(len(signatures), bands, signatures.shape[1] // bands).astype(
        np.uint64
    )  # (N, bands, rows)
    keys = np.zeros(rows.shape[:2], np.uint64)
    for row in range(rows.shape[2]):
        keys *= np.uint64(BASE_OF_WORDS)
        keys += rows[:, :, row] + np.uint64(1)
    return mix(keys)


class Clusters:
    """Sets of documents that belong together (union-find); each is named by its first document in input order."""

    def __init__(self, count: int):
        self.parent = np.arange(count)  # (N,)

    def find(self, number: int) -> int:
        """The first document of the cluster of one."""
        parent = self.parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = int(parent[number])
        return number

    def join(self, one: int, other: int) -> None:
        """Make one cluster of those of two documents."""
        one, other = self.find(one), self.find(other)
        self.parent[max(one, other)] = min(one, other)

    def firsts(self) -> np.ndarray:
        """The first document of the cluster of every document, (N,)."""
        while not np.array_equal(above := self.parent[self.parent], self.parent):
            self.parent = above
        return self.parent


def candidates(
    texts: np.ndarray, sizes: np.ndarray, keys: Iterable[np.ndarray], clusters: Clusters
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of texts that share a band and are not yet in one cluster, as two arrays, some at a time.

    Whoever draws the pairs joins the clusters of those that are duplicates, so that fewer follow.
    Shapes: texts, sizes (M,): the numbers of the texts to compare, and how many shingles each has; keys, (M,) for each
    band.
    """
    by_size = np.argsort(sizes, kind="stable")
    for of_band in keys:
        ordered = of_band[by_size]
        order = np.argsort(ordered, kind="stable")
        ordered, numbers = ordered[order], texts[by_size[order]]
        later = np.arange(1, len(texts))
        for distance in range(1, WINDOW + 1):
            later = later[later >= distance]
            later = later[ordered[later] == ordered[later - distance]]
            if not len(later):
                break
            firsts = clusters.firsts()
            one, other = numbers[later - distance], numbers[later]
            apart = firsts[one] != firsts[other]
            if apart.any():
                yield one[apart], other[apart]
