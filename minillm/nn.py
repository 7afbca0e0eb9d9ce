"""Layers: objects that hold parameters and call operations.

A Module finds its parameters by walking its own attributes; nothing is registered, and assigning an attribute is just
that. A parameter's key in the state dict is the path to it, such as `h.3.attn.qkv.weight`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minillm import autograd, backend, module_hints, ops, pretrained, random
from minillm.autograd import Parameter, Tensor
from minillm.backend import Array
from minillm.device import like, to_device
from minillm.dtypes import device_and_dtype
from minillm.errors import CheckpointError, DtypeError, GraphError, ShapeError
from minillm.grad_mode import quiet, state


class Module:
    """Base of all layers and models: subclasses set attributes in __init__ and define `forward`."""

    training = True
    name = ""  # the path from the model to this layer, set by assign_names; errors and profiles show it

    def __getattr__(self, name: str) -> Any:
        raise module_hints.missing_in_module(name, self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer computes; called by `module(...)`."""
        raise TypeError(f"{type(self).__name__}: a Module needs a forward method")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = autograd.enter_scope(self.name)
        try:
            if state.quiet:
                output = self.forward(*args, **kwargs)
            else:
                with quiet():
                    output = self.forward(*args, **kwargs)
            for observer in state.observers:
                if observer.on_module is not None:
                    observer.on_module(self, args, output)
            return output
        finally:
            autograd.enter_scope(before)

    def named_children(self) -> Iterator[tuple[str, Any]]:
        """The modules and parameters directly below, each with its attribute name; in lists and dicts, also its key."""
        yield from _find_children(vars(self).items())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below, each with its path."""
        yield prefix, self
        for name, child in self.named_children():
            if isinstance(child, Module):
                yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter with its path, in the order of the attributes; a tied one once, under its first path."""
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, child in module.named_children():
                if isinstance(child, Parameter) and id(child) not in seen:
                    seen.add(id(child))
                    yield (f"{path}.{name}" if path else name), child

    def parameters(self) -> list[Parameter]:
        """Every parameter, a tied one once."""
        return [parameter for _, parameter in self.named_parameters()]

    def num_parameters(self) -> int:
        """The number of weights, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def assign_names(self) -> None:
        """Tell every layer and parameter its path; a model calls this at the end of its __init__."""
        for path, module in self.named_modules():
            module.name = path
        for path, parameter in self.named_parameters():
            parameter.name = path

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on (or off, see eval) in all layers; returns the module."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Any:
        """Switch dropout off in all layers; returns the module."""
        return self.train(False)

    def to(self, *targets: Any) -> Any:
        """Move all parameters to a device, convert them to a dtype, or both: `model.to("cuda", "bfloat16")`.

        Do this before building an optimiser. Returns the module.
        Raises: DeviceError for a device that is not there, DtypeError for what is neither that nor a dtype of floats.
        """
        device, dtype = device_and_dtype(targets)
        if dtype is not None and dtype.kind in "iub":
            raise DtypeError(f"to: parameters of dtype {dtype} could not be trained; give a floating dtype")
        for parameter in self.parameters():
            data = parameter.data if dtype is None else parameter.data.astype(dtype)
            parameter.data = data if device is None else to_device(data, device)
            parameter.grad = parameter.grad_buffer = None
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, or fill them with zeros."""
        for parameter in self.parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad[...] = 0

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Ask for the gradients of all parameters, or freeze them; returns the module."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def modules(self) -> Iterator[Module]:
        """This module and all below."""
        yield from (module for _, module in self.named_modules())

    def children(self) -> Iterator[Module]:
        """The modules directly below."""
        yield from (child for _, child in self.named_children() if isinstance(child, Module))

    def apply(self, function: Callable[[Module], Any]) -> Any:
        """Call `function` on every module, those below first; returns the module."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def save_pretrained(self, folder: str | Path, max_shard_bytes: int = 5 * 10**9) -> None:
        """Write config.json and model.safetensors, which transformers' `from_pretrained` reads; see pretrained.py.

        Raises: InputError for a module without a form in Hugging Face's format, CheckpointError where a file cannot be
        written.
        """
        pretrained.save_pretrained(self, folder, max_shard_bytes)

    def state_dict(self) -> dict[str, Array]:
        """Every parameter's array under its path: references, not copies."""
        return {name: parameter.data for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy arrays into the parameters, all of them or none.

        Raises: CheckpointError that lists every missing, unexpected and misshapen name at once.
        """
        own = dict(self.named_parameters())
        problems = [f"missing {name}" for name in own if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in own]
        problems += [
            f"{name} has shape {np.shape(state[name])}, expected {parameter.shape}"
            for name, parameter in own.items()
            if name in state and np.shape(state[name]) != parameter.shape
        ]
        if problems:
            raise CheckpointError(
                f"load_state_dict: the weights do not fit {type(self).__name__}: {'; '.join(problems)}; "
                "build the model with the configuration that the weights were saved with"
            )
        for name, parameter in own.items():
            parameter.data[...] = like(backend.as_array(state[name]), parameter.data)
            parameter.version += 1  # a graph of the weights before is of no use any more


def _find_children(items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str, Any]]:
    for name, value in items:
        if isinstance(value, (Module, Parameter)):
            yield str(name), value
        elif isinstance(value, (list, tuple, dict)):
            inside = value.items() if isinstance(value, dict) else enumerate(value)
            yield from ((f"{name}.{path}", child) for path, child in _find_children(inside))


_draws = True


@contextlib.contextmanager
def uninitialized() -> Iterator[None]:
    """Within, new layers get memory for their matrices, but no numbers: for a model that is about to be loaded."""
    global _draws
    before, _draws = _draws, False
    try:
        yield
    finally:
        _draws = before


def normal_(array: Array, std: float) -> None:
    """Fill an array from N(0, std), by the project's random stream."""
    if _draws:
        normal = random.default.numpy().standard_normal(array.shape, dtype=np.float32)
        np.multiply(normal, std, out=array)


def uniform_(bound: float, *arrays: Array) -> None:
    """Fill arrays from U(-bound, bound), by the project's random stream."""
    if _draws:
        generator = random.default.numpy()
        for array in arrays:
            array[...] = generator.uniform(-bound, bound, array.shape)


class ModuleList(Module):
    """A list of modules, whose places are their names. A plain list serves as well: a Module looks into its lists."""

    def __init__(self, modules: Iterable[Module] = ()):
        self.members = _checked_modules(type(self).__name__, modules)

    def named_children(self) -> Iterator[tuple[str, Any]]:
        yield from _find_children(enumerate(self.members))

    def append(self, module: Module) -> ModuleList:
        """Add a module at the end; returns the list."""
        return self.extend([module])

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        """Add modules at the end; returns the list."""
        self.members += _checked_modules(type(self).__name__, modules)
        return self

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.members)

    def __getitem__(self, place: int | slice) -> Any:
        return self.members[place]

    def __setitem__(self, place: int, module: Module) -> None:
        (self.members[place],) = _checked_modules(type(self).__name__, [module])


