"""Llama (Touvron et al. 2023, arXiv:2302.13971; Llama 2, 3) and its relatives Mistral, Qwen2 and SmolLM2, by config.

As GPT-2, a stack of pre-norm blocks that predicts the next token. What differs, and where it comes from:

- positions turn queries and keys (rotary embedding, ops/rope.py), so nothing is added to the token vectors;
- norms divide by the root mean square, and have no bias (ops/rmsnorm.py);
- the MLP has a gate: down(silu(gate(x)) up(x)) (SwiGLU, Shazeer 2020);
- several query heads may share a key and value head (grouped queries, Ainslie et al. 2023);
- a window, if there is one, lets a token see that many last positions, its own included (Mistral, Jiang et al. 2023);
- queries, keys and values may have a bias (Qwen2), and the output layer may be the token table (tied).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.device import like
from minillm.errors import InputError
from minillm.models.config import Config
from minillm.nn import Decoder, Embedding, KVCache, Linear, Module, RMSNorm, join_heads, normal_, split_heads
from minillm.ops.rope import SCALINGS, RopeScaling


@dataclass(frozen=True)
class LlamaConfig(Config):
    """The shape of a Llama."""

    vocab_size: int = 32000  # V, number of token ids
    context: int = 2048  # longest sequence, in tokens
    layers: int = 32  # L, number of blocks
    heads: int = 32  # H, attention heads per block
    key_heads: int = 32  # G, heads of keys and values; must divide heads
    channels: int = 4096  # C, width of the residual stream
    hidden: int = 11008  # width of the MLP
    head_size: int | None = None  # D, channels of a head, even; channels / heads where it is None
    rope_base: float = 10000.0  # of the rotary angles
    rope_scaling: RopeScaling | None = None  # how they are stretched to a longer context
    window: int | None = None  # how many last positions a token sees, its own included; None: all
    norm_eps: float = 1e-5  # added to the mean square
    qkv_bias: bool = False  # whether queries, keys and values have a bias
    tied: bool = False  # whether the output layer is the token table

    def __post_init__(self):
        for field in ("vocab_size", "context", "layers", "heads", "key_heads", "channels", "hidden"):
            if getattr(self, field) < 1:
                raise InputError(f"LlamaConfig: {field} is {getattr(self, field)}; give 1 or more")
        if self.heads % self.key_heads:
            raise InputError(f"LlamaConfig: heads={self.heads} is not a multiple of key_heads={self.key_heads}")
        if self.head_size is None and self.channels % self.heads:
            raise InputError(f"LlamaConfig: channels={self.channels} is not a multiple of heads={self.heads}")
        if self.size_of_head < 2 or self.size_of_head % 2:
            raise InputError(
                f"LlamaConfig: a head has {self.size_of_head} channels; rotary pairs need an even number, 2 or more"
            )
        if self.window is not None and self.window < 1:
            raise InputError(f"LlamaConfig: window is {self.window}; give 1 or more, or None for no window")

    @property
    def size_of_head(self) -> int:
        """D."""
        return self.channels // self.heads if self.head_size is None else self.head_size


PRESETS = {
    # for tests: 33 thousand weights
    "nano": LlamaConfig(256, context=32, layers=2, heads=4, key_heads=2, channels=32, hidden=88, tied=True),
    "smollm2-135m": LlamaConfig(49152, 8192, 30, 9, 3, 576, 1536, rope_base=1e5, tied=True),
    "qwen2-0.5b": LlamaConfig(
        151936, 32768, 24, 14, 2, 896, 4864, rope_base=1e6, norm_eps=1e-6, qkv_bias=True, tied=True
    ),
    "llama-2-7b": LlamaConfig(32000, 4096),
    "mistral-7b": LlamaConfig(32000, 32768, key_heads=8, hidden=14336, window=4096),
    "llama-3.2-1b": LlamaConfig(
        128256,
        131072,
        layers=16,
        key_heads=8,
        channels=2048,
        hidden=8192,
        rope_base=5e5,
        rope_scaling=RopeScaling("llama3", 32.0, 8192, low_frequency_factor=1.0, high_frequency_factor=4.0),
        tied=True,
    ),
}


class Attention(Module):
    """Grouped-query attention of a sequence to itself, with queries and keys turned by their positions.

    One product gives the H query heads, the G key heads and the G value heads, `qkv`, in this order.
    """

    def __init__(self, config: LlamaConfig):
        self.heads, self.key_heads, self.head_size = config.heads, config.key_heads, config.size_of_head
        self.qkv = Linear(config.channels, (self.heads + 2 * self.key_heads) * self.head_size, config.qkv_bias)
        self.proj = Linear(self.heads * self.head_size, config.channels, bias=False)

    def forward(self, x: Tensor, turn: tuple[Array, Array], visible: Array | None, cache: KVCache | None) -> Tensor:
        H, G, D = self.heads, self.key_heads, self.head_size
        parts = self.qkv(x).split([H * D, G * D, G * D], dim=-1)
        q, k, v = (split_heads(part, heads) for part, heads in zip(parts, (H, G, G), strict=True))
        q, k = ops.rope(q, *turn), ops.rope(k, *turn)
        if cache is not None:
            k, v = cache.extend(k, v)
        y = ops.attention(q, k, v, causal=True, mask=visible)
        return self.proj(join_heads(y))


class GatedMLP(Module):
    """down(silu(gate(x)) up(x))."""

    def __init__(self, channels: int, hidden: int):
        self.gate = Linear(channels, hidden, bias=False)
        self.up = Linear(channels, hidden, bias=False)
        self.down = Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ops.swiglu(self.gate(x), self.up(x)))


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig):
        self.ln_1 = RMSNorm(config.channels, config.norm_eps)
        self.attn = Attention(config)
        self.ln_2 = RMSNorm(config.channels, config.norm_eps)
        self.mlp = GatedMLP(config.channels, config.hidden)

    def forward(self, x: Tensor, turn: tuple[Array, Array], visible: Array | None, cache: KVCache | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), turn, visible, cache)
        return x + self.mlp(self.ln_2(x))


class Llama(Decoder):
    """A Llama language model: called with ids (B, T), it returns logits (B, T, V)."""

    def __init__(self, config: LlamaConfig):
        self.config = config
        self.wte = Embedding(config.vocab_size, config.channels)
        self.h = [Block(config) for _ in range(config.layers)]
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
        """What the last norm gets, (B, T, C)."""
        start = cache[0].length if cache else 0
        stop = start + x.shape[1]
        turn = tuple(like(table, x.data) for table in _turn(self.config, start, stop))
        # Padding shifts the positions of a sequence, all alike; rotated keys and queries meet by distance alone.
        visible = cache[0].visible(stop) if cache else None
        if self.config.window is not None and stop > self.config.window:
            near = in_window(start, stop, self.config.window)
            visible = near if visible is None else visible & like(near, visible)
        for number, block in enumerate(self.h):
            x = block(x, turn, visible, cache[number] if cache else None)
        return x


def in_window(start: int, stop: int, window: int) -> Array:
    """Whether queries from `start` on are near enough to keys from 0 on, (stop - start, stop); causality is apart."""
    return np.arange(start, stop)[:, None] - np.arange(stop) < window


@functools.lru_cache(maxsize=32)
def _turn(config: LlamaConfig, start: int, stop: int) -> tuple[Array, Array]:
    """cos and sin of positions start to stop, (T, D/2), in float32 as attention needs them."""
    return ops.rope_table(stop - start, config.size_of_head, config.rope_base, start, config.rope_scaling)


# --- Hugging Face's names ------------------------------------------------------------------------------------------

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq", "lm_head.weight")  # computed anew; the token table again, where it is tied
# Of each parameter, with {i} for the number of the block; several are rows below each other in one of ours.
HUGGING_FACE: dict[str, str | tuple[str, ...]] = {
    "wte.weight": "model.embed_tokens.weight",
    "h.{i}.ln_1.weight": "model.layers.{i}.input_layernorm.weight",
    **{
        f"h.{{i}}.attn.qkv.{kind}": tuple(f"model.layers.{{i}}.self_attn.{part}_proj.{kind}" for part in "qkv")
        for kind in ("weight", "bias")
    },
    "h.{i}.attn.proj.weight": "model.layers.{i}.self_attn.o_proj.weight",
    "h.{i}.ln_2.weight": "model.layers.{i}.post_attention_layernorm.weight",
    "h.{i}.mlp.gate.weight": "model.layers.{i}.mlp.gate_proj.weight",
    "h.{i}.mlp.up.weight": "model.layers.{i}.mlp.up_proj.weight",
    "h.{i}.mlp.down.weight": "model.layers.{i}.mlp.down_proj.weight",
    "ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


def rows_in_hugging_face(config: LlamaConfig, name: str) -> list[int]:
    """How many rows of a joined parameter are each of Hugging Face's."""
    return [heads * config.size_of_head for heads in (config.heads, config.key_heads, config.key_heads)]


