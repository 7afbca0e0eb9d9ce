"""Tensor parallelism: every rank has some columns or rows of each large matrix, and all work on the same batch.

Two matrices in a row need no communication between them, if the first is cut by its outputs and the second by its
inputs (Shoeybi et al. 2019, "Megatron-LM", arXiv:1909.08053, section 3). With A in parts A_r and B in parts B_r,

    y = f(x A^T) B^T = sum over r of f(x A_r^T) B_r^T

where f acts on each number, as GELU and SwiGLU do, or on each head, as attention does. So a rank computes one term,
and one sum makes y known to all. In the backward dy is known to all, dA_r and dB_r follow without a word, and

    dx = sum over r of dx_r

is the other sum. They are a pair of operations, each the other's backward, that stand at both ends of such a pair of
matrices: `copy_to_ranks` (nothing forward, sum backward) and `reduce_from_ranks` (sum forward, nothing backward).

    x -- copy -- qkv: heads of r -- attention -- proj: columns of r -- reduce -- + bias -- dropout -- residual
    x -- copy -- fc: rows of r   -- gelu      -- proj: columns of r -- reduce -- + bias -- dropout -- residual

The vocabulary is cut too. A rank looks up the ids whose rows it has, gives zeros for the others, and the sum is the
embedding. The output layer gives each rank the logits of its ids, which stay there: the loss needs three numbers of
each token from the others (`vocabulary_cross_entropy`).

What is not cut (norms, the biases after a sum, positions) every rank has whole. It gets the same gradients on all, bit
for bit, because sums are, so it stays the same; and so do the dropout masks of the residual stream. In attention a rank
draws its part of the mask (`random.part`).

**Bytes** that a rank sends in a step of n ranks, for L blocks and a batch of N = B T tokens with C channels: there are
2 sums forward and 2 backward in each block, 1 in the embedding, 1 behind the output layer, and 3 numbers of each token
in the loss. An all_reduce sends 2 (n - 1) / n of its numbers (communicator.py), so that

    bytes = 2 (n - 1) / n N ((4 L + 2) C + 3) itemsize

where the 3 are of float32 for bfloat16 (`step_bytes`). Weights and their gradients are never sent. A block that is
computed again in the backward (recompute.py) makes its 2 sums of the forward again. Called as model(ids), the model
gathers the logits: (n - 1) N ceil(V / n) numbers more.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minillm import ops, random
from minillm.autograd import Op, Parameter, Tensor
from minillm.backend import Array, as_array, as_rows, contiguous, row_blocks, row_max
from minillm.device import is_on_gpu, like
from minillm.errors import DtypeError, InputError, ShapeError, check_index
from minillm.models import llama
from minillm.models.gemma import Gemma
from minillm.models.gpt2 import GPT2
from minillm.nn import MLP, Decoder, Embedding, KVCache, Linear, Module, SelfAttention
from minillm.ops.cross_entropy import (
    Saved,
    cross_entropy_backward_cuda,
    cross_entropy_forward_cuda,
    memory_for_gradient,
)
from minillm.parallel.communicator import Communicator, bounds
from minillm.sums import row_sums, sum_over


def step_bytes(layers: int, tokens: int, channels: int, ranks: int, itemsize: int = 4) -> float:
    """What a rank sends in a step, in bytes: 2 (n - 1) / n N ((4 L + 2) C + 3) itemsize, and 4 for the 3 in bfloat16.

    tokens: N = B T of the batch; itemsize: of a number of the activations. Shares of a rank, on average: the numbers of
    an all_reduce may not divide by n.
    """
    sent = (4 * layers + 2) * channels * itemsize + 3 * max(4, itemsize)
    return 2 * (ranks - 1) / ranks * tokens * sent


# --- how a parameter is cut ----------------------------------------------------------------------------------------


class Cut(NamedTuple):
    """Which rows (axis 0) or columns (axis 1) of a whole parameter a rank has: its runs, one after another."""

    axis: int
    runs: tuple[tuple[int, int], ...]  # first, and one past the last
    size: int  # of the axis in the whole


def slices(model: Module) -> dict[str, Cut | None]:
    """Of each parameter, by its name, how it is cut; None for one that every rank has whole."""
    cuts = {}
    for path, module in model.named_modules():
        for name, cut in vars(module).get("cuts", {}).items():
            cuts[f"{path}.{name}" if path else name] = cut
    return {name: cuts.get(name) for name, _ in model.named_parameters()}


def take(cut: Cut | None, whole: Array) -> Array:
    """This rank's part of a whole parameter, gradient or moment: a copy, or `whole` itself where nothing is cut.

    Raises: ShapeError for a whole of another size.
    """
    if cut is None:
        return whole
    _check_whole("take", cut, whole)
    runs = [whole[(slice(None),) * cut.axis + (slice(*run),)] for run in cut.runs]
    return np.concatenate(runs, axis=cut.axis)


def put(cut: Cut | None, whole: Array, part: Array) -> None:
    """Write a rank's part to its places in the whole; all ranks' parts fill it.

    Raises: ShapeError for a whole or a part of another size.
    """
    if cut is None:
        whole[...] = part
        return
    _check_whole("put", cut, whole)
    edges = list(itertools.accumulate((stop - first for first, stop in cut.runs), initial=0))
    if part.shape[cut.axis] != edges[-1]:
        raise ShapeError(f"put: the part has {part.shape[cut.axis]} along axis {cut.axis}, its runs have {edges[-1]}")
    before = (slice(None),) * cut.axis
    for run, place in zip(cut.runs, itertools.pairwise(edges), strict=True):
        whole[(*before, slice(*run))] = part[(*before, slice(*place))]


def _check_whole(function: str, cut: Cut, whole: Array) -> None:
    if whole.shape[cut.axis] != cut.size:
        raise ShapeError(
            f"{function}: axis {cut.axis} has {whole.shape[cut.axis]}, but a whole parameter {cut.size}; give all of it"
        )


# --- operations: collectives with their backward -------------------------------------------------------------------


def copy_forward(x, *, communicator):
    return x, communicator


def copy_backward(dout, communicator):
    dx = dout.copy(order="C")
    communicator.all_reduce(dx, what="activation gradients").wait()
    return (dx,)


COPY = Op("copy_to_ranks", copy_forward, copy_backward)


def copy_to_ranks(x: Tensor, communicator: Communicator) -> Tensor:
    """x, the same on all ranks, which go different ways with it: forward nothing, backward the sum of their gradients.

    Bytes: backward, an all_reduce of x.
    """
    return COPY(x, communicator=communicator)


def reduce_forward(x, inside, *, communicator, overwrite):
    y = x if overwrite and x.flags.c_contiguous else x.copy(order="C")
    if inside is not None:
        np.copyto(y, 0, where=~inside[..., None])  # y[~inside] = 0 would have a GPU's host wait to count them
    communicator.all_reduce(y, what="activations").wait()
    return y, inside


def reduce_backward(dout, inside):
    if inside is None:
        return dout, None
    dx = dout.copy()
    np.copyto(dx, 0, where=~inside[..., None])
    return dx, None


REDUCE = Op("reduce_from_ranks", reduce_forward, reduce_backward, aliases=True)


def reduce_from_ranks(
    x: Tensor, communicator: Communicator, inside: Array | None = None, overwrite: bool = False
) -> Tensor:
    """The sum of the ranks' x, which then is the same on all: forward the sum, backward the gradient as it comes.

    inside: which rows of x count, boolean, of x's shape without its last axis; this rank's others are 0 in the sum.
    overwrite: let the sum take the memory of x, which nothing else may use after it.
    Bytes: forward, an all_reduce of x.
    """
    return REDUCE(x, inside, communicator=communicator, overwrite=overwrite)


def gather_forward(x, *, size, communicator):
    edges = bounds(size, communicator.size)
    widest = edges[1]
    mine = np.zeros_like(x, shape=(*x.shape[:-1], widest), order="C")  # all parts of an all_gather are of one size
    mine[..., : x.shape[-1]] = x
    parts = np.empty_like(mine, shape=(communicator.size, *mine.shape))
    communicator.all_gather(mine, parts, what="activations").wait()
    counts = [stop - first for first, stop in itertools.pairwise(edges)]
    whole = np.concatenate([part[..., :count] for part, count in zip(parts, counts, strict=True)], axis=-1)
    return whole, slice(edges[communicator.rank], edges[communicator.rank + 1])


def gather_backward(dout, mine):
    return (dout[..., mine],)


GATHER = Op("gather_from_ranks", gather_forward, gather_backward, aliases=True)


def gather_from_ranks(x: Tensor, communicator: Communicator, size: int) -> Tensor:
    """The ranks' x beside each other along the last axis, `size` in all, cut as `communicator.bounds` does.

    Forward an all_gather; backward a rank's own columns of the gradient, which is the same on all.
    Raises: ShapeError for an x of another number of columns.
    """
    first, stop = bounds(size, communicator.size)[communicator.rank : communicator.rank + 2]
    if x.shape[-1] != stop - first:
        raise ShapeError(
            f"gather_from_ranks: x has {x.shape[-1]} columns, but rank {communicator.rank} has {stop - first} of {size}"
        )
    return GATHER(x, size=size, communicator=communicator)


# --- cross-entropy of logits that are cut ----------------------------------------------------------------------------
#
# Rank r has the logits x_i of its classes i. With the largest of all, m = max over r of m_r, m_r = max_i x_i,
#
#     s = sum over r of s_r e^(m_r - m),   s_r = sum_i e^(x_i - m_r)
#     loss = -log p_t = log s - (x_t - m)
#
# so the ranks need a maximum, m, and two sums: s, and x_t - m, to which the rank that has t gives it and the others 0.
# The backward needs nothing: a rank knows m and s, and dx_i = g (e^(x_i - m) / s - 1[i = t]) for each of its classes,
# where the 1 is never met on a rank that does not have t (Shoeybi et al. 2019, section 3, "output embedding").


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
    result = cross_entropy_forward_cuda(logits, zeros, ignore_index=-1, label_smoothing=0.0, reduction="none")
    return _loss(contiguous(logits), targets, result[1].largest, result[1].total, **settings)


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
    cuda=(vocabulary_cross_entropy_forward_cuda, cross_entropy_backward_cuda),
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


# --- layers ----------------------------------------------------------------------------------------------------------


class Part(Module):
    """A layer of which each rank has a part: the parameters of a whole layer, cut."""

    def __init__(self, whole: Module, communicator: Communicator, cuts: Mapping[str, Cut]):
        vars(self).update(vars(whole))
        self.communicator = communicator
        _cut(self, cuts)


class RowParallelLinear(Part):
    """y = (sum over the ranks of x_r W_r^T) + b: W (out, in) is cut by its columns, x (..., in) by its last axis."""

    weight: Parameter
    bias: Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (..., in of this rank); result (..., out), the same on all ranks."""
        y = reduce_from_ranks(ops.linear(x, self.weight), self.communicator, overwrite=True)
        return y if self.bias is None else y + self.bias