class Sequential(ModuleList):
    """Modules that run one after the other, each on the output of the one before.

    The place of a module is its name, so the first one's weight has the path `0.weight`, as in PyTorch.
    """

    def __init__(self, *modules: Module):
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x


def _checked_modules(owner: str, modules: Iterable[Any]) -> list[Module]:
    """The modules as a list. Raises: DtypeError for what is no Module, such as a function."""
    checked = list(modules)
    for place, module in enumerate(checked):
        if not isinstance(module, Module):
            raise DtypeError(
                f"{owner}: element {place} is {module!r}, which is not a Module; give layers such as "
                "nn.Linear(4, 4) or nn.GELU()"
            )
    return checked


class Linear(Module):
    """y = x W^T + b, with W (out, in) and b from U(-1/sqrt(in), 1/sqrt(in)), as in PyTorch."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        bound = 1 / math.sqrt(in_features) if in_features else 0.0
        self.weight = Parameter(np.empty((out_features, in_features), np.float32))
        self.bias = Parameter(np.empty(out_features, np.float32)) if bias else None
        uniform_(bound, *(parameter.data for parameter in (self.weight, self.bias) if parameter is not None))

    def forward(self, x: Tensor, add_bias: bool = True) -> Tensor:
        """x W^T + b, or without b for an operation that adds it itself."""
        return ops.linear(x, self.weight, self.bias if add_bias else None)


class Embedding(Module):
    """One row of a (V, C) table for each id, the table from N(0, 1), as in PyTorch.

    padding_idx: an id whose row begins as zeros and gets no gradient.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None):
        self.weight = Parameter(np.empty((num_embeddings, embedding_dim), np.float32))
        self.padding_idx = padding_idx
        normal_(self.weight.data, 1.0)
        if padding_idx is not None:
            self.weight.data[padding_idx] = 0

    def forward(self, ids: Any) -> Tensor:
        return ops.embedding(ids, self.weight, self.padding_idx)


