"""Cross-entropy of logits whose classes are divided over ranks: the loss without ever gathering the logits.

Rank r has the logits x_i of its classes i, and t is the target of a row. Two sums and a maximum join the ranks:

    largest = max over r of max_i x_i            shifted_i = x_i - largest
    total   = sum over r of sum_i e^shifted_i    p_i       = e^shifted_i / total
    target  = sum over r of shifted_t            where a rank without t adds 0
    loss    = -log p_t = log(total) - target
    y       = sum over the rows of share loss

The share of a row is 0 if its target is ignored, and else 1, or for a mean 1 over the number of rows that count.

Backward. A row's loss gets dloss = share dy. A rank needs nothing from the others, because it knows total:

    dx_i = dloss (p_i - 1[i = t])

where the 1 is met only on the rank that has t.
Source: Shoeybi et al. 2019, "Megatron-LM", arXiv:1909.08053, section 3, on the output embedding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_array
from minillm.device import is_on_gpu, like
from minillm.errors import DtypeError, InputError, ShapeError, check_index


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward; V is the number of this rank's classes."""

    p: Array  # (..., V)
    is_target: Array  # (..., V)
    share: Array  # (...)


def vocabulary_cross_entropy_forward(logits, targets, *, first, communicator, ignore_index, reduction, overwrite=False):
    largest = logits.max(axis=-1, keepdims=True)  # (..., 1), of this rank, and after the next line of all
    communicator.all_reduce(largest, "max", what="loss").wait()
    shifted = logits - largest  # (..., V), 0 at most, so that its exponential is finite
    counts = targets != ignore_index  # (...)
    classes = np.arange(first, first + logits.shape[-1], like=targets)  # (V,)
    is_target = (targets[..., None] == classes) & counts[..., None]  # (..., V)
    sums = np.stack([np.exp(shifted).sum(axis=-1), np.where(is_target, shifted, 0).sum(axis=-1)])  # (2, ...)
    communicator.all_reduce(sums, what="loss").wait()
    total, target = sums  # (...) each
    p = np.exp(shifted) / total[..., None]  # (..., V)
    loss = np.log(total) - target  # (...)
    share = row_shares(counts, reduction).astype(logits.dtype)  # (...)
    y = share * np.where(counts, loss, 0)  # (...)
    if reduction != "none":
        y = y.sum()  # ()
    return y, Saved(p, is_target, share)


def vocabulary_cross_entropy_backward(dy, saved):
    p, is_target, share = saved
    dloss = (share * dy)[..., None]  # (..., 1)
    dlogits = dloss * (p - is_target)  # (..., V)
    return np.where(dloss == 0, 0, dlogits), None


def row_shares(counts, reduction):
    """The share of each row in the result, in float64: a count of rows has more digits than 16 bits can hold."""
    ones = counts.astype(np.float64)  # (...), 0 where a row does not count
    return ones / np.maximum(ones.sum(), 1) if reduction == "mean" else ones  # (...)


VOCABULARY_CROSS_ENTROPY = Op(
    "vocabulary_cross_entropy", vocabulary_cross_entropy_forward, vocabulary_cross_entropy_backward
)


def vocabulary_cross_entropy(
    logits: Tensor,
    targets: Any,
    communicator: Any,
    classes: tuple[int, int],
    size: int,
    ignore_index: int = -100,
    reduction: str = "mean",
    overwrite: bool = False,
) -> Tensor:
    """The loss -log p(target) of logits whose `size` classes are divided over ranks; it is equal on all of them.

    Shapes: logits (..., V), the classes from the first of `classes` up to, but without, the second; targets (...),
        equal on all ranks.
    communicator: the ranks' parallel.communicator.Communicator.
    ignore_index, reduction, overwrite: as in ops.cross_entropy.
    Units: nats per token.
    Bytes: the forward makes an all_reduce of one number and one of two numbers for each target; the backward none.
    Raises: ShapeError, InputError for an id out of range or an unknown reduction, DtypeError for logits of integers.
    """
    targets = targets.data if isinstance(targets, Tensor) else as_array(targets)
    first, stop = classes
    if logits.ndim == 0 or logits.shape != (*targets.shape, stop - first):
        raise ShapeError(
            f"vocabulary_cross_entropy: logits have shape {logits.shape}; targets of shape {targets.shape} and classes "
            f"{first} to {stop} of {size} need {(*targets.shape, stop - first)}"
        )
    if logits.dtype.kind in "iub":
        raise DtypeError(f"vocabulary_cross_entropy: logits have dtype {logits.dtype}; give floats")
    if reduction not in ("mean", "sum", "none"):
        raise InputError(f"vocabulary_cross_entropy: reduction is {reduction!r}; choose 'mean', 'sum' or 'none'")
    used = targets[targets != ignore_index] if targets.dtype.kind in "iu" and not is_on_gpu(targets) else targets
    check_index("vocabulary_cross_entropy", used, size, "target")
    settings = dict(ignore_index=ignore_index, reduction=reduction, overwrite=overwrite)
    return VOCABULARY_CROSS_ENTROPY(
        logits, like(targets, logits.data), first=first, communicator=communicator, **settings
    )
