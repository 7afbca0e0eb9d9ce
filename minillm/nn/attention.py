"""Multi-head attention as layers, and the cache of keys and values that generation uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm import autograd, ops
from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.device import like
from minillm.errors import GraphError, ShapeError
from minillm.nn.layers import Dropout, Linear
from minillm.nn.module import Module


class KVCache:
    """The keys and values of the positions that an attention layer has seen, so that none is computed twice.

    Memory for `capacity` positions is allocated at once: 2 B G capacity D elements, for G heads of keys and values.
    length: the number of positions that are filled.
    padding: (B,), integers: the number of positions at the start of each sequence that hold no token. Prompts of
        different lengths stand in one array with their ends aligned; no token sees padding, and positions count from
        the first token.
    """

    def __init__(
        self, batch: int, kv_heads: int, capacity: int, head_size: int, like: Array, padding: Array | None = None
    ):
        # (B, G, capacity, D) each
        self.keys, self.values = np.empty_like(like, shape=(2, batch, kv_heads, capacity, head_size), order="C")
        self.length = 0
        self.padding = padding

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values (B, G, T, D) of the next T positions; returns those of all positions so far.

        Raises: ShapeError for more positions than the capacity; GraphError if they need a gradient.
        """
        start, stop, capacity = self.length, self.length + k.shape[2], self.keys.shape[2]
        if stop > capacity:
            raise ShapeError(
                f"KVCache: positions {start} to {stop} do not fit into capacity={capacity}; give fewer tokens"
            )
        if autograd.is_grad_enabled() and (k.requires_grad or v.requires_grad):
            raise GraphError("KVCache: cached keys and values have no gradient; call the model under minillm.no_grad()")
        self.keys[:, :, start:stop], self.values[:, :, start:stop] = k.data, v.data
        self.length = stop
        return Tensor(self.keys[:, :, :stop]), Tensor(self.values[:, :, :stop])  # (B, G, stop, D) each

    def restart(self, padding: Array | None = None) -> None:
        """Forget all positions."""
        self.length, self.padding = 0, padding

    def visible(self, stop: int) -> Array | None:
        """Mask (B, 1, 1, stop): True where a position before `stop` holds a token. None if all of them do."""
        if self.padding is None:
            return None
        return (np.arange(stop, like=self.padding) >= self.padding[:, None])[:, None, None]

    def select(self, rows: Array) -> None:
        """Keep the sequences with these numbers, in this order; a number may be missing, or come twice."""
        for name in ("keys", "values"):
            before = getattr(self, name)
            after = np.empty_like(before, shape=(len(rows), *before.shape[1:]))
            after[:, :, : self.length] = before[like(rows, before), :, : self.length]
            setattr(self, name, after)
        self.padding = None if self.padding is None else self.padding[rows]


class SelfAttention(Module):
    """Multi-head attention of a sequence to itself; if causal, a position sees itself and those before it.

    One product, `qkv`, gives queries, keys and values; after attention the heads are joined and mixed by `proj`.
    dropout: probability for each element of the result; attention_dropout: for each attention weight.
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
        self.heads = checked_heads(self, channels, heads)
        self.attention_dropout, self.causal = attention_dropout, causal

    def forward(
        self,
        x: Tensor,
        cache: KVCache | None = None,
        mask: Array | None = None,
        lengths: Any = None,
        starts: Array | None = None,
    ) -> Tensor:
        """Shapes: x and the result (B, T, C), H heads of D = C / H channels; the others as in ops.attention."""
        qkv = self.qkv(x)  # (B, T, 3 C)
        q, k, v = (split_heads(part, self.heads) for part in qkv.split(qkv.shape[-1] // 3, dim=-1))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, H, Tk, D), where Tk counts the positions in the cache too
        p = self.attention_dropout if self.training else 0.0
        hidden = dict(mask=mask, lengths=lengths, starts=starts)
        y = ops.attention(q, k, v, causal=self.causal, dropout_p=p, **hidden)  # (B, H, T, D)
        return self.dropout(self.proj(join_heads(y)))  # (B, T, C)

    def extra_repr(self) -> str:
        return f"heads={self.heads}{', causal' if self.causal else ''}"


class CrossAttention(Module):
    """Multi-head attention of a sequence to another one, the memory, which gives the keys and values."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0, attention_dropout: float = 0.0):
        self.q = Linear(channels, channels)
        self.kv = Linear(channels, 2 * channels)
        self.proj = Linear(channels, channels)
        self.dropout = Dropout(dropout)
        self.heads, self.attention_dropout = checked_heads(self, channels, heads), attention_dropout

    def keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and the values (B, H, S, D) of a memory (B, S, C), which serve all queries that follow."""
        k, v = self.kv(memory).split(memory.shape[-1], dim=-1)
        return split_heads(k, self.heads), split_heads(v, self.heads)

    def forward(self, x: Tensor, keys_and_values: tuple[Tensor, Tensor], lengths: Any = None) -> Tensor:
        """Shapes: x and the result (B, T, C); lengths (B,): the number of real positions in each memory."""
        p = self.attention_dropout if self.training else 0.0
        y = ops.attention(split_heads(self.q(x), self.heads), *keys_and_values, lengths=lengths, dropout_p=p)
        return self.dropout(self.proj(join_heads(y)))  # (B, T, C)

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


def checked_heads(layer: Module, channels: int, heads: int) -> int:
    """The number of heads. Raises: ShapeError if it does not divide the channels."""
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