class LayerNorm(Module):
    """Layer normalisation over the last axis, weight 1 and bias 0 at the start.

    elementwise_affine: without, there is neither weight nor bias.
    """

    def __init__(self, channels: int, eps: float = 1e-5, bias: bool = True, elementwise_affine: bool = True):
        self.weight = Parameter(np.ones(channels, np.float32)) if elementwise_affine else None
        self.bias = Parameter(np.zeros(channels, np.float32)) if bias and elementwise_affine else None
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        """The norm of x; with a residual, the pair of x + residual and its norm."""
        if residual is not None:
            return ops.add_layer_norm(x, residual, self.weight, self.bias, self.eps)
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """Root-mean-square normalisation over the last axis, weight 1 at the start."""

    def __init__(self, channels: int, eps: float = 1e-6):
        self.weight = Parameter(np.ones(channels, np.float32))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class Dropout(Module):
    """Zero each element with probability p while training."""

    def __init__(self, p: float):
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.training)


class ReLU(Module):
    """max(x, 0); see ops.relu."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class GELU(Module):
    """x Phi(x), or its approximation by "tanh"; see ops.gelu."""

    def __init__(self, approximate: str = "none"):
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(x, self.approximate)


class SiLU(Module):
    """x sigmoid(x); see ops.silu."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.silu(x)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.tanh(x)


class Sigmoid(Module):
    """1 / (1 + e^-x)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.sigmoid(x)


class Softmax(Module):
    """Probabilities along one axis; see ops.softmax."""

    def __init__(self, dim: int = -1):
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return ops.softmax(x, dim=self.dim)


class Identity(Module):
    """x itself."""

    def forward(self, x: Any) -> Any:
        return x


class CrossEntropyLoss(Module):
    """-log p(target) of logits; see ops.cross_entropy for the layouts and for what the settings mean."""

    def __init__(
        self,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ):
        self.weight = weight
        self.ignore_index, self.reduction, self.label_smoothing = ignore_index, reduction, label_smoothing

    def forward(self, logits: Tensor, targets: Any) -> Tensor:
        return ops.cross_entropy(
            logits, targets, self.ignore_index, self.label_smoothing, self.reduction, weight=self.weight
        )


class MSELoss(Module):
    """The mean of (x - target)^2; see ops.mse_loss."""

    def __init__(self, reduction: str = "mean"):
        self.reduction = reduction

    def forward(self, x: Tensor, target: Any) -> Tensor:
        return ops.mse_loss(x, target, self.reduction)


class KVCache:
    """The keys and values of the positions that an attention layer has seen, so that none is computed twice.

    Memory for `capacity` positions is taken at once: 2 B G capacity D numbers. `length` positions are filled.
    padding: of each sequence, how many of its first positions hold no token (see `Decoder.new_cache`).
    """

    def __init__(
        self, batch: int, heads: int, capacity: int, head_size: int, like: Array, padding: Array | None = None
    ):
        self.keys, self.values = np.empty_like(like, shape=(2, batch, heads, capacity, head_size), order="C")
        self.length = 0
        self.padding = padding

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values (B, G, T, D) of the next T positions; returns those of all positions so far.

        Raises: ShapeError where there is no room for them; GraphError where a gradient would be asked for.
        """
        start, stop, capacity = self.length, self.length + k.shape[2], self.keys.shape[2]
        if stop > capacity:
            raise ShapeError(f"KVCache: positions {start} to {stop} do not fit into {capacity}; give fewer tokens")
        if autograd.is_grad_enabled() and (k.requires_grad or v.requires_grad):
            raise GraphError("KVCache: cached keys have no gradient; compute within minillm.no_grad()")
        self.keys[:, :, start:stop], self.values[:, :, start:stop] = k.data, v.data
        self.length = stop
        return Tensor(self.keys[:, :, :stop]), Tensor(self.values[:, :, :stop])

    def restart(self, padding: Array | None = None) -> None:
        """Forget all positions."""
        self.length, self.padding = 0, padding

    def visible(self, stop: int) -> Array | None:
        """Which of the first `stop` positions hold a token, (B, 1, 1, stop); None where all do."""
        if self.padding is None:
            return None
        return (np.arange(stop, like=self.padding) >= self.padding[:, None])[:, None, None]

    def select(self, rows: Array) -> None:
        """Keep these sequences, in this order: some may be dropped, and some be there twice."""
        for name in ("keys", "values"):
            before = getattr(self, name)
            after = np.empty_like(before, shape=(len(rows), *before.shape[1:]))
            after[:, :, : self.length] = before[like(rows, before), :, : self.length]
            setattr(self, name, after)
        self.padding = None if self.padding is None else self.padding[rows]


