"""Cross-entropy on a CPU: the formula of ops/cross_entropy.py, a block of rows at a time.

Where class weights and label smoothing s do not come together, q sums to w_t in each row, which is taken out, and then

    loss = w_t (log total - (1 - s) shifted_t - s mean(shifted))        dlogits = share dy w_t (p - q / w_t)

The forward makes no array of the size of the logits that outlives it: the backward makes p again from the logits, the
largest of each row and its total. These two are kept apart, because largest + log(total) has no digits left for the
total where logits are large.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.backend import Array, as_rows, row_blocks, row_max
from minillm.errors import GraphError
from minillm.ops.cross_entropy import row_shares
from minillm.sums import row_sums, sum_over


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward; rows are those of `as_rows`."""

    logits: Array  # (..., V)
    targets: Array  # (rows,), 0 where they are ignored
    largest: Array  # (rows,)
    total: Array  # (rows,)
    weight: Array  # (rows,), the share of the row times the weight of its class
    smoothing: float  # s
    overwrite: bool
    overwritten: list  # empty until a backward has written over the logits


def forward(logits, targets, *, ignore_index, label_smoothing, reduction, overwrite=False, class_weights=None):
    """The loss of logits (..., V): (...), or () where it is reduced."""
    if label_smoothing and class_weights is not None:
        return NotImplemented
    x, counts = as_rows(logits), targets.reshape(-1) != ignore_index  # (rows, V), (rows,)
    t = np.where(counts, targets.reshape(-1), 0)  # (rows,)
    largest, total, loss = np.empty_like(x, shape=(3, len(x)))  # (rows,) each

    def block(rows):
        row_largest = row_max(x[rows])  # (n, 1), for the n rows of the block
        shifted = x[rows] - row_largest  # (n, V)
        target_logit = shifted[np.arange(len(shifted)), t[rows]] * (1 - label_smoothing)  # (n,)
        if label_smoothing:
            target_logit += shifted.mean(axis=-1) * label_smoothing
        largest[rows] = row_largest[:, 0]
        total[rows] = row_sums(np.exp(shifted, out=shifted))[:, 0]
        loss[rows] = np.log(total[rows]) - target_logit

    row_blocks(block, x)
    weight = row_weights(counts, t, class_weights, reduction, x.dtype)  # (rows,)
    np.copyto(loss, 0, where=~counts)  # not by the weight alone: an infinite loss times 0 is not a number
    y = reduced(loss * weight, targets, reduction)  # (), or the shape of the targets
    return y, Saved(logits, t, largest, total, weight, label_smoothing, overwrite, [])


def backward(dy, saved):
    """dlogits (..., V), in the memory of the logits where that may be used."""
    logits, targets, largest, total, weight, smoothing, *_ = saved
    dlogits = memory_for_gradient(saved)  # (..., V)
    x, dx = as_rows(logits), as_rows(dlogits)  # (rows, V)
    dloss = weight * dy.reshape(-1)  # (rows,): dy has one number for each row, or one for all
    classes, no_part = x.shape[-1], dloss == 0
    some_have_no_part = no_part.any()

    def block(rows):
        shifted = np.subtract(x[rows], largest[rows, None], out=dx[rows])  # (n, V), for the n rows of the block
        exp_shifted = np.exp(shifted, out=dx[rows])  # (n, V)
        # dloss p, from which the lines below take dloss q:
        np.multiply(exp_shifted, (dloss[rows] / total[rows])[:, None], out=dx[rows])
        dx[np.arange(rows.start, rows.stop), targets[rows]] -= dloss[rows] * (1 - smoothing)
        if smoothing:
            dx[rows] -= dloss[rows, None] * (smoothing / classes)
        if some_have_no_part:
            np.copyto(dx[rows], 0, where=no_part[rows, None])

    row_blocks(block, x)
    return dlogits, None


def row_weights(counts, targets, class_weights, reduction, dtype):
    """The factor of each row: its share in the result times the weight of its class."""
    if class_weights is None:
        return row_shares(counts, counts, reduction).astype(dtype)  # each row that counts weighs 1
    target_weights = class_weights[targets]
    return (row_shares(counts, target_weights, reduction) * target_weights).astype(dtype)


def reduced(losses, targets, reduction):
    """The result, from the weighted losses of the rows."""
    if reduction == "none":
        return losses.reshape(targets.shape)
    return sum_over(losses).astype(losses.dtype, copy=False)


def memory_for_gradient(saved):
    """Memory for dlogits: that of the logits if it may be overwritten, as each number is read before it is written."""
    if not saved.overwrite or not saved.logits.flags.c_contiguous:
        return np.empty_like(saved.logits, order="C")
    if saved.overwritten:
        raise GraphError("cross_entropy: overwrite=True lets a graph have one backward, which has been; leave it out")
    saved.overwritten.append(True)
    return saved.logits
