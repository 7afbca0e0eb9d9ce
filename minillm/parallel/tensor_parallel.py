"""Tensor parallelism: every rank has some columns or rows of each large matrix, and all work on the same batch.

Two matrices in a row need no communication between them if the first is divided by its outputs and the second by its
inputs (Shoeybi et al. 2019, "Megatron-LM", arXiv:1909.08053, section 3). With A in parts A_r and B in parts B_r,

    y = act(x A^T) B^T = sum over r of act(x A_r^T) B_r^T

where act works on each number, as GELU and SwiGLU do, or on each head, as attention does. So a rank computes one term,
and one sum gives y to all. In the backward every rank knows dy, computes dA_r and dB_r without a message, and

    dx = sum over r of dx_r

is the other sum. Megatron calls these two operations f and g (collective_ops.py). They stand at both ends:

    x -- f -- column-parallel linear -- act or attention -- row-parallel linear -- g -- + bias -- dropout -- residual

**Which layers are divided** stands in a table for each model, `gpt2_table` and `llama_table` below:

    column       rows of the weight, which are outputs of the layer, and their biases: ColumnParallelLinear
    row          columns of the weight, which are inputs of the layer; ends with g: RowParallelLinear
    vocabulary   rows of the token table, one for each id: VocabParallelEmbedding
    region       a layer whose input passes f and which has a part of the heads: ParallelRegion

With the token table, a rank looks up the ids whose rows it has, gives zeros for the others, and the sum is the
embedding. The output layer gives each rank the logits of its ids, which stay there: the loss needs three numbers of
each token from the other ranks (ops/vocabulary_cross_entropy.py).

Every rank has whole what no table names: norms, the biases after a sum, positions. Their gradients are the same on all
ranks, bit for bit, because sums are, so they stay the same; and so do the dropout masks of the residual stream. In
attention, where a rank has a part of the heads, it draws its part of the mask (`random.part`).

**Bytes** that a rank sends in a step of n ranks, for L blocks and a batch of N = B T tokens with C channels: there are
2 sums forward and 2 backward in each block, 1 in the embedding, 1 behind the output layer, and 3 numbers of each token
in the loss. An all_reduce sends 2 (n - 1) / n of its numbers (communicator.py), so that

    bytes = 2 (n - 1) / n N ((4 L + 2) C + 3) itemsize

where the 3 numbers are float32 for bfloat16 (`step_bytes`). Weights and their gradients are never sent. A block that is
computed again in the backward (recompute.py) makes its 2 sums of the forward again. Called as model(ids), the model
gathers the logits: (n - 1) N ceil(V / n) numbers more.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minillm import ops, random
from minillm.autograd import Parameter, Tensor
from minillm.backend import Array, as_array
from minillm.device import like
from minillm.errors import InputError, check_index
from minillm.models.gemma import Gemma
from minillm.models.gpt2 import GPT2
from minillm.models.llama import Llama
from minillm.nn import Decoder, Embedding, KVCache, Linear, Module
from minillm.ops.vocabulary_cross_entropy import vocabulary_cross_entropy
from minillm.parallel.collective_ops import copy_to_ranks, gather_from_ranks, reduce_from_ranks
from minillm.parallel.communicator import Communicator, bounds
from minillm.parallel.shard import Shard, shard
from minillm.parallel.wrapper import Wrapper, replace


def step_bytes(layers: int, tokens: int, channels: int, ranks: int, itemsize: int = 4) -> float:
    """Bytes that a rank sends in a step: 2 (n - 1) / n N ((4 L + 2) C + 3) itemsize, and 4 for the 3 in bfloat16.

    tokens: N = B T of the batch; itemsize: bytes of a number of the activations. It is the mean over the ranks: the
    numbers of an all_reduce may not divide by n.
    """
    sent = (4 * layers + 2) * channels * itemsize + 3 * max(4, itemsize)
    return 2 * (ranks - 1) / ranks * tokens * sent


# --- which layers are divided, and how -----------------------------------------------------------------------------

Table = dict[str, tuple[Any, ...]]


def gpt2_table(config: Any) -> Table:
    """For each layer of a GPT2: how it is divided, and the sizes of what is divided."""
    C, F, V = config.channels, config.size_of_mlp, config.vocab_size
    return {
        "wte": ("vocabulary", V),
        "h.*.attn": ("region",),
        "h.*.attn.qkv": ("column", C, C, C),  # queries, keys and values, each by heads
        "h.*.attn.proj": ("row", C),
        "h.*.mlp": ("region",),
        "h.*.mlp.fc": ("column", F),
        "h.*.mlp.proj": ("row", F),
        "lm_head": ("column", V),
    }


def llama_table(config: Any) -> Table:
    """For each layer of a Llama: how it is divided, and the sizes of what is divided."""
    Q, G = config.heads * config.size_of_head, kv_heads(config) * config.size_of_head
    return {
        "wte": ("vocabulary", config.vocab_size),
        "h.*.attn": ("region",),
        "h.*.attn.qkv": ("column", Q, G, G),  # queries, keys and values, each by heads
        "h.*.attn.proj": ("row", Q),
        "h.*.mlp": ("region",),
        "h.*.mlp.gate": ("column", config.hidden),
        "h.*.mlp.up": ("column", config.hidden),
        "h.*.mlp.down": ("row", config.hidden),
        "lm_head": ("column", config.vocab_size),
    }


TABLES: dict[type, Callable[[Any], Table]] = {GPT2: gpt2_table, Llama: llama_table}
AXES = {"column": 0, "vocabulary": 0, "row": 1}  # of the weight that is divided


def table_of(model: Decoder) -> Table:
    """The table of a model. Raises: InputError for a model that has none."""
    for kind, table in TABLES.items():
        if isinstance(model, kind) and not isinstance(model, Gemma):
            return table(model.config)
    raise InputError(f"tensor_parallel: a {type(model).__name__} cannot be divided; give a GPT2 or a Llama")


def kv_heads(config: Any) -> int:
    """The number of heads of keys and values, which may be fewer than those of queries."""
    return getattr(config, "kv_heads", config.heads)


# --- layers ----------------------------------------------------------------------------------------------------------


class ColumnParallelLinear(Linear):
    """y_r = x W_r^T + b_r: a linear layer divided by its outputs, which are rows of W (out, in) and elements of b.

    It computes what Linear does, with fewer rows. sizes: rows of the matrices that the weight holds, one below the
    other; this is rank r's part of each.
    """

    def __init__(self, whole: Linear, communicator: Communicator, *sizes: int):
        spec = divided(0, sizes, communicator)
        self.weight, self.bias = whole.weight, whole.bias
        self.shards = {"weight": spec} if whole.bias is None else {"weight": spec, "bias": spec}
        keep_shards(self)


class RowParallelLinear(Module):
    """y = sum over r of x_r W_r^T, then + b: a linear layer divided by its inputs, which are columns of W (out, in)."""

    def __init__(self, whole: Linear, communicator: Communicator, *sizes: int):
        self.weight, self.bias, self.communicator = whole.weight, whole.bias, communicator
        self.shards = {"weight": divided(1, sizes, communicator)}
        keep_shards(self)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (..., in of this rank); result (..., out), the same on all ranks."""
        y = reduce_from_ranks(ops.linear(x, self.weight), self.communicator, overwrite=True)  # g
        return y if self.bias is None else y + self.bias