class Decoder(Module):
    """What models of the next token share; one gives `config`, `embed`, `blocks`, `ln_f`, `output_weight`, `new_cache`.

    With the data: ids, `embed`, `blocks`, the last norm `ln_f`, the product with `output_weight`, logits.
    eos_ids: the tokens that end a text, where the model's files say so; give them to `generate` as `stop`.
    """

    config: Any
    ln_f: Module
    eos_ids: tuple[int, ...] = ()

    def embed(self, ids: Any, cache: list[KVCache] | None = None) -> Tensor:
        """What the first block gets, (B, T, C), of ids (B, T) that follow what the cache has seen."""
        raise TypeError(f"{type(self).__name__}: a Decoder needs an embed method")

    def blocks(self, x: Tensor, cache: list[KVCache] | None = None) -> Tensor:
        """What the last norm gets, (B, T, C), of what the first block gets; keys and values enter the cache."""
        raise TypeError(f"{type(self).__name__}: a Decoder needs a blocks method")

    def features(self, ids: Any, cache: list[KVCache] | None = None) -> Tensor:
        """What the output layer gets, (B, T, C), of ids (B, T) that follow what the cache has seen, and enter it."""
        return self.ln_f(self.blocks(self.embed(ids, cache), cache))

    @property
    def output_weight(self) -> Tensor:
        """Of the output layer, (V, C)."""
        raise TypeError(f"{type(self).__name__}: a Decoder needs an output_weight")

    def new_cache(self, batch: int = 1, padding: Array | None = None) -> list[KVCache]:
        """An empty cache for `next_logits`, one for each block, with room for the whole context.

        padding: (B,), integers: prompts of different lengths stand in one array with their ends aligned, and of each
            row this many ids at its start are no text. Nothing sees them, and positions count from where text begins.
        """
        raise TypeError(f"{type(self).__name__}: a Decoder needs a new_cache method")

    def keeps_cache(self, start: int, stop: int) -> bool:
        """Whether what is cached of `start` tokens holds when there are `stop`; if not, all is computed anew."""
        return True

    def checked_positions(self, ids: Any, cache: list[KVCache] | None) -> tuple[Array, int, int]:
        """The ids as an array (B, T), their first position, and the one after the last.

        Raises: ShapeError for ids of another number of dimensions, or more than the context holds.
        """
        ids = ids.data if isinstance(ids, Tensor) else backend.as_array(ids)
        if ids.ndim != 2:
            raise ShapeError(
                f"{type(self).__name__}: ids have shape {ids.shape}; give (B, T), such as ids[None] for one sequence"
            )
        start = cache[0].length if cache else 0
        stop = start + ids.shape[1]
        if self.config.context < stop:
            raise ShapeError(
                f"{type(self).__name__}: ids have T={stop}{' with the cache' if start else ''}, but the context is "
                f"{self.config.context}; give that many at most"
            )
        return ids, start, stop

    def logits(self, features: Tensor) -> Tensor:
        """Of features (..., C), the logits (..., V)."""
        return ops.linear(features, self.output_weight)

    def forward(self, ids: Any) -> Tensor:
        return self.logits(self.features(ids))  # (B, T, V)

    def next_logits(self, ids: Any, cache: list[KVCache]) -> Tensor:
        """The logits (B, V) of what follows ids (B, T), which follow what the cache has seen, and enter it."""
        return self.logits(self.features(ids, cache)[:, -1])

    def loss(self, ids: Any, targets: Any, reduction: str = "mean") -> Tensor:
        """Cross-entropy of the logits against targets (B, T), in nats per token; -100 is not counted."""
        return ops.cross_entropy(self(ids), targets, reduction=reduction, overwrite=True, dim=-1)


