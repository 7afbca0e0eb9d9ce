"""Cross-entropy by kernels/cross_entropy.cu, which keeps what the fast pair keeps.

In bfloat16 the numbers of a row (the largest logit, the total, the loss) are float32: 16 bits have too few digits.
"""

from __future__ import annotations

import numpy as np

from minillm.backend import as_rows, contiguous
from minillm.cuda.launch import launch_rows
from minillm.fast.cross_entropy import Saved, memory_for_gradient, reduced, row_weights


def forward(logits, targets, *, ignore_index, label_smoothing, reduction, overwrite=False, class_weights=None):
    """The loss of logits (..., V): (...), or () where it is reduced."""
    if logits.size == 0 or (label_smoothing and class_weights is not None):
        return NotImplemented
    logits, t = contiguous(logits), contiguous(targets.reshape(-1).astype(np.int64, copy=False))
    accumulator = np.promote_types(logits.dtype, np.float32)
    largest, total, loss = np.empty_like(logits, shape=(3, t.size), dtype=accumulator)
    arrays = as_rows(logits), t, loss, largest, total
    settings = np.int64(ignore_index), accumulator.type(label_smoothing)
    launch_rows("cross_entropy.cu", "cross_entropy_forward", arrays, *settings)
    counts = t != ignore_index
    weight = row_weights(counts, np.where(counts, t, 0), class_weights, reduction, accumulator)
    y = reduced(loss * weight, targets, reduction)
    return y, Saved(logits, t, largest, total, weight, label_smoothing, overwrite, [])


def backward(dy, saved):
    """dlogits (..., V), in the memory of the logits where that may be used."""
    logits, targets, largest, total, weight, smoothing, *_ = saved
    dlogits = memory_for_gradient(saved)
    dloss = (weight * dy.reshape(-1)).astype(total.dtype, copy=False)  # 0 where the target is ignored
    arrays = as_rows(logits), targets, largest, total, dloss, as_rows(dlogits)
    launch_rows("cross_entropy.cu", "cross_entropy_backward", arrays, total.dtype.type(smoothing))
    return dlogits, None
