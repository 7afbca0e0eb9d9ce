"""Llama (Touvron et al. 2023, arXiv:2302.13971; Llama 2, 3) and its relatives Mistral, Qwen2, Qwen3, Phi-3, by config.

Like GPT-2 (gpt2.py), a stack of pre-norm blocks that predicts the next token. What differs, and where it comes from:

- positions rotate queries and keys (rotary embedding, ops/rope.py), so nothing is added to the token vectors;
- norms divide by the root mean square, and have no bias (ops/rmsnorm.py);
- the MLP has a gate: down(silu(gate(x)) up(x)) (SwiGLU, Shazeer 2020);
- several query heads may share a head of keys and values (grouped-query attention, Ainslie et al. 2023);
- with a window, a token sees itself and the window - 1 tokens before it (Mistral, Jiang et al. 2023), in all blocks or
  in all but some (Qwen2);
- queries, keys and values may have a bias (Qwen2), and so may the other linear layers of a block (some Llamas);
- queries and keys may be normalised, head by head, before they are rotated (Qwen3);
- only some channels of a head may be rotated (Phi-4-mini), and the output layer may be the token table (tied).
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
from minillm.models.heads import LastTokenClassification
from minillm.models.llama_config import PRESETS as PRESETS
from minillm.models.llama_config import LlamaConfig, kind_of
from minillm.models.llama_config import config_from_hugging_face as config_from_hugging_face
from minillm.models.llama_config import config_to_hugging_face as config_to_hugging_face
from minillm.nn import Decoder, Embedding, KVCache, Linear, Module, RMSNorm, join_heads, split_heads
from minillm.nn.initial import normal_
from minillm.ops.rope_table import RopeScaling


class Attention(Module):
    """Grouped-query attention of a sequence to itself, with queries and keys rotated by their positions.

    One product, `qkv`, gives the H heads of queries, the G heads of keys and the G heads of values, in this order.
    """

    def __init__(self, config: LlamaConfig):
        self.heads, self.kv_heads, self.head_size = config.heads, config.kv_heads, config.size_of_head
        self.qkv = Linear(config.channels, (self.heads + 2 * self.kv_heads) * self.head_size, config.qkv_bias)
        self.proj = Linear(self.heads * self.head_size, config.channels, config.proj_bias)
        self.q_norm = RMSNorm(self.head_size, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_size, config.norm_eps) if config.qk_norm else None

    def forward(
        self,
        x: Tensor,
        cos_sin: tuple[Array, Array],
        visible: Array | None,
        cache: KVCache | None,
        starts: Array | None = None,
    ) -> Tensor:
        H, G, D = self.heads, self.kv_heads, self.head_size
        q, k, v = self.qkv(x).split([H * D, G * D, G * D], dim=-1)
        q, k, v = split_heads(q, H), split_heads(k, G), split_heads(v, G)  # (B, H, T, D), and G heads each
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *cos_sin), rotate(k, *cos_sin)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, G, Tk, D)
        y = self.attend(q, k, v, visible, starts)  # (B, H, T, D)
        return self.proj(join_heads(y))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Array | None, starts: Array | None) -> Tensor:
        """The weighted sum of the values that each query sees, (B, H, T, D)."""
        return ops.attention(q, k, v, causal=True, mask=visible, starts=starts)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, kv_heads={self.kv_heads}"


def rotate(x: Tensor, cos: Array, sin: Array) -> Tensor:
    """Heads (B, H, T, D), the first n channels of each rotated by tables (T, n/2); the other channels stay."""
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

    def forward(
        self,
        x: Tensor,
        cos_sin: tuple[Array, Array],
        visible: Array | None,
        cache: KVCache | None,
        starts: Array | None = None,
    ) -> Tensor:
        x = x + self.attn(self.ln_1(x), cos_sin, visible, cache, starts)  # (B, T, C)
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
        """Matrices from N(0, 0.02); those that write to the residual stream, two a block, from N(0, 0.02 / sqrt(2L)).

        This is GPT-2's rule, because Meta published none.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("attn.proj.weight", "mlp.down.weight"))
                std = 0.02 / math.sqrt(2 * self.config.layers) if last else 0.02
                normal_(parameter.data, std)
            elif name.endswith("bias"):
                parameter.data[...] = 0

    def forward(self, ids: Any, starts: Any = None) -> Tensor:
        """Logits (B, T, V): for each of the ids (B, T), how likely each token is to follow it."""
        x = self.features(ids, starts=starts)  # (B, T, C)
        return self.logits(x)

    def loss(self, ids: Any, targets: Any, reduction: str = "mean", starts: Any = None) -> Tensor:
        """Cross-entropy of the logits against targets (B, T), in nats per token; a target of -100 does not count."""
        logits = self(ids, starts)  # (B, T, V); nothing else reads them, so the gradient may take their memory
        return ops.cross_entropy(logits, targets, reduction=reduction, overwrite=True, dim=-1)

    def features(self, ids: Any, cache: list[KVCache] | None = None, starts: Any = None) -> Tensor:
        """Input of the output layer, (B, T, C). With a cache, the ids follow the tokens in it, and are added to it."""
        x = self.embed(ids, cache, starts)
        x = self.blocks(x, cache, starts)
        return self.ln_f(x)

    def embed(self, ids: Any, cache: list[KVCache] | None = None, starts: Any = None) -> Tensor:
        """Input of the first block, (B, T, C): for each id the vector of its token."""
        ids, _, _ = self.checked_positions(ids, cache)
        self.checked_starts(starts, ids, cache)
        return self.wte(ids)

    def blocks(self, x: Tensor, cache: list[KVCache] | None = None, starts: Any = None) -> Tensor:
        """Residual stream after the last block, (B, T, C).

        Raises: InputError for a cache that is no longer valid (see `keeps_cache`), and for texts of different lengths
            beyond the context that the angles were made for, if the angles depend on the length.
        """
        start = cache[0].length if cache else 0
        stop = start + x.shape[1]
        # Padding shifts all positions of a sequence alike, as starts do those of a text in it; and rotated keys and
        # queries depend on distances alone.
        visible = cache[0].visible(stop) if cache else None
        self._check_angles(start, stop, several=visible is not None or starts is not None)
        views = {False: (self._cos_sin(False, start, stop, x), visible)}
        if self.config.window is not None:
            views[True] = (self._cos_sin(True, start, stop, x), self._visible_in_window(start, stop, visible))
        for number, block in enumerate(self.h):
            cos_sin, seen = views[self.config.has_window(number)]
            x = block(x, cos_sin, seen, cache[number] if cache else None, starts)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Logits (..., V) of features (..., C)."""
        return ops.linear(x, self.output_weight) if self.config.tied else self.lm_head(x)

    @property
    def output_weight(self) -> Tensor:
        """Output-projection weight, (V, C): the token table, if the two are tied."""
        return self.wte.weight if self.config.tied else self.lm_head.weight

    def new_cache(self, batch: int = 1, padding: Array | None = None) -> list[KVCache]:
        """An empty cache for each block, with room for the whole context; see KVCache for padding."""
        shape = (batch, self.config.kv_heads, self.config.context, self.config.size_of_head)
        return [KVCache(*shape, self.wte.weight.data, padding) for _ in self.h]

    def keeps_cache(self, start: int, stop: int) -> bool:
        """True if keys that were cached with `start` tokens stay valid with `stop`: not if all angles change."""
        scaling = self.config.rope_scaling
        if not start or scaling is None or not scaling.by_length or stop <= scaling.original_context:
            return True
        return scaling.kind == "longrope" and start > scaling.original_context

    def _check_angles(self, start: int, stop: int, several: bool) -> None:
        if not self.keeps_cache(start, stop):
            raise InputError(
                f"{type(self).__name__}: the angles of {stop} tokens are not those of the {start} that are cached; "
                "restart the cache, and give the whole text"
            )
        scaling = self.config.rope_scaling
        if several and scaling is not None and scaling.by_length and stop > scaling.original_context:
            raise InputError(
                f"{type(self).__name__}: texts of different lengths have different angles beyond "
                f"{scaling.original_context} tokens; give one at a time, or fewer tokens"
            )

    def _visible_in_window(self, start: int, stop: int, visible: Array | None) -> Array | None:
        """The mask of blocks with a window, from that of blocks without one."""
        if stop <= self.config.window:
            return visible
        near = in_window(start, stop, self.config.window)
        return near if visible is None else visible & like(near, visible)

    def _cos_sin(self, windowed: bool, start: int, stop: int, x: Tensor) -> tuple[Array, Array]:
        """The tables of positions start to stop, on the device of x."""
        base, scaling = self.config.rope(windowed)
        cos, sin = cos_sin_tables(self.config.rotary_channels, base, scaling, start, stop)
        return like(cos, x.data), like(sin, x.data)


class LlamaForSequenceClassification(LastTokenClassification, Llama):  # type: ignore[misc]
    """A Llama that classifies texts, or gives them a reward: called with ids (B, T), it returns logits (B, K)."""


def in_window(start: int, stop: int, window: int) -> Array:
    """Mask (stop - start, stop): True if the key is among the `window` positions up to the query, or after it.

    The queries are at positions start to stop, the keys at 0 to stop; attention itself hides the keys after a query.
    """
    near = np.arange(start, stop)[:, None] - np.arange(stop) < window
    near.setflags(write=False)  # so that no block needs a copy
    return near


@functools.lru_cache(maxsize=32)
def cos_sin_tables(
    channels: int, base: float, scaling: RopeScaling | None, start: int, stop: int
) -> tuple[Array, Array]:
    """cos and sin at positions start to stop, (T, channels / 2), in float64; attention takes them in float32."""
    return ops.rope_table(stop - start, channels, base, start, scaling)


# --- Hugging Face's names ------------------------------------------------------------------------------------------

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq", "lm_head.weight")  # computed here; a second copy of the token table, if it is tied
TIED = {"lm_head.weight": "model.embed_tokens.weight"}  # two names of one array, in tied models
LAYER = "model.layers.{i}"
PARTS_OF_BLOCK = {
    "attn.proj": "self_attn.o_proj",
    **{f"mlp.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
# For each parameter its name there, with {i} for the number of the block. Several names: their rows, stacked, are ours.
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
    "score.weight": "score.weight",
}


def rows_in_hugging_face(config: LlamaConfig, name: str) -> list[int]:
    """Row counts of the Hugging Face arrays that one of our parameters stacks: queries, keys, values."""
    return [heads * config.size_of_head for heads in (config.heads, config.kv_heads, config.kv_heads)]


def joined_in_hugging_face(config: LlamaConfig) -> dict[str, tuple[str, ...]]:
    """Arrays in Phi-3's files that stack several of the names above."""
    if kind_of(config) != "phi3":
        return {}
    return {
        f"{LAYER}.self_attn.qkv_proj.weight": tuple(f"{LAYER}.self_attn.{part}_proj.weight" for part in "qkv"),
        f"{LAYER}.mlp.gate_up_proj.weight": (f"{LAYER}.mlp.gate_proj.weight", f"{LAYER}.mlp.up_proj.weight"),
    }