class VocabularyParallelEmbedding(Part):
    """One row of a (V, C) table for each id; each rank has some of the rows."""

    weight: Parameter
    cuts: dict[str, Cut]

    def forward(self, ids: Any) -> Tensor:
        """Shapes: ids (...); result (..., C), the same on all ranks."""
        ids = ids.data if isinstance(ids, Tensor) else as_array(ids)
        cut = self.cuts["weight"]
        check_index("embedding", ids, cut.size, "token id")
        ((first, stop),) = cut.runs
        inside = (ids >= first) & (ids < stop)
        y = ops.embedding(np.where(inside, ids - first, 0), self.weight)
        return reduce_from_ranks(y, self.communicator, like(inside, y.data), overwrite=True)


def _cut(layer: Module, cuts: Mapping[str, Cut]) -> None:
    """Cut parameters of a layer, and have it remember how."""
    vars(layer)["cuts"] = dict(cuts)
    for name, cut in cuts.items():
        parameter = vars(layer)[name]
        if parameter.shape[cut.axis] == sum(stop - first for first, stop in cut.runs) != cut.size:
            continue  # another layer has the same weight, and it was cut there
        parameter.data = take(cut, parameter.data)
        parameter.grad = parameter.grad_buffer = None


def _share(size: int, communicator: Communicator, start: int = 0) -> tuple[int, int]:
    """This rank's run of `size` rows or columns that begin at `start`."""
    edges = bounds(size, communicator.size)
    return start + edges[communicator.rank], start + edges[communicator.rank + 1]


