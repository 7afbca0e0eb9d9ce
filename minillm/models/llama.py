"""Llama (Touvron et al. 2023, arXiv:2302.13971; Llama 2, 3) and its relatives Mistral, Qwen2, Qwen3, Phi-3, by config.

As GPT-2, a stack of pre-norm blocks that predicts the next token. What differs, and where it comes from:

- positions turn queries and keys (rotary embedding, ops/rope.py), so nothing is added to the token vectors;
- norms divide by the root mean square, and have no bias (ops/rmsnorm.py);
- the MLP has a gate: down(silu(gate(x)) up(x)) (SwiGLU, Shazeer 2020);
- several query heads may share a key and value head (grouped queries, Ainslie et al. 2023);
- a window, if there is one, lets a token see that many last positions, its own included (Mistral, Jiang et al. 2023),
  in all blocks or but for some (Qwen2);
- queries, keys and values may have a bias (Qwen2), and so may the other layers of a block (some Llamas);
- queries and keys may be normalised, head by head, before they are turned (Qwen3);
- not all channels of a head need turn (Phi-4-mini), and the output layer may be the token table (tied).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.device import like
from minillm.errors import InputError
from minillm.models.llama_config import PRESETS as PRESETS
from minillm.models.llama_config import LlamaConfig, kind_of
from minillm.models.llama_config import config_from_hugging_face as config_from_hugging_face
from minillm.models.llama_config import config_to_hugging_face as config_to_hugging_face
from minillm.nn import Decoder, Embedding, KVCache, Linear, Module, RMSNorm, join_heads, normal_, split_heads
from minillm.ops.rope_table import RopeScaling


class Attention(Module):
    """Grouped-query attention of a sequence to itself, with queries and keys turned by their positions.

    One product gives the H query heads, the G key heads and the G value heads, `qkv`, in this order.
    """

    def __init__(self, config: LlamaConfig):
        self.heads, self.key_heads, self.head_size = config.heads, config.key_heads, config.size_of_head
        self.qkv = Linear(config.channels, (self.heads + 2 * self.key_heads) * self.head_size, config.qkv_bias)
        self.proj = Linear(self.heads * self.head_size, config.channels, config.proj_bias)
        self.q_norm = RMSNorm(self.head_size, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_size, config.norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, turn: tuple[Array, Array], visible: Array | None, cache: KVCache | None) -> Tensor:
        H, G, D = self.heads, self.key_heads, self.head_size
        parts = self.qkv(x).split([H * D, G * D, G * D], dim=-1)
        q, k, v = (split_heads(part, heads) for part, heads in zip(parts, (H, G, G), strict=True))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = turned(q, *turn), turned(k, *turn)
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.proj(join_heads(self.attend(q, k, v, visible)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Array | None) -> Tensor:
        """What each query (B, H, T, D) finds."""
        return ops.attention(q, k, v, causal=True, mask=visible)


def turned(x: Tensor, cos: Array, sin: Array) -> Tensor:
    """Heads (..., T, D), of which the first channels turn, as many as the tables (T, n/2) are for."""
    count = 2 * cos.shape[-1]
    if count == x.shape[-1]:
        return ops.rope(x, cos, sin)
    first, rest = x.split([count, x.shape[-1] - count], dim=-1)
    return ops.concat([ops.rope(first, cos, sin), rest], -1)


class GatedMLP(Module):
    """down(silu(gate(x)) up(x))."""

    def __init__(self, channels: int, hidden: int, bias: bool = False):
        self.gate = Linear(channels, hidden, bias)
        self.up = Linear(channels, hidden, bias)
        self.down = Linear(hidden, channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ops.swiglu(self.gate(x), self.up(x)))


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig):
        self.ln_1 = RMSNorm(config.channels, config.norm_eps)
        self.attn = Attention(config)
        self.ln_2 = RMSNorm(config.channels, config.norm_eps)
        self.mlp = GatedMLP(config.channels, config.hidden, config.mlp_bias)

    def forward(self, x: Tensor, turn: tuple[Array, Array], visible: Array | None, cache: KVCache | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), turn, visible, cache)
        return x + self.mlp(self.ln_2(x))


class Llama(Decoder):
    """A Llama language model: called with ids (B, T), it returns logits (B, T, V)."""

    def __init__(self, config: LlamaConfig):
        self.config = config
        self.wte = Embedding(config.vocab_size, config.channels)
        self.h: list[Any] = [Block(config) for _ in range(config.layers)]
        self.ln_f = RMSNorm(config.channels, config.norm_eps)
        if not config.tied:
            self.lm_head = Linear(config.channels, config.vocab_size, bias=False)
        self.assign_names()
        self._init_weights()

    def _init_weights(self) -> None:
        """Matrices from N(0, 0.02); those that write to the residual stream, two a block, from N(0, 0.02 / sqrt(2L)),
        as in GPT-2, for Meta published no rule."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("attn.proj.weight", "mlp.down.weight"))
                std = 0.02 / math.sqrt(2 * self.config.layers) if last else 0.02
                normal_(parameter.data, std)
            elif name.endswith("bias"):
                parameter.data[...] = 0

    @property
    def output_weight(self) -> Tensor:
        """Of the output layer, (V, C)."""
        return self.wte.weight if self.config.tied else self.lm_head.weight

    def new_cache(self, batch: int = 1, padding: Array | None = None) -> list[KVCache]:
        """An empty cache for `next_logits`, one for each block, with room for the whole context."""
        shape = (batch, self.config.key_heads, self.config.context, self.config.size_of_head)
        return [KVCache(*shape, self.wte.weight.data, padding) for _ in self.h]

    def embed(self, ids: Any, cache: list[KVCache] | None = None) -> Tensor:
        """What the first block gets, (B, T, C): of each id its token's vector."""
        ids, _, _ = self.checked_positions(ids, cache)
        return self.wte(ids)

    def blocks(self, x: Tensor, cache: list[KVCache] | None = None) -> Tensor:
        """What the last norm gets, (B, T, C).

        Raises: InputError for a cache that does not keep (see `keeps_cache`), and for texts of different lengths that
            are longer than the angles were made for, where the angles depend on the length.
        """
        start = cache[0].length if cache else 0
        stop = start + x.shape[1]
        # Padding shifts the positions of a sequence, all alike; rotated keys and queries meet by distance alone.
        visible = cache[0].visible(stop) if cache else None
        if not self.keeps_cache(start, stop):
            raise InputError(
                f"{type(self).__name__}: the angles of {stop} tokens are not those of the {start} that are cached; "
                "restart the cache, and give the whole text"
            )
        scaling = self.config.rope_scaling
        if visible is not None and scaling is not None and scaling.by_length and stop > scaling.original_context:
            raise InputError(
                f"{type(self).__name__}: texts of different lengths have different angles beyond "
                f"{scaling.original_context} tokens; generate from one at a time"
            )
        views = {False: (self._turn(False, start, stop, x), visible)}
        if self.config.window is not None:
            near = visible
            if stop > self.config.window:
                near = in_window(start, stop, self.config.window)
                near = near if visible is None else visible & like(near, visible)
            views[True] = (self._turn(True, start, stop, x), near)
        for number, block in enumerate(self.h):
            x = block(x, *views[self.config.has_window(number)], cache[number] if cache else None)
        return x

    def keeps_cache(self, start: int, stop: int) -> bool:
        """Whether what is cached of `start` tokens holds when there are `stop`: not where all angles change."""
        scaling = self.config.rope_scaling
        if not start or scaling is None or not scaling.by_length or stop <= scaling.original_context:
            return True
        return scaling.kind == "longrope" and start > scaling.original_context

    def _turn(self, windowed: bool, start: int, stop: int, x: Tensor) -> tuple[Array, Array]:
        """The tables of positions start to stop, on the device of x."""
        base, scaling = self.config.rope(windowed)
        cos, sin = _turn(self.config.turned_channels, base, scaling, start, stop)
        return like(cos, x.data), like(sin, x.data)


