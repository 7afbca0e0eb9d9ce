"""GPT-2 (Radford et al. 2019): a stack of pre-norm Transformer blocks that predicts the next token.

Read from the bottom up, or with the data: ids (B, T) become vectors (B, T, C), each block adds to them twice, and the
table that turned ids into vectors turns vectors into logits (B, T, V).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minillm import ops, random
from minillm.autograd import Tensor
from minillm.backend import as_array
from minillm.errors import InputError, ShapeError, did_you_mean
from minillm.nn import MLP, CausalSelfAttention, Dropout, Embedding, KVCache, LayerNorm, Module


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2."""

    vocab_size: int = 50257  # V, number of token ids
    context: int = 1024  # longest sequence, in tokens
    layers: int = 12  # L, number of blocks
    heads: int = 12  # H, attention heads per block; must divide channels
    channels: int = 768  # C, width of the residual stream
    dropout: float = 0.0  # probability, after the embedding, in attention and on each residual branch
    bias: bool = True  # whether linear layers and layer norms have a bias

    def __post_init__(self):
        for field in ("vocab_size", "context", "layers", "heads", "channels"):
            if getattr(self, field) < 1:
                raise InputError(f"GPT2Config: {field} is {getattr(self, field)}; give 1 or more")
        if self.channels % self.heads:
            raise InputError(f"GPT2Config: channels={self.channels} is not a multiple of heads={self.heads}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"GPT2Config: dropout is {self.dropout}; give a probability of at least 0 and below 1")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> GPT2Config:
        """A named size, with some fields changed: `GPT2Config.preset("tiny", vocab_size=65)`."""
        if name not in PRESETS:
            raise InputError(f"GPT2Config: no preset is called {name!r}{did_you_mean(name, PRESETS)}")
        return replace(PRESETS[name], **changes)


PRESETS = {
    # for tests: 35 thousand weights
    "nano": GPT2Config(vocab_size=256, context=32, layers=2, heads=2, channels=32),
    # nanoGPT's character-level examples, for a CPU and for a GPU: 0.8 and 11 million
    "tiny": GPT2Config(vocab_size=65, context=64, layers=4, heads=4, channels=128),
    "baby": GPT2Config(vocab_size=65, context=256, layers=6, heads=6, channels=384),
    # the four of the paper: 124, 355, 774 and 1,558 million
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(layers=24, heads=16, channels=1024),
    "gpt2-large": GPT2Config(layers=36, heads=20, channels=1280),
    "gpt2-xl": GPT2Config(layers=48, heads=25, channels=1600),
}


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPT2Config):
        self.ln_1 = LayerNorm(config.channels, bias=config.bias)
        self.attn = CausalSelfAttention(config.channels, config.heads, config.dropout, config.bias)
        self.ln_2 = LayerNorm(config.channels, bias=config.bias)
        self.mlp = MLP(config.channels, 4 * config.channels, config.dropout, config.bias)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x, normed = self.ln_2(x, self.attn(self.ln_1(x), cache))  # the sum, and the norm of it
        return x + self.mlp(normed)


class GPT2(Module):
    """A GPT-2 language model: called with ids (B, T), it returns logits (B, T, V)."""

    def __init__(self, config: GPT2Config):
        self.config = config
        self.wte = Embedding(config.vocab_size, config.channels)  # tokens; also the output layer
        self.wpe = Embedding(config.context, config.channels)  # positions
        self.drop = Dropout(config.dropout)
        self.h = [Block(config) for _ in range(config.layers)]
        self.ln_f = LayerNorm(config.channels, bias=config.bias)
        self.assign_names()
        self._init_weights()

    def _init_weights(self) -> None:
        """Matrices from N(0, 0.02); those that write to the residual stream, two a block, from N(0, 0.02 / sqrt(2L)).

        Source: Radford et al. 2019, section 2.3: the sum of 2L branches would otherwise grow with depth.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = 0.02 / math.sqrt(2 * self.config.layers) if name.endswith("proj.weight") else 0.02
                normal = random.default.numpy().standard_normal(parameter.shape, dtype=np.float32)
                np.multiply(normal, std, out=parameter.data)
            elif name.endswith("bias"):
                parameter.data[...] = 0

    def forward(self, ids: Any) -> Tensor:
        return ops.linear(self.features(ids), self.wte.weight)  # (B, T, V)

    def new_cache(self, batch: int = 1) -> list[KVCache]:
        """An empty cache for `next_logits`, one for each block, with room for the whole context."""
        head_size = self.config.channels // self.config.heads
        shape = (batch, self.config.heads, self.config.context, head_size)
        return [KVCache(*shape, like=self.wte.weight.data) for _ in self.h]

    def next_logits(self, ids: Any, cache: list[KVCache]) -> Tensor:
        """The logits (B, V) of what follows ids (B, T), which follow what the cache has seen, and enter it."""
        return ops.linear(self.features(ids, cache)[:, -1], self.wte.weight)

    def features(self, ids: Any, cache: list[KVCache] | None = None) -> Tensor:
        """What the output layer gets, (B, T, C); see `next_logits` for the cache."""
        ids = ids.data if isinstance(ids, Tensor) else as_array(ids)
        if ids.ndim != 2:
            raise ShapeError(f"GPT2: ids have shape {ids.shape}; give (B, T), such as ids[None] for one sequence")
        start = cache[0].length if cache else 0
        stop = start + ids.shape[1]
        if self.config.context < stop:
            raise ShapeError(
                f"GPT2: ids have T={stop}{' with the cache' if start else ''}, but the context is "
                f"{self.config.context}; give that many at most"
            )
        x = self.drop(self.wte(ids) + self.wpe(np.arange(start, stop, like=ids)))  # (B, T, C)
        for number, block in enumerate(self.h):
            x = block(x, cache[number] if cache else None)
        return self.ln_f(x)

    def loss(self, ids: Any, targets: Any, reduction: str = "mean") -> Tensor:
        """Cross-entropy of the logits against targets (B, T), in nats per token; -100 is not counted."""
        return ops.cross_entropy(self(ids), targets, reduction=reduction, overwrite=True)
