"""Cross-entropy of logits against target ids: the loss of a language model, in nats per token.

Forward, for one row of V logits with target t. With label smoothing s (Szegedy et al. 2015) the target distribution is
q, which puts 1 - s on t and spreads s over all classes; each class counts by its weight w (1 unless given):

    shifted_i = logits_i - max(logits)                (V,)
    total     = sum(e^shifted)                        ()
    p_i       = e^(shifted_i) / total                 (V,)      log_p_i = shifted_i - log(total)
    q_i       = ((1 - s) 1[i = t] + s/V) w_i          (V,)      1[i = t] is 1 if i = t, otherwise 0
    loss      = -sum(q log_p)                         ()        0 log 0 = 0

The share of a row is the factor of its loss in the result y: 0 if the target is ignored, otherwise 1 for "sum" and
"none", and 1 / (sum of w_t over the rows that count) for "mean". So y is the sum of share loss over the rows, or for
"none" share loss of each row. At the start of training p is nearly uniform, so the loss is nearly log V.

Backward. A row's loss gets dloss = share dy. By the derivative of log_softmax (ops/log_softmax.py),
d log_p_i / d logits_j = 1[i = j] - p_j, and so

    dlogits_j = -dloss sum_i q_i (1[i = j] - p_j) = dloss (p_j sum(q) - q_j)

A row whose dloss is 0 gets the gradient 0, even if its logits are NaN or infinite.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_array
from minillm.device import is_on_gpu, like
from minillm.errors import DtypeError, InputError, ShapeError, check_index, check_shapes
from minillm.ops.transpose import permute


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    p: Array  # (..., V)
    q: Array  # (..., V)
    share: Array  # (...)


def cross_entropy_forward(
    logits, targets, *, ignore_index, label_smoothing, reduction, overwrite=False, class_weights=None
):
    V = logits.shape[-1]
    shifted = logits - logits.max(axis=-1, keepdims=True)  # (..., V), 0 at most, so that its exponential is finite
    total = np.exp(shifted).sum(axis=-1, keepdims=True)  # (..., 1)
    p = np.exp(shifted) / total  # (..., V)
    log_p = shifted - np.log(total)  # (..., V)
    s = label_smoothing
    w = np.ones_like(logits, shape=V) if class_weights is None else class_weights  # (V,)
    counts = targets != ignore_index  # (...)
    t = np.where(counts, targets, 0)  # (...), ignored rows get class 0, so that w[t] is defined
    is_target = t[..., None] == np.arange(V, like=t)  # (..., V)
    q = (1 - s) * (is_target * w) + s / V * w  # (..., V)
    loss = -(q * np.where(q == 0, 0, log_p)).sum(axis=-1)  # (...)
    share = row_shares(counts, w[t], reduction).astype(logits.dtype)  # (...)
    y = share * np.where(counts, loss, 0)  # (...)
    if reduction != "none":
        y = y.sum()  # ()
    return y, Saved(p, q, share)


def cross_entropy_backward(dy, saved):
    p, q, share = saved
    dloss = (share * dy)[..., None]  # (..., 1)
    dlogits = dloss * (p * q.sum(axis=-1, keepdims=True) - q)  # (..., V)
    return np.where(dloss == 0, 0, dlogits), None


def row_shares(counts, target_weights, reduction):
    """The share of each row (...), in float64: a count of rows has more digits than 16 bits can hold."""
    ones = counts.astype(np.float64)  # (...), 0 where a row does not count
    if reduction != "mean":
        return ones
    total = (ones * target_weights).sum()  # ()
    return ones / np.where(total == 0, 1, total)  # (...)


CROSS_ENTROPY = Op("cross_entropy", cross_entropy_forward, cross_entropy_backward)


def cross_entropy(
    logits: Tensor,
    targets: Any,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    overwrite: bool = False,
    *,
    weight: Any = None,
    dim: int | None = None,
) -> Tensor:
    """The loss -log p(target), averaged over the rows by default, where p = softmax(logits) over the classes.

    Shapes: logits (..., V) with targets (...), or PyTorch's layout (N, V, ...) with targets (N, ...): integer ids in
        [0, V) or `ignore_index`; result (), or for reduction="none" that of the targets. Where the targets fit both
        layouts, `dim` must say which axis has the classes.
    reduction: "mean" over the targets that are not ignored (0 if there are none), "sum", or "none" for each row's loss.
    overwrite: the backward may write the gradient into the memory of the logits; nothing else may then use them. They
        are the largest array of a step: 64k tokens of GPT-2 have 6.6 GB of them in bfloat16. The plain pair never
        overwrites.
    weight: (V,), a factor for the loss of each class; a mean is then divided by the sum of the targets' weights.
    Units: nats per token.
    Saves: a reference to the logits, and four numbers per row. The plain pair keeps p and q, two arrays of the size of
        the logits, and one number per row.
    Raises: ShapeError, InputError for an id out of range or an unknown reduction, DtypeError for targets of floats.
    """
    targets = targets.data if isinstance(targets, Tensor) else as_array(targets)
    _check_settings(logits, ignore_index, label_smoothing, reduction)
    axis = _class_axis(logits, targets, dim)
    if axis != logits.ndim - 1:
        logits = permute(logits, *(i for i in range(logits.ndim) if i != axis), axis)
    used = targets[targets != ignore_index] if targets.dtype.kind in "iu" and not is_on_gpu(targets) else targets
    check_index("cross_entropy", used, logits.shape[-1], "target")
    settings: dict[str, Any] = dict(ignore_index=ignore_index, label_smoothing=float(label_smoothing))
    if weight is not None:
        weight = like(as_array(weight.data if isinstance(weight, Tensor) else weight), logits.data)
        check_shapes("cross_entropy", logits=("... V", logits), weight=("V", weight))
        settings["class_weights"] = weight.astype(logits.dtype, copy=False)
    return CROSS_ENTROPY(logits, like(targets, logits.data), reduction=reduction, overwrite=overwrite, **settings)


def _check_settings(logits: Tensor, ignore_index: Any, label_smoothing: float, reduction: str) -> None:
    if logits.dtype.kind in "iub":
        raise DtypeError(f"cross_entropy: logits have dtype {logits.dtype}; give floats")
    if not isinstance(ignore_index, (int, np.integer)):
        raise DtypeError(f"cross_entropy: ignore_index is {ignore_index!r}; give an id, and class weights as weight=")
    if reduction not in ("mean", "sum", "none"):
        raise InputError(f"cross_entropy: reduction is {reduction!r}; choose 'mean', 'sum' or 'none'")
    if not 0 <= label_smoothing <= 1:
        raise InputError(f"cross_entropy: label_smoothing is {label_smoothing}; give a number from 0 to 1")


def _class_axis(logits: Tensor, targets: Array, dim: int | None) -> int:
    """The axis of the classes, which the shape of the targets tells."""
    ndim = logits.ndim
    if dim is not None and not -ndim <= dim < ndim:
        raise ShapeError(f"cross_entropy: dim is {dim}, but logits have shape {logits.shape}")
    possible = [ndim - 1, 1] if ndim > 2 else [ndim - 1]
    axes = possible if dim is None else [dim % ndim]
    fitting = [axis for axis in axes if logits.shape[:axis] + logits.shape[axis + 1 :] == targets.shape]
    if ndim == 0 or not fitting:
        wanted = " or ".join(str(logits.shape[:axis] + logits.shape[axis + 1 :]) for axis in axes if ndim)
        raise ShapeError(
            f"cross_entropy: logits of shape {logits.shape} need targets of shape {wanted}, not {targets.shape}"
        )
    if len(fitting) > 1 and logits.shape[1] > 1:
        raise ShapeError(
            f"cross_entropy: targets of shape {targets.shape} fit logits of shape {logits.shape} with the classes on "
            "the last axis and on axis 1; say dim=-1 or dim=1"
        )
    if logits.shape[fitting[0]] == 0:
        raise ShapeError(f"cross_entropy: logits of shape {logits.shape} have no classes; give at least one")
    return fitting[0]