def in_window(start: int, stop: int, window: int) -> Array:
    """Whether queries from `start` on are near enough to keys from 0 on, (stop - start, stop); causality is apart."""
    near = np.arange(start, stop)[:, None] - np.arange(stop) < window
    near.setflags(write=False)  # so that no block needs a copy
    return near


@functools.lru_cache(maxsize=32)
def _turn(channels: int, base: float, scaling: RopeScaling | None, start: int, stop: int) -> tuple[Array, Array]:
    """cos and sin of positions start to stop, (T, channels / 2), in float64; attention takes them in float32."""
    return ops.rope_table(stop - start, channels, base, start, scaling)


# --- Hugging Face's names ------------------------------------------------------------------------------------------

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq", "lm_head.weight")  # computed anew; the token table again, where it is tied
TIED = {"lm_head.weight": "model.embed_tokens.weight"}  # the same numbers twice, if they are
LAYER = "model.layers.{i}"
PARTS_OF_BLOCK = {
    "attn.proj": "self_attn.o_proj",
    **{f"mlp.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
# Of each parameter, with {i} for the number of the block; several are rows below each other in one of ours.
HUGGING_FACE: dict[str, str | tuple[str, ...]] = {
    "wte.weight": "model.embed_tokens.weight",
    "h.{i}.ln_1.weight": f"{LAYER}.input_layernorm.weight",
    **{
        f"h.{{i}}.attn.qkv.{kind}": tuple(f"{LAYER}.self_attn.{part}_proj.{kind}" for part in "qkv")
        for kind in ("weight", "bias")
    },
    **{f"h.{{i}}.attn.{part}_norm.weight": f"{LAYER}.self_attn.{part}_norm.weight" for part in "qk"},
    "h.{i}.ln_2.weight": f"{LAYER}.post_attention_layernorm.weight",
    **{
        f"h.{{i}}.{ours}.{kind}": f"{LAYER}.{theirs}.{kind}"
        for ours, theirs in PARTS_OF_BLOCK.items()
        for kind in ("weight", "bias")
    },
    "ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


def rows_in_hugging_face(config: LlamaConfig, name: str) -> list[int]:
    """How many rows of a joined parameter are each of Hugging Face's."""
    return [heads * config.size_of_head for heads in (config.heads, config.key_heads, config.key_heads)]


def joined_in_hugging_face(config: LlamaConfig) -> dict[str, tuple[str, ...]]:
    """Arrays of the files that are several of those above, below each other."""
    if kind_of(config) != "phi3":
        return {}
    return {
        f"{LAYER}.self_attn.qkv_proj.weight": tuple(f"{LAYER}.self_attn.{part}_proj.weight" for part in "qkv"),
        f"{LAYER}.mlp.gate_up_proj.weight": (f"{LAYER}.mlp.gate_proj.weight", f"{LAYER}.mlp.up_proj.weight"),
    }