def config_from_hugging_face(values: Mapping[str, Any]) -> LlamaConfig:
    """From the values of a config.json of model type llama, mistral or qwen2.

    Raises: InputError for what this model cannot do, by name.
    """
    kind = values.get("model_type")
    refused = {
        "hidden_act": values.get("hidden_act", "silu") != "silu",
        "mlp_bias": bool(values.get("mlp_bias")),
        "attention_bias": bool(values.get("attention_bias")),  # it would put one on the output too
        "layer_types": len(set(values.get("layer_types") or ["one"])) > 1,
    }
    for name, is_refused in refused.items():
        if is_refused:
            raise InputError(f"load: config.json has {name}={values[name]!r}, which Llama here does not do")
    rope = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    windowed = kind == "mistral" or (kind == "qwen2" and values.get("use_sliding_window"))
    heads, head_size = values["num_attention_heads"], values.get("head_dim")
    return LlamaConfig(
        vocab_size=values["vocab_size"],
        context=values.get("max_position_embeddings", 2048),
        layers=values["num_hidden_layers"],
        heads=heads,
        key_heads=values.get("num_key_value_heads") or heads,
        channels=values["hidden_size"],
        hidden=values["intermediate_size"],
        head_size=None if head_size == values["hidden_size"] / heads else head_size,
        rope_base=float(rope.get("rope_theta") or values.get("rope_theta") or 10000.0),
        rope_scaling=_scaling_from_hugging_face(rope, values),
        window=values.get("sliding_window") if windowed else None,
        norm_eps=values.get("rms_norm_eps", 1e-6),
        qkv_bias=kind == "qwen2",
        tied=bool(values.get("tie_word_embeddings", False)),
    )