class VocabParallelEmbedding(Module):
    """An embedding: a row of a (V, C) table for each id; each rank has some of the rows."""

    def __init__(self, whole: Embedding, communicator: Communicator, *sizes: int):
        self.weight, self.communicator = whole.weight, communicator
        self.shards = {"weight": divided(0, sizes, communicator)}
        keep_shards(self)

    def forward(self, ids: Any) -> Tensor:
        """Shapes: ids (...); result (..., C), the same on all ranks."""
        ids = ids.data if isinstance(ids, Tensor) else as_array(ids)
        spec = self.shards["weight"]
        check_index("embedding", ids, spec.size, "token id")
        ((first, stop),) = spec.runs
        inside = (ids >= first) & (ids < stop)
        y = ops.embedding(np.where(inside, ids - first, 0), self.weight)
        return reduce_from_ranks(y, self.communicator, like(inside, y.data), overwrite=True)  # g


class ParallelRegion(Wrapper):
    """An attention or MLP whose matrices are divided: its input passes f, and attention has this rank's heads."""

    def __init__(self, layer: Module, communicator: Communicator):
        super().__init__(layer)
        self.communicator = communicator
        self.place: tuple[int, int] | None = None  # the first head of this rank, and the number of all
        if "heads" in vars(layer):
            self.place = bounds(layer.heads, communicator.size)[communicator.rank], layer.heads
        for name in vars(layer).keys() & {"heads", "kv_heads"}:
            vars(layer)[name] //= communicator.size

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Shapes: x (B, T, C) and the result are the same on all ranks."""
        with random.part(heads=self.place):
            return self.module(copy_to_ranks(x, self.communicator), *args, **kwargs)  # f


LAYERS: dict[str, Callable[..., Module]] = {
    "column": ColumnParallelLinear,
    "row": RowParallelLinear,
    "vocabulary": VocabParallelEmbedding,
    "region": ParallelRegion,
}


def divided(axis: int, sizes: Sequence[int], communicator: Communicator) -> Shard:
    """This rank's shard of an axis that holds matrices of these sizes, one after another: the r-th part of each."""
    rank, runs = communicator.rank, []
    for size, start in zip(sizes, itertools.accumulate(sizes, initial=0), strict=False):
        edges = bounds(size, communicator.size)
        runs.append((start + edges[rank], start + edges[rank + 1]))
    return Shard(axis, tuple(runs), sum(sizes))


