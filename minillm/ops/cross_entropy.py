"""Cross-entropy of logits against target ids: the loss of a language model, in nats per token.

For one row of logits x over V classes, with target t and label smoothing e (Szegedy et al. 2015), the target
distribution is q_i = (1 - e) 1[i=t] + e/V, and

    loss = -sum_i q_i log p_i = lse(x) - (1 - e) x_t - e/V sum_i x_i,        lse(x) = log sum_i e^(x_i)

because log p_i = x_i - lse and q sums to 1. As d lse / d x_i = p_i, with g the gradient of this row's loss:

    dx_i = g (p_i - q_i)

With m the largest logit and s = sum_i e^(x_i - m), lse = m + log s and p_i = e^(x_i - m) / s. The forward saves m and s
apart, because their sum has no digits left for s where m is large; the backward makes p from them in one pass. At the
start of training p is nearly uniform, so the loss is nearly log V.

A row that has no part in the loss, as one whose target is ignored, gets no gradient, whatever is in it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor, snapshot
from minillm.backend import Array, as_array, as_rows, contiguous, row_blocks, row_max
from minillm.cuda import WARP, get_kernel
from minillm.device import is_on_gpu, like
from minillm.errors import DtypeError, GraphError, InputError, ShapeError, check_index, check_shapes
from minillm.ops.arithmetic import where
from minillm.ops.log_softmax import log_softmax
from minillm.ops.shape import permute
from minillm.sums import row_sums, sum_over


class Saved(NamedTuple):
    """The logits and targets, three numbers per row: m, s, and the weight of the row's loss in the result."""

    logits: Array
    targets: Array
    largest: Array
    total: Array
    weight: Array
    smoothing: float
    overwrite: bool
    overwritten: list  # of what the backward did: empty until it has written over the logits


def cross_entropy_forward(
    logits, targets, *, ignore_index, label_smoothing, reduction, overwrite=False, class_weights=None
):
    x, t = as_rows(logits), targets.reshape(-1)
    counted = t != ignore_index
    t = np.where(counted, t, 0)
    largest, total, loss = np.empty_like(x, shape=(3, len(x)))

    def formula(rows):
        z = x[rows]
        highest = row_max(z)
        shifted = z - highest
        target_logit = shifted[np.arange(len(z), like=z), t[rows]] * (1 - label_smoothing)
        if label_smoothing:
            target_logit += shifted.mean(axis=-1) * label_smoothing
        largest[rows] = highest[:, 0]
        total[rows] = row_sums(np.exp(shifted, out=shifted))[:, 0]
        loss[rows] = np.log(total[rows]) - target_logit

    row_blocks(formula, x)
    weight = row_weights(counted, t, class_weights, reduction, x.dtype)
    np.copyto(loss, 0, where=~counted)  # not by the weight alone: an infinite loss times 0 is not a number
    loss *= weight
    return _result(loss, targets, reduction), Saved(logits, t, largest, total, weight, label_smoothing, overwrite, [])


def _result(loss: Array, targets: Array, reduction: str) -> Array:
    return loss.reshape(targets.shape) if reduction == "none" else sum_over(loss).astype(loss.dtype, copy=False)


def cross_entropy_backward(dout, saved):
    logits, targets, largest, total, weight, smoothing, *_ = saved
    dlogits = memory_for_gradient(saved)
    x, dx = as_rows(logits), as_rows(dlogits)
    g = weight * dout.reshape(-1)  # one gradient for each row, or one for all
    classes, without = x.shape[-1], g == 0  # rows without a part in the loss
    some = is_on_gpu(g) or without.any()

    def formula(rows):
        gp = np.subtract(x[rows], largest[rows, None], out=dx[rows])
        np.exp(gp, out=gp)
        gp *= (g[rows] / total[rows])[:, None]
        gp[np.arange(len(gp), like=gp), targets[rows]] -= g[rows] * (1 - smoothing)
        if smoothing:
            gp -= g[rows, None] * (smoothing / classes)
        if some:
            np.copyto(gp, 0, where=without[rows, None])

    row_blocks(formula, x)
    return dlogits, None


def row_weights(counted: Array, targets: Array, class_weights: Array | None, reduction: str, dtype: Any) -> Array:
    """The factor of each row's loss: the weight of its class, or 0 if it is ignored; over their sum for a mean."""
    weight = counted.astype(np.float64)  # a count of rows has more digits than bfloat16 or float16 can hold
    if class_weights is not None:
        weight *= class_weights[targets]
    if reduction == "mean":
        total = weight.sum()  # stays on a GPU, where a comparison by Python would wait for the number
        weight /= np.where(total == 0, 1.0, total)
    return weight.astype(dtype)


def memory_for_gradient(saved: Saved) -> Array:
    """Their own memory if the logits may be overwritten: formula and kernel read a number before they write it."""
    if not saved.overwrite or not saved.logits.flags.c_contiguous:
        return np.empty_like(saved.logits, order="C")
    if saved.overwritten:
        raise GraphError("cross_entropy: overwrite=True lets a graph have one backward, which has been; leave it out")
    saved.overwritten.append(True)
    return saved.logits


