"""Cross-entropy of logits whose classes are divided over ranks: ops.cross_entropy without ever gathering the logits.

Rank r has the logits x_i of its classes i. With the largest of all, m = max over r of m_r, m_r = max_i x_i,

    s = sum over r of s_r e^(m_r - m),   s_r = sum_i e^(x_i - m_r)
    loss = -log p_t = log s - (x_t - m)

so the ranks need one maximum, m, and two sums: s, and x_t - m, which the rank that has t knows and to which the others
add 0. The backward needs nothing from other ranks: a rank knows m and s, and for each of its classes

    dx_i = g (e^(x_i - m) / s - 1[i = t])

where the 1 is met only on the rank that has t.
Source: Shoeybi et al. 2019, "Megatron-LM", arXiv:1909.08053, section 3, on the output embedding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_array, as_rows, contiguous, row_blocks, row_max
from minillm.cuda import cross_entropy as kernels
from minillm.device import is_on_gpu, like
from minillm.errors import DtypeError, InputError, ShapeError, check_index
from minillm.fast.cross_entropy import Saved, memory_for_gradient
from minillm.parallel.communicator import Communicator, bounds
from minillm.sums import row_sums, sum_over


def vocabulary_cross_entropy_forward(logits, targets, **settings):
    x, (largest, total) = as_rows(logits), _two_rows(logits)

    def formula(rows):
        z = x[rows].astype(largest.dtype, copy=False)
        highest = row_max(z)
        largest[rows] = highest[:, 0]
        highest[highest == -np.inf] = 0  # another rank may have all the classes that are not ruled out
        z = z - highest
        total[rows] = row_sums(np.exp(z, out=z))[:, 0]

    row_blocks(formula, x)
    return _loss(logits, targets, largest, total, **settings)


def vocabulary_cross_entropy_forward_cuda(logits, targets, **settings):
    if logits.size == 0:
        return NotImplemented
    zeros = np.zeros_like(targets, dtype=np.int64)  # a class that there is; the kernel's loss is not used
    _, own = kernels.forward(logits, zeros, ignore_index=-1, label_smoothing=0.0, reduction="none")
    return _loss(contiguous(logits), targets, own.largest, own.total, **settings)


def _two_rows(logits: Array) -> Array:
    """Memory for two numbers a row, in float32 at least."""
    rows = math.prod(logits.shape[:-1])
    return np.empty_like(logits, shape=(2, rows), dtype=np.promote_types(logits.dtype, np.float32), order="C")


def _loss(logits, targets, largest, total, *, first, communicator, ignore_index, reduction, overwrite):
    """From m_r and s_r to the loss. `first`: the class of this rank's first logit."""
    t, classes = targets.reshape(-1), logits.shape[-1]
    counted, here = t != ignore_index, (t >= first) & (t < first + classes) & (t != ignore_index)
    local = np.where(here, t - first, -1)
    own, largest = largest, contiguous(largest).copy()
    communicator.all_reduce(largest, "max", what="loss").wait()
    sums = _two_rows(logits)
    sums[0] = total * np.exp(own - largest)
    chosen = as_rows(logits)[np.arange(len(t), like=t), np.where(here, local, 0)].astype(sums.dtype, copy=False)
    sums[1] = np.where(here, chosen - largest, 0)
    communicator.all_reduce(sums, what="loss").wait()
    log_sum = np.log(sums[0])
    loss, weight = log_sum - sums[1], counted.astype(sums.dtype)
    np.copyto(loss, 0, where=~counted)  # not by the weight alone: an infinite loss times 0 is not a number
    if reduction == "mean":
        weight /= np.maximum(weight.sum(), 1)
    loss *= weight
    result = loss.reshape(targets.shape) if reduction == "none" else sum_over(loss)
    return result, Saved(logits, local, largest, sums[0], weight, 0.0, overwrite, [])


def vocabulary_cross_entropy_backward(dout, saved):
    logits, targets, largest, total, weight, *_ = saved
    dlogits = memory_for_gradient(saved)
    x, dx, g = as_rows(logits), as_rows(dlogits), (weight * dout.reshape(-1))[:, None]
    without = g == 0  # rows without a part in the loss
    columns = np.arange(x.shape[-1], like=x) if is_on_gpu(x) else None

    def formula(rows):
        p = x[rows].astype(total.dtype)  # a copy
        p -= largest[rows, None]
        np.exp(p, out=p)
        p *= g[rows] / total[rows, None]  # from here on, g p
        if columns is not None:
            p -= g[rows] * (columns == targets[rows, None])
        else:
            (here,) = np.nonzero(targets[rows] >= 0)
            p[here, targets[rows][here]] -= g[rows][here, 0]
        np.copyto(p, 0, where=without[rows])
        dx[rows] = p

    row_blocks(formula, x)
    return dlogits, None


VOCABULARY_CROSS_ENTROPY = Op(
    "vocabulary_cross_entropy",
    vocabulary_cross_entropy_forward,
    vocabulary_cross_entropy_backward,
    cuda=(vocabulary_cross_entropy_forward_cuda, kernels.backward),
    kernel="cross_entropy",
)


def vocabulary_cross_entropy(
    logits: Tensor,
    targets: Any,
    communicator: Communicator,
    size: int,
    ignore_index: int = -100,
    reduction: str = "mean",
    overwrite: bool = False,
) -> Tensor:
    """ops.cross_entropy of logits whose `size` classes are cut over the ranks; the result is the same on all.

    Shapes: logits (..., V_r), rank r's columns as `communicator.bounds` cuts V = size; targets (...), the same on all.
    reduction, overwrite: as in ops.cross_entropy.
    Bytes: forward, an all_reduce of one number and one of two numbers for each target; backward none.
    Raises: ShapeError, InputError for an id out of range or an unknown reduction, DtypeError for logits of integers.
    """
    targets = targets.data if isinstance(targets, Tensor) else as_array(targets)
    first, stop = bounds(size, communicator.size)[communicator.rank : communicator.rank + 2]
    if logits.ndim == 0 or logits.shape != (*targets.shape, stop - first):
        raise ShapeError(
            f"vocabulary_cross_entropy: logits have shape {logits.shape}; targets of shape {targets.shape} and "
            f"{stop - first} of {size} classes on rank {communicator.rank} need {(*targets.shape, stop - first)}"
        )
    if logits.dtype.kind in "iub":
        raise DtypeError(f"vocabulary_cross_entropy: logits have dtype {logits.dtype}; give floats")
    if reduction not in ("mean", "sum", "none"):
        raise InputError(f"vocabulary_cross_entropy: reduction is {reduction!r}; choose 'mean', 'sum' or 'none'")
    used = targets[targets != ignore_index] if targets.dtype.kind in "iu" and not is_on_gpu(targets) else targets
    check_index("vocabulary_cross_entropy", used, size, "target")
    return VOCABULARY_CROSS_ENTROPY(
        logits,
        like(targets, logits.data),
        first=first,
        communicator=communicator,
        ignore_index=ignore_index,
        reduction=reduction,
        overwrite=overwrite,
    )