def _scaling_from_hugging_face(rope: Mapping[str, Any], values: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in SCALINGS:
        raise InputError(f"load: config.json asks for rotary scaling {kind!r}; Llama here has {', '.join(SCALINGS)}")
    original = rope.get("original_max_position_embeddings") or values.get("max_position_embeddings", 2048)
    names = {
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
    }
    unknown = {key for key in ("mscale", "mscale_all_dim", "partial_rotary_factor") if rope.get(key)}
    if unknown or rope.get("truncate") is False:
        raise InputError(f"load: config.json has rotary options {sorted(unknown) or ['truncate']}, unknown here")
    return RopeScaling(kind, rope["factor"], original, **{names[k]: v for k, v in rope.items() if k in names and v})


def config_to_hugging_face(config: LlamaConfig) -> dict[str, Any]:
    """The values of a config.json: of a Qwen2 with biases, a Mistral with a window, else a Llama."""
    if config.qkv_bias:
        kind, name = "qwen2", "Qwen2ForCausalLM"
    elif config.window is not None:
        kind, name = "mistral", "MistralForCausalLM"
    else:
        kind, name = "llama", "LlamaForCausalLM"
    rope: dict[str, Any] = {"rope_theta": config.rope_base, "rope_type": "default"}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        rope |= {
            "rope_type": scaling.kind,
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_context,
        }
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
            }
        if scaling.kind == "yarn":
            rope |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
            if scaling.attention_factor is not None:
                rope["attention_factor"] = scaling.attention_factor
    values: dict[str, Any] = {
        "architectures": [name],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads,
        "hidden_size": config.channels,
        "intermediate_size": config.hidden,
        "head_dim": config.size_of_head,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied,
    }
    if config.window is not None:
        values["sliding_window"] = config.window
        if kind == "qwen2":
            values |= {"use_sliding_window": True, "max_window_layers": 0}
    return values