def _cut_rows(layer: Linear, communicator: Communicator, *parts: int) -> None:
    """Cut a linear layer by its outputs, in parts that are each cut: rows of the weight, and their biases."""
    starts = itertools.accumulate(parts, initial=0)
    runs = tuple(_share(size, communicator, start) for size, start in zip(parts, starts, strict=False))
    _cut(layer, {name: Cut(0, runs, sum(parts)) for name in ("weight", "bias") if vars(layer)[name] is not None})


def _cut_columns(layer: Linear, communicator: Communicator, size: int) -> RowParallelLinear:
    """Cut a linear layer by its `size` inputs: columns of the weight."""
    return RowParallelLinear(layer, communicator, {"weight": Cut(1, (_share(size, communicator),), size)})


def _begin_with_copy(layer: Module, forward: Callable, communicator: Communicator, heads: Any = None) -> None:
    """Give a layer a forward that begins with the copy; its attention has some of `heads` heads."""
    place = None if heads is None else (_share(heads, communicator)[0], heads)

    def on_ranks(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with random.part(heads=place):
            return forward(copy_to_ranks(x, communicator), *args, **kwargs)

    vars(layer)["forward"] = on_ranks


# --- whole models ----------------------------------------------------------------------------------------------------


def tensor_parallel(model: Decoder, communicator: Communicator) -> Decoder:
    """Cut a GPT2 or a Llama in place, so that each rank of the group keeps its part; returns the model.

    Call it on all ranks with the same weights (the same seed, or one checkpoint), after `to` and before an optimiser
    is built. Then `loss`, `model(ids)` and `generate` are called on all ranks with the same ids, and give the same
    everywhere. Names of parameters stay; `slices` says which part each is. Besides, `model.loss_of(features, targets,
    reduction)` gives the loss of what `model.features` gives, for a pipeline's last stage.
    Raises: InputError for another model, and for heads, key heads, hidden channels that the ranks do not divide, or
        fewer tokens than ranks; the model is then as it was.
    """
    _check(model, communicator.size)
    if communicator.size == 1:
        vars(model)["loss_of"] = functools.partial(_whole_loss_of, model)
        return model
    hidden = model.config.hidden if isinstance(model, llama.Llama) else model.config.size_of_mlp
    for layer in {id(module): module for _, module in model.named_modules()}.values():  # one used twice is cut once
        if isinstance(layer, SelfAttention):
            _cut_self_attention(layer, communicator)
        elif isinstance(layer, llama.Attention):
            _cut_grouped_attention(layer, communicator)
        elif isinstance(layer, MLP):
            _cut_rows(layer.fc, communicator, hidden)
            vars(layer)["proj"] = _cut_columns(layer.proj, communicator, hidden)
            _begin_with_copy(layer, layer.forward, communicator)
        elif isinstance(layer, llama.GatedMLP):
            for linear in (layer.gate, layer.up):
                _cut_rows(linear, communicator, hidden)
            vars(layer)["down"] = _cut_columns(layer.down, communicator, hidden)
            _begin_with_copy(layer, layer.forward, communicator)
    _cut_vocabulary(model, communicator)
    return model


def _check(model: Decoder, ranks: int) -> None:
    if not isinstance(model, (GPT2, llama.Llama)) or isinstance(model, Gemma):
        raise InputError(f"tensor_parallel: a {type(model).__name__} cannot be cut; give a GPT2 or a Llama")
    if any(slices(model).values()):
        raise InputError("tensor_parallel: the model is cut already; build it anew")
    config = model.config
    if getattr(config, "qk_norm", False):
        raise InputError("tensor_parallel: qk_norm=True cannot be cut, for each rank would know a part of its gradient")
    hidden = config.hidden if isinstance(model, llama.Llama) else config.size_of_mlp
    sizes = {"heads": config.heads, "kv_heads": getattr(config, "kv_heads", config.heads), "hidden": hidden}
    for name, size in sizes.items():
        if size % ranks:
            raise InputError(f"tensor_parallel: {ranks} ranks do not divide {name}={size}; take fewer ranks")
    if config.vocab_size < ranks:
        raise InputError(f"tensor_parallel: vocab_size={config.vocab_size} is less than {ranks} ranks")


def _cut_self_attention(layer: SelfAttention, communicator: Communicator) -> None:
    channels, heads = layer.qkv.weight.shape[1], layer.heads
    _cut_rows(layer.qkv, communicator, channels, channels, channels)
    vars(layer).update(proj=_cut_columns(layer.proj, communicator, channels), heads=heads // communicator.size)
    _begin_with_copy(layer, layer.forward, communicator, heads)


def _cut_grouped_attention(layer: llama.Attention, communicator: Communicator) -> None:
    heads, kv_heads, n = layer.heads, layer.kv_heads, communicator.size
    _cut_rows(layer.qkv, communicator, *(count * layer.head_size for count in (heads, kv_heads, kv_heads)))
    proj = _cut_columns(layer.proj, communicator, heads * layer.head_size)
    vars(layer).update(proj=proj, heads=heads // n, kv_heads=kv_heads // n)
    _begin_with_copy(layer, layer.forward, communicator, heads)


def _cut_vocabulary(model: Any, communicator: Communicator) -> None:
    """Cut what has a row for each token, where the model has it: a stage of a pipeline may have neither."""
    size = model.config.vocab_size
    if isinstance(getattr(model, "wte", None), Embedding):
        cut = Cut(0, (_share(size, communicator),), size)
        model.wte = VocabularyParallelEmbedding(model.wte, communicator, {"weight": cut})
    if isinstance(getattr(model, "lm_head", None), Linear):
        _cut_rows(model.lm_head, communicator, size)

    def own_logits(x: Tensor) -> Tensor:
        return ops.linear(copy_to_ranks(x, communicator), model.output_weight)  # (..., V_r)

    def forward(ids: Any) -> Tensor:
        return gather_from_ranks(own_logits(model.features(ids)), communicator, size)

    def next_logits(ids: Any, cache: list[KVCache]) -> Tensor:
        return gather_from_ranks(own_logits(model.features(ids, cache)[:, -1]), communicator, size)

    def loss_of(x: Tensor, targets: Any, reduction: str = "mean") -> Tensor:
        return vocabulary_cross_entropy(own_logits(x), targets, communicator, size, reduction=reduction, overwrite=True)

    def loss(ids: Any, targets: Any, reduction: str = "mean") -> Tensor:
        return loss_of(model.features(ids), targets, reduction)

    def new_cache(batch: int = 1, padding: Array | None = None) -> list[KVCache]:
        config = model.config
        heads = getattr(config, "kv_heads", config.heads)
        head_size = getattr(config, "size_of_head", config.channels // config.heads)
        shape = (batch, heads // communicator.size, config.context, head_size)
        return [KVCache(*shape, model.ln_f.weight.data, padding) for _ in model.h]

    vars(model).update(forward=forward, next_logits=next_logits, loss_of=loss_of, loss=loss, new_cache=new_cache)


def _whole_loss_of(model: Decoder, x: Tensor, targets: Any, reduction: str = "mean") -> Tensor:
    return ops.cross_entropy(model.logits(x), targets, reduction=reduction, overwrite=True, dim=-1)