def keep_shards(layer: Any) -> None:
    """Replace the data of a layer's parameters by this rank's shards of them."""
    for name, spec in layer.shards.items():
        parameter: Parameter = getattr(layer, name)
        if parameter.shape[spec.axis] == sum(stop - first for first, stop in spec.runs) != spec.size:
            continue  # another layer has the same parameter, and has divided it
        parameter.data = shard(spec, parameter.data)
        parameter.grad = parameter.grad_buffer = None


# --- whole models ----------------------------------------------------------------------------------------------------


def tensor_parallel(model: Decoder, communicator: Communicator) -> Any:
    """Divide a GPT2 or a Llama in place, so that each rank of the group keeps its part; returns what to call.

    Call it on all ranks with the same weights (the same seed, or one checkpoint), after `to` and before an optimiser
    is built. `loss`, `model(ids)` and `generate` are then called with what is returned, on all ranks with the same ids,
    and give the same everywhere. Parameters keep their names; `shard_specs` says which part of each a rank has.
    Raises: InputError for another model, for heads, kv_heads or hidden channels that the ranks do not divide, and for
        fewer tokens than ranks; the model is then as it was.
    """
    if isinstance(model, TensorParallel):
        raise InputError("tensor_parallel: the model is divided already; build it anew")
    table = table_of(model)
    _check(model.config, communicator.size)
    if communicator.size == 1:
        return model
    made: dict[int, Module] = {}  # a layer that is used at several places is divided once, and stays one
    for path, layer in reversed([*model.named_modules()]):  # those inside a region come before it
        how, *sizes = table.get(re.sub(r"\.\d+\.", ".*.", path), ("whole",))
        if how == "whole":
            continue
        if id(layer) not in made:
            made[id(layer)] = LAYERS[how](layer, communicator, *sizes)
        replace(model, path, made[id(layer)])
    model.assign_names()
    return TensorParallel(model, communicator)


class TensorParallel(Wrapper):
    """A model of which this rank has a part, called as the whole model is."""

    module: Any

    def __init__(self, model: Decoder, communicator: Communicator):
        super().__init__(model)
        self.communicator = communicator

    def own_logits(self, features: Tensor) -> Tensor:
        """Logits (..., V_r) of this rank's part of the vocabulary."""
        return ops.linear(copy_to_ranks(features, self.communicator), self.module.output_weight)  # f

    def logits(self, features: Tensor) -> Tensor:
        """Logits (..., V) of features (..., C)."""
        return gather_from_ranks(self.own_logits(features), self.communicator, self.module.config.vocab_size)

    def forward(self, ids: Any, starts: Any = None) -> Tensor:
        return self.logits(self.module.features(ids, starts=starts))  # (B, T, V)

    def next_logits(self, ids: Any, cache: list[KVCache]) -> Tensor:
        """Logits (B, V) of what follows ids (B, T), which follow the positions in the cache and enter it."""
        return self.logits(self.module.features(ids, cache)[:, -1])

    def loss(self, ids: Any, targets: Any, reduction: str = "mean", starts: Any = None) -> Tensor:
        """Cross-entropy against targets (B, T), in nats per token; -100 is not counted."""
        group, size = self.communicator, self.module.config.vocab_size
        first, stop = bounds(size, group.size)[group.rank : group.rank + 2]  # the classes of this rank
        logits = self.own_logits(self.features(ids, starts=starts))
        return vocabulary_cross_entropy(
            logits, targets, group, (first, stop), size, reduction=reduction, overwrite=True
        )

    def new_cache(self, batch: int = 1, padding: Array | None = None) -> list[KVCache]:
        """An empty cache for `next_logits`, one for each block, for the whole context and the heads of this rank."""
        config = self.module.config
        head_size = getattr(config, "size_of_head", config.channels // config.heads)
        shape = (batch, kv_heads(config) // self.communicator.size, config.context, head_size)
        return [KVCache(*shape, self.module.ln_f.weight.data, padding) for _ in self.module.h]


def _check(config: Any, ranks: int) -> None:
    """Raise InputError unless a model of this configuration can be divided over so many ranks."""
    if getattr(config, "qk_norm", False):
        raise InputError(
            "tensor_parallel: qk_norm=True cannot be divided, because each rank would know only a part of the norms' "
            "gradients; divide the batch (--dp) or the layers (--pp)"
        )
    hidden = getattr(config, "size_of_mlp", config.hidden)
    for name, size in {"heads": config.heads, "kv_heads": kv_heads(config), "hidden": hidden}.items():
        if size % ranks:
            raise InputError(f"tensor_parallel: {ranks} ranks do not divide {name}={size}; take fewer ranks")
    if config.vocab_size < ranks:
        raise InputError(f"tensor_parallel: vocab_size={config.vocab_size} is less than {ranks} ranks; take fewer")