class SelfAttention(Module):
    """Multi-head attention of a sequence to itself; causal: of each position to those up to its own.

    One product gives queries, keys and values, `qkv`; after attention the heads are joined and mixed by `proj`.
    dropout: probability, of the result; attention_dropout: of each weight in attention.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        bias: bool = True,
        causal: bool = False,
    ):
        self.qkv = Linear(channels, 3 * channels, bias)
        self.proj = Linear(channels, channels, bias)
        self.dropout = Dropout(dropout)
        self.heads, self.attention_dropout, self.causal = (
            checked_heads(self, channels, heads),
            attention_dropout,
            causal,
        )

    def forward(
        self, x: Tensor, cache: KVCache | None = None, mask: Array | None = None, lengths: Any = None
    ) -> Tensor:
        """Shapes: x and the result (B, T, C); mask and lengths as in ops.attention."""
        qkv = self.qkv(x)
        q, k, v = (split_heads(part, self.heads) for part in qkv.split(qkv.shape[-1] // 3, dim=-1))
        if cache is not None:
            k, v = cache.extend(k, v)
        p = self.attention_dropout if self.training else 0.0
        y = ops.attention(q, k, v, mask=mask, lengths=lengths, causal=self.causal, dropout_p=p)
        return self.dropout(self.proj(join_heads(y)))


class CrossAttention(Module):
    """Multi-head attention of one sequence to another, its memory: queries of the one, keys and values of the other."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0, attention_dropout: float = 0.0):
        self.q = Linear(channels, channels)
        self.kv = Linear(channels, 2 * channels)
        self.proj = Linear(channels, channels)
        self.dropout = Dropout(dropout)
        self.heads, self.attention_dropout = checked_heads(self, channels, heads), attention_dropout

    def keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Of a memory (B, S, C), each (B, H, S, D): made once, however many queries come."""
        k, v = self.kv(memory).split(memory.shape[-1], dim=-1)
        return split_heads(k, self.heads), split_heads(v, self.heads)

    def forward(self, x: Tensor, keys_and_values: tuple[Tensor, Tensor], lengths: Any = None) -> Tensor:
        """Shapes: x and the result (B, T, C); lengths: (B,), of each memory the number of real positions."""
        p = self.attention_dropout if self.training else 0.0
        y = ops.attention(split_heads(self.q(x), self.heads), *keys_and_values, lengths=lengths, dropout_p=p)
        return self.dropout(self.proj(join_heads(y)))


def checked_heads(layer: Module, channels: int, heads: int) -> int:
    """The number of heads. Raises: ShapeError where they do not divide the channels."""
    if channels % heads:
        raise ShapeError(f"{type(layer).__name__}: channels={channels} is not a multiple of heads={heads}")
    return heads


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, H D) to (B, H, T, D)."""
    B, T, C = x.shape
    return x.reshape(B, T, heads, C // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, D) to (B, T, H D)."""
    B, H, T, D = x.shape
    return x.transpose(1, 2).reshape(B, T, H * D)


ACTIVATIONS: dict[str, Any] = {
    "gelu_tanh": lambda x, bias: ops.gelu(x, "tanh", bias),
    "gelu": lambda x, bias: ops.gelu(x, "none", bias),
    "relu": lambda x, bias: ops.relu(x if bias is None else x + bias),
    "silu": lambda x, bias: ops.silu(x, bias),
}


class MLP(Module):
    """Two linear layers with an activation between: channels to hidden and back.

    activation: "gelu_tanh" (GPT-2), "gelu" (the exact one), "relu" or "silu".
    """

    def __init__(
        self, channels: int, hidden: int, dropout: float = 0.0, bias: bool = True, activation: str = "gelu_tanh"
    ):
        self.fc = Linear(channels, hidden, bias)
        self.proj = Linear(hidden, channels, bias)
        self.dropout = Dropout(dropout)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x, add_bias=False)  # the activation adds it, GELU where it costs no pass over memory
        return self.dropout(self.proj(ACTIVATIONS[self.activation](x, self.fc.bias)))


def __getattr__(name: str) -> Any:
    known = [one for one, value in globals().items() if isinstance(value, type) and issubclass(value, Module)]
    raise module_hints.missing_part(name, "minillm.nn", known, ops.__all__)
