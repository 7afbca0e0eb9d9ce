"""Cross-entropy of divided logits on a CPU: the formula of ops/vocabulary_cross_entropy.py, a block of rows at a time.

The forward keeps what fast/cross_entropy.py keeps, and no array of the size of the logits. Each rank shifts by its own
largest logit before it knows the largest of all, and its total is scaled afterwards:

    total = sum over r of own_total e^(own_largest - largest)

Numbers of a row are float32 at least: 16 bits have too few digits for the loss.
"""

from __future__ import annotations

import math

import numpy as np

from minillm.backend import Array, as_rows, contiguous, row_blocks, row_max
from minillm.fast.cross_entropy import Saved, memory_for_gradient
from minillm.ops.vocabulary_cross_entropy import row_shares
from minillm.sums import row_sums, sum_over


def forward(logits, targets, **settings):
    """The loss of logits (..., V), of which this rank has a part."""
    x, (own_largest, own_total) = as_rows(logits), two_rows(logits)

    def block(rows):
        z = x[rows].astype(own_largest.dtype, copy=False)
        highest = row_max(z)
        own_largest[rows] = highest[:, 0]
        finite = np.where(highest == -np.inf, 0, highest)  # another rank may have all classes that are not ruled out
        shifted = z - finite
        own_total[rows] = row_sums(np.exp(shifted, out=shifted))[:, 0]

    row_blocks(block, x)
    return join_ranks(logits, targets, own_largest, own_total, **settings)


def join_ranks(logits, targets, own_largest, own_total, *, first, communicator, ignore_index, reduction, overwrite):
    """The result, from the largest logit and the total of each row on this rank."""
    t, classes = targets.reshape(-1), logits.shape[-1]
    counts = t != ignore_index
    here = counts & (t >= first) & (t < first + classes)
    local = np.where(here, t - first, -1)
    largest = contiguous(own_largest).copy()
    communicator.all_reduce(largest, "max", what="loss").wait()
    target_logit = as_rows(logits)[np.arange(len(t), like=t), np.where(here, local, 0)]
    sums = two_rows(logits)
    sums[0] = own_total * np.exp(own_largest - largest)
    sums[1] = np.where(here, target_logit.astype(sums.dtype, copy=False) - largest, 0)
    communicator.all_reduce(sums, what="loss").wait()
    total, target = sums
    weight = row_shares(counts, reduction).astype(sums.dtype)
    loss = np.where(counts, np.log(total) - target, 0)  # by the weight alone an infinite loss times 0 would be NaN
    losses = loss * weight
    y = losses.reshape(targets.shape) if reduction == "none" else sum_over(losses)
    return y, Saved(logits, local, largest, total, weight, 0.0, overwrite, [])


def two_rows(logits: Array) -> Array:
    """Memory for two numbers a row, in float32 at least."""
    rows = math.prod(logits.shape[:-1])
    return np.empty_like(logits, shape=(2, rows), dtype=np.promote_types(logits.dtype, np.float32), order="C")


def backward(dy, saved):
    """dlogits (..., V), for this rank's part."""
    logits, targets, largest, total, weight, *_ = saved
    dlogits = memory_for_gradient(saved)
    x, dx, dloss = as_rows(logits), as_rows(dlogits), (weight * dy.reshape(-1))[:, None]
    no_part = dloss == 0

    def block(rows):
        shifted = x[rows].astype(total.dtype) - largest[rows, None]
        e = np.exp(shifted, out=shifted)
        gradient = np.multiply(e, dloss[rows] / total[rows, None], out=e)  # dloss p; and now less dloss at the target
        (here,) = np.nonzero(targets[rows] >= 0)
        gradient[here, targets[rows][here]] -= dloss[rows][here, 0]
        np.copyto(gradient, 0, where=no_part[rows])
        dx[rows] = gradient

    row_blocks(block, x)
    return dlogits, None
