"""MinHash: a short signature of a text, from which the similarity of two texts can be read off.

A text is the set of its shingles, the n-grams of its words (words.py). The similarity of two texts with the sets A and
B is

    J(A, B) = |A and B| / |A or B|                                                          (Jaccard's similarity)

**Why the minimum knows J.** Put all possible shingles into a random order, the same one for every text, and let m(A) be
the first shingle of A in it. The first shingle of "A or B" is every one of these with the same probability. It is in
both sets with the probability J, and then m(A) = m(B). Otherwise it is in one of them alone: it is the first of that
set, and not of the other. So

    P(m(A) = m(B)) = J(A, B).

With k random orders, the share of equal minima is an estimate of J with the standard deviation sqrt(J (1 - J) / k).

**A random order by multiplication.** Shingle x has a random 64-bit number (`mix` in words.py sees to that). An odd
number a has an inverse mod 2^64, so x -> a x mod 2^64 is a permutation of all 64-bit numbers, and sorting by a x is an
order. For a fixed a, the products of random numbers are random, so their minimum is at each place with the same
probability: that is all that the argument above needs. Another a is another order. This is multiply-shift hashing
(Dietzfelbinger et al. 1997): one multiplication a shingle, where the usual (a x + b) mod (2^61 - 1) also has a
division. The top 32 bits are kept: two different minima agree in them with a probability of about S / 2^32 for S
shingles (minima are small numbers), which adds nothing to J.

Source: Broder, "On the resemblance and containment of documents" (1997).
"""

from __future__ import annotations

import numpy as np

from minillm.corpus.words import mix

BLOCK = 512  # shingles whose products with all multipliers stay in the cache


def multipliers(count: int, seed: int) -> np.ndarray:
    """The odd numbers (count,), uint64, that stand for `count` orders."""
    first = mix(np.array([seed], np.uint64))[0]
    with np.errstate(over="ignore"):
        return mix(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + first) | np.uint64(1)


def signature(shingles: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """The minimum in each order: (k,), uint32.

    Shapes: shingles (S,), one or more random uint64, in any order and as often as they occur; orders (k,), odd uint64.
    """
    lowest = np.full(len(orders), np.iinfo(np.uint64).max)
    for start in range(0, len(shingles), BLOCK):
        products = np.multiply.outer(orders, shingles[start : start + BLOCK])  # (k, BLOCK), mod 2^64
        np.minimum(lowest, products.min(axis=1), out=lowest)
    return (lowest >> np.uint64(32)).astype(np.uint32)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """J of two sets, each a sorted array without repetitions; 1 where both are empty."""
    together = np.concatenate([one, other])
    together.sort()
    both = int(np.count_nonzero(together[1:] == together[:-1]))
    return both / (len(together) - both) if len(together) else 1.0