def cross_entropy_forward_cuda(
    logits, targets, *, ignore_index, label_smoothing, reduction, overwrite=False, class_weights=None
):
    if logits.size == 0:
        return NotImplemented
    logits, t = contiguous(logits), contiguous(targets.reshape(-1).astype(np.int64, copy=False))
    accumulator = np.promote_types(logits.dtype, np.float32)  # bfloat16 has too few digits for lse and the loss
    largest, total, loss = np.empty_like(logits, shape=(3, t.size), dtype=accumulator)
    smoothing = accumulator.type(label_smoothing)
    _launch("cross_entropy_forward", (as_rows(logits), t, loss, largest, total), np.int64(ignore_index), smoothing)
    counted = t != ignore_index
    weight = row_weights(counted, np.where(counted, t, 0), class_weights, reduction, accumulator)
    loss *= weight
    return _result(loss, targets, reduction), Saved(logits, t, largest, total, weight, label_smoothing, overwrite, [])


def cross_entropy_backward_cuda(dout, saved):
    logits, targets, largest, total, weight, smoothing, *_ = saved
    dlogits = memory_for_gradient(saved)
    dloss = (weight * dout.reshape(-1)).astype(total.dtype, copy=False)  # 0 where the target is ignored
    arrays = (as_rows(logits), targets, largest, total, dloss, as_rows(dlogits))
    _launch("cross_entropy_backward", arrays, total.dtype.type(smoothing))
    return dlogits, None


def _launch(name: str, arrays: tuple[Array, ...], *settings: np.generic) -> None:
    """A block for each row, with a thread for every 16 bytes of it as far as they go, as the .cu file recommends."""
    rows, classes = arrays[0].shape
    threads = min(512, -(-classes * arrays[0].itemsize // 512) * WARP)
    kernel = get_kernel("cross_entropy.cu", name, arrays[0].dtype)
    kernel(min(rows, 1 << 20), threads, (*arrays, np.int64(rows), np.int32(classes), *settings))


CROSS_ENTROPY = Op(
    "cross_entropy",
    cross_entropy_forward,
    cross_entropy_backward,
    cuda=(cross_entropy_forward_cuda, cross_entropy_backward_cuda),
)


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
    """-log p(target), where p = softmax(logits) over the classes.

    Shapes: logits (..., V) with targets (...), or PyTorch's layout (N, V, ...) with targets (N, ...): integer ids in
        [0, V) or `ignore_index`. Where the targets fit both, `dim` must say which axis has the classes.
    reduction: "mean" over the targets that are not ignored (0 if there are none), "sum", or "none" for (...).
    overwrite: let the backward write the gradient over the logits, which nothing else may use after it. They are the
        largest array of a step: 64k tokens of GPT-2 have 6.6 GB of them in bfloat16.
    weight: (V,), a factor for the loss of each class; a mean is then divided by the sum of the targets' weights.
    Units: nats per token.
    Saves: a reference to the logits, and three numbers per row.
    Raises: ShapeError, InputError for an id out of range or an unknown reduction, DtypeError for targets of floats.
    """
    targets = targets.data if isinstance(targets, Tensor) else as_array(targets)
    _check_settings(logits, ignore_index, label_smoothing, reduction)
    axis = _class_axis(logits, targets, dim)
    if axis != logits.ndim - 1:
        logits = permute(logits, *(i for i in range(logits.ndim) if i != axis), axis)
    used = targets[targets != ignore_index] if targets.dtype.kind in "iu" and not is_on_gpu(targets) else targets
    check_index("cross_entropy", used, logits.shape[-1], "target")
    settings: dict[str, Any] = dict(ignore_index=ignore_index, reduction=reduction)
    targets = like(targets, logits.data)
    if weight is not None:
        weight = like(as_array(weight.data if isinstance(weight, Tensor) else weight), logits.data)
        check_shapes("cross_entropy", logits=("... V", logits), weight=("V", weight))
        settings["class_weights"] = weight.astype(logits.dtype, copy=False)
        if label_smoothing:
            return _smoothed_with_weights(logits, targets, label_smoothing, **settings)
    return CROSS_ENTROPY(logits, targets, label_smoothing=float(label_smoothing), overwrite=overwrite, **settings)


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


def _smoothed_with_weights(
    logits: Tensor, targets: Array, label_smoothing: float, *, class_weights: Array, ignore_index: int, reduction: str
) -> Tensor:
    """(1 - e) w_t (-log p_t) + e/V sum_i w_i (-log p_i), the mean over the sum of w_t, as PyTorch combines the two."""
    counted = targets != ignore_index
    class_weights = snapshot(class_weights)  # the backward of the product reads them
    settings: dict[str, Any] = dict(ignore_index=ignore_index, reduction="none")
    of_target = cross_entropy(logits, targets, weight=class_weights, dim=-1, **settings)  # (...)
    of_all = -(log_softmax(logits) * Tensor(class_weights)).mean(axis=-1)  # (...)
    loss = (1 - label_smoothing) * of_target + where(counted, label_smoothing * of_all, 0.0)  # (...)
    if reduction != "mean":
        return loss if reduction == "none" else loss.sum()
    total = (class_weights[np.where(counted, targets, 0)] * counted).sum()
    return loss.sum() / Tensor(np.where(total == 0, 1, total).astype(logits.dtype))
