"""Batches of examples of similar lengths, each a function of its number, so that there is little padding.

The shuffled examples (batches.py) are taken `POOL` batches at a time. These are sorted by length, cut into batches, and
the batches come in a random order. So every example comes once in each epoch, its neighbours differ from one to the
next, and a run that is resumed goes on with the batches that it would have had.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minillm.data.batches import shuffled

POOL = 16  # batches that are sorted together


def similar_batch(lengths: np.ndarray, batch_size: int, seed: int, index: int) -> np.ndarray:
    """The numbers of the examples in batch number `index`, (batch_size,), from the length of each (N,)."""
    pool, place = divmod(index, POOL)
    chosen = shuffled(len(lengths), POOL * batch_size, seed, pool)
    by_length = chosen[np.argsort(lengths[chosen], kind="stable")].reshape(POOL, batch_size)
    return by_length[np.random.default_rng((seed, pool)).permutation(POOL)[place]]


def sorted_batches(lengths: np.ndarray, batch_size: int, count: int) -> Iterator[np.ndarray]:
    """The numbers of examples in at most `count` batches for a validation, the shortest together.

    If not all examples fit, they are spread evenly over all of them.
    """
    most = min(len(lengths), batch_size * count)
    chosen = np.linspace(0, len(lengths) - 1, most).round().astype(int)
    by_length = chosen[np.argsort(lengths[chosen], kind="stable")]
    return (by_length[start : start + batch_size] for start in range(0, most, batch_size))
