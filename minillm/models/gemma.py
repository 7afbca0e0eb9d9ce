"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118) and Gemma 3 (2025, arXiv:2503.19786), by config; texts alone, no images.

What differs from a Llama (llama.py), whose parts these are:

- token vectors are multiplied by sqrt(C), because the token table is the output layer, too;
- a norm multiplies by 1 + weight, so that weight decay pulls it towards a norm that changes no scale;
- the gate of the MLP is a GELU: down(gelu(gate(x)) up(x));
- scores are divided by the square root of a number in the configuration, instead of the size of a head;
- there are norms after attention and MLP, too: x + norm(attention(norm(x))), then x + norm(mlp(norm(x)));
- most blocks see a window, and every second (Gemma 2) or sixth (Gemma 3) sees everything;
- Gemma 2 keeps scores and logits between -cap and cap: y = cap tanh(x / cap);
- Gemma 3 normalises queries and keys instead, and has other angles in blocks with a window.

Capped scores are computed by single operations, which hold all of them in memory, because ops.attention has no cap.
"""

from __future__ import annotations

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
from minillm.models import llama
from minillm.models.config import check_fixed, config_from, table, whole_number
from minillm.models.llama import GatedMLP, Llama, LlamaConfig
from minillm.models.llama_config import (
    FULL,
    SLIDING,
    layer_types,
    sizes_to_hugging_face,
    stretched_context,
    windows_from,
)
from minillm.models.llama_config import KEYS as LLAMA_KEYS
from minillm.models.rotary import number, rope_to, scaling_from
from minillm.nn import Embedding, KVCache, Linear, Module, RMSNorm
from minillm.ops.rope_table import RopeScaling

HIDDEN = -65504.0  # score of a hidden key: the lowest finite float16, whose exponential is 0 in every dtype
LARGEST_CAP = 1e4  # keeps scores far above HIDDEN


@dataclass(frozen=True)
class GemmaConfig(LlamaConfig):
    """The shape of a Gemma; qkv_bias and proj_bias are equal, and mlp_bias, rotary and kind stay at their defaults."""

    vocab_size: int = 256000
    context: int = 8192
    layers: int = 26
    heads: int = 8
    kv_heads: int = 4
    channels: int = 2304
    hidden: int = 9216
    head_size: int | None = 256
    norm_eps: float = 1e-6
    tied: bool = True
    scale: float = 256.0  # scores are divided by its square root
    attention_cap: float | None = None  # bound of the scores; None: no bound
    logit_cap: float | None = None  # bound of the logits; None: no bound
    window_rope_base: float | None = None  # base of unstretched angles in blocks with a window; None: rope_base
    activation: str = "gelu_tanh"  # in the gate: "gelu_tanh" or "gelu" (the exact one)

    def __post_init__(self):
        super().__post_init__()
        if self.mlp_bias or self.rotary is not None or self.kind is not None or self.qkv_bias != self.proj_bias:
            raise InputError(
                f"GemmaConfig: mlp_bias={self.mlp_bias}, rotary={self.rotary}, kind={self.kind}, qkv_bias="
                f"{self.qkv_bias}, proj_bias={self.proj_bias}; leave out the first three, and give both biases or none"
            )
        self.check_above_zero("scale", "attention_cap", "logit_cap", "window_rope_base")
        if self.attention_cap is not None and self.attention_cap > LARGEST_CAP:
            raise InputError(f"GemmaConfig: attention_cap is {self.attention_cap}; give {LARGEST_CAP:g} at most")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"GemmaConfig: activation is {self.activation!r}; give 'gelu_tanh' or 'gelu'")

    def rope(self, windowed: bool) -> tuple[float, RopeScaling | None]:
        """Base and scaling of the angles, in blocks with or without a window."""
        if windowed and self.window_rope_base is not None:
            return self.window_rope_base, None
        return self.rope_base, self.rope_scaling


ACTIVATIONS = {"gelu_tanh": "tanh", "gelu": "none"}  # each with its `approximate` in ops.gelu
PRESETS = {
    # for tests: 43 thousand weights, with every feature of Gemma 3
    "nano": GemmaConfig(
        *(256, 32, 3, 4, 2, 32, 88, 8, 1e6),
        scale=8.0,
        window=8,
        full_blocks=(2,),
        qk_norm=True,
        window_rope_base=1e4,
    ),
    "gemma-2-2b": GemmaConfig(window=4096, full_blocks=(*range(1, 26, 2),), attention_cap=50.0, logit_cap=30.0),
    "gemma-3-1b": GemmaConfig(
        *(262144, 32768, 26, 4, 1, 1152, 6912, 256, 1e6),
        window=512,
        full_blocks=(5, 11, 17, 23),
        qk_norm=True,
        window_rope_base=1e4,
    ),
}


class OneCenteredRMSNorm(RMSNorm):
    """Root-mean-square normalisation that multiplies by 1 + weight; the weight starts as zeros."""

    def __init__(self, channels: int, eps: float):
        super().__init__(channels, eps)
        self.weight.data[...] = 0

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight + 1, self.eps)


class Attention(llama.Attention):
    """Llama's attention with a scale from the configuration, and with a cap if there is one."""

    def __init__(self, config: GemmaConfig):
        super().__init__(config)
        if config.qk_norm:
            self.q_norm = OneCenteredRMSNorm(self.head_size, config.norm_eps)
            self.k_norm = OneCenteredRMSNorm(self.head_size, config.norm_eps)
        self.scale, self.cap = config.scale**-0.5, config.attention_cap

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Array | None, starts: Array | None) -> Tensor:
        """softmax(cap tanh(scale Q K^T / cap)) V for every head."""
        if self.cap is None:
            return ops.attention(q, k, v, causal=True, mask=visible, starts=starts, scale=self.scale)
        B, H, T, D = q.shape
        G, Tk = k.shape[1:3]
        q = q.reshape(B, G, H // G, T, D)  # query heads grouped by the head of keys that they share
        k, v = k.reshape(B, G, 1, Tk, D), v.reshape(B, G, 1, Tk, D)
        scores = ops.tanh(q @ k.transpose(-1, -2) * (self.scale / self.cap)) * self.cap  # (B, G, H/G, T, Tk)
        causal = like(np.tri(T, Tk, Tk - T, dtype=bool), q.data)  # (T, Tk)
        seen = causal
        if visible is not None:
            seen = causal & like(visible if visible.ndim == 2 else visible[:, :, None], causal)
        if starts is not None:
            later = np.arange(Tk, like=causal) >= like(starts, causal)[:, :, None]  # (B, T, Tk)
            seen = seen & later[:, None, None]  # (B, 1, 1, T, Tk)
        weights = ops.softmax(ops.where(seen, scores, HIDDEN))
        return (weights @ v).reshape(B, H, T, D)


class MLP(GatedMLP):
    """down(gelu(gate(x)) up(x))."""

    def __init__(self, config: GemmaConfig):
        super().__init__(config.channels, config.hidden)
        self.form = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ops.gelu(self.gate(x), self.form) * self.up(x))


class Block(Module):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    def __init__(self, config: GemmaConfig):
        def norm() -> OneCenteredRMSNorm:
            return OneCenteredRMSNorm(config.channels, config.norm_eps)

        self.ln_1, self.attn, self.ln_1_post = norm(), Attention(config), norm()
        self.ln_2, self.mlp, self.ln_2_post = norm(), MLP(config), norm()

    def forward(
        self,
        x: Tensor,
        cos_sin: tuple[Array, Array],
        visible: Array | None,
        cache: KVCache | None,
        starts: Array | None = None,
    ) -> Tensor:
        x = x + self.ln_1_post(self.attn(self.ln_1(x), cos_sin, visible, cache, starts))  # (B, T, C)
        return x + self.ln_2_post(self.mlp(self.ln_2(x)))


class Gemma(Llama):
    """A Gemma language model: called with ids (B, T), it returns logits (B, T, V)."""

    config: GemmaConfig

    def __init__(self, config: GemmaConfig):
        self.config = config
        self.wte = Embedding(config.vocab_size, config.channels)
        self.h = [Block(config) for _ in range(config.layers)]
        self.ln_f = OneCenteredRMSNorm(config.channels, config.norm_eps)
        if not config.tied:
            self.lm_head = Linear(config.channels, config.vocab_size, bias=False)
        self.assign_names()
        self._init_weights()

    def embed(self, ids: Any, cache: list[KVCache] | None = None, starts: Any = None) -> Tensor:
        """Input of the first block, (B, T, C): for each id the vector of its token, times sqrt(C)."""
        return super().embed(ids, cache, starts) * math.sqrt(self.config.channels)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (..., V) of features (..., C), between -cap and cap if there is a cap."""
        logits, cap = super().logits(x), self.config.logit_cap
        return logits if cap is None else ops.tanh(logits / cap) * cap


# --- Hugging Face's names ------------------------------------------------------------------------------------------

PREFIX, IGNORED, TIED = llama.PREFIX, llama.IGNORED, llama.TIED
LAYER = "model.layers.{i}"
HUGGING_FACE = {
    **{
        name: theirs
        for name, theirs in llama.HUGGING_FACE.items()
        if (".mlp." not in name or "weight" in name) and name != "score.weight"
    },
    "h.{i}.ln_1_post.weight": f"{LAYER}.post_attention_layernorm.weight",  # Llama's second norm has this name
    "h.{i}.ln_2.weight": f"{LAYER}.pre_feedforward_layernorm.weight",
    "h.{i}.ln_2_post.weight": f"{LAYER}.post_feedforward_layernorm.weight",
}
rows_in_hugging_face = llama.rows_in_hugging_face
GEMMA2, GEMMA3 = "gemma2", "gemma3_text"
KEYS = {
    "scale": "query_pre_attn_scalar",
    "attention_cap": "attn_logit_softcapping",
    "logit_cap": "final_logit_softcapping",
    "activation": "hidden_activation",
    "window_rope_base": "rope_local_base_freq",
} | {field: key for field, key in LLAMA_KEYS.items() if field not in ("mlp_bias", "rotary")}
COMMON: dict[str, Any] = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "head_dim": 256}
COMMON |= {"num_attention_heads": 8, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "sliding_window": 4096}
COMMON |= {"tie_word_embeddings": True, "query_pre_attn_scalar": 256, "attention_bias": False}
# The values of missing keys, by model type.
DEFAULTS = {
    GEMMA2: COMMON
    | {"vocab_size": 256000, "max_position_embeddings": 8192, "rope_theta": 10000.0}
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    GEMMA3: COMMON | {"vocab_size": 262208, "max_position_embeddings": 131072, "rope_theta": 1e6},
}
IN_FILES = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu"}


def config_from_hugging_face(values: Mapping[str, Any]) -> GemmaConfig:
    """The configuration in the values of a config.json of model type gemma2 or gemma3_text.

    Raises: InputError that names a key which this model cannot honour, or whose value has the wrong type.
    """
    check_fixed(
        values,
        {
            "model_type": (GEMMA2, GEMMA3),
            "hidden_activation": (*IN_FILES.values(), "gelu_new"),
            "attention_dropout": (0,),
            "use_bidirectional_attention": (False,),
        },
    )
    kind = values.get("model_type") or GEMMA2
    if kind == GEMMA3:
        check_fixed(values, {"attn_logit_softcapping": ()})  # transformers ignores it
    missing = DEFAULTS[kind]
    context = whole_number(values, "max_position_embeddings", missing["max_position_embeddings"])
    place = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope, near = table(values, place), table({}, SLIDING)
    if kind == GEMMA3 and (FULL in rope or SLIDING in rope):
        rope, near = table(rope, FULL), table(rope, SLIDING)
    elif any(isinstance(value, dict) for value in rope.values()):
        raise InputError(f"load: config.json has {place}={rope!r}, of several kinds of layers; {kind} has one here")
    scaling = scaling_from(rope, place, values, context)
    base = number(rope, place, "rope_theta", number(values, "angles", "rope_theta", missing["rope_theta"]))
    window_base = None
    if kind == GEMMA3:
        local = number(values, "angles", "rope_local_base_freq", 10000.0)
        window_base = number(near, place, "rope_theta", local)
        if scaling_from(near, place, values, context) is not None:
            raise InputError(f"load: config.json has {place} with stretched angles for {SLIDING}; here they are not")
        window_base = None if scaling is None and window_base == base else window_base
    every = whole_number(values, "sliding_window_pattern", 6) if kind == GEMMA3 else 2
    window, full_blocks = windows_from(kind, values, missing, lambda block: (block + 1) % every == 0)
    bias = values.get("attention_bias") or False
    return config_from(
        GemmaConfig,
        {field: (key, missing.get(key)) for field, key in KEYS.items()},
        values,
        nulls=("attention_cap", "logit_cap"),
        context=stretched_context(context, scaling),
        rope_base=base,
        rope_scaling=scaling,
        window=window,
        full_blocks=full_blocks,
        qkv_bias=bias,
        proj_bias=bias,
        qk_norm=kind == GEMMA3,
        window_rope_base=window_base,
        activation="gelu" if values.get("hidden_activation") == "gelu" else "gelu_tanh",
    )


def config_to_hugging_face(config: GemmaConfig) -> dict[str, Any]:
    """The values of a config.json: of a Gemma 3 if queries and keys are normalised, else of a Gemma 2.

    Raises: InputError for a model that neither of them can express.
    """
    kind = GEMMA3 if config.qk_norm else GEMMA2
    if (kind == GEMMA3 and config.attention_cap) or (kind == GEMMA2 and config.window_rope_base):
        raise InputError(
            f"save_pretrained: qk_norm={config.qk_norm} with attention_cap={config.attention_cap} and window_rope_base="
            f"{config.window_rope_base} has no form in Hugging Face's format; Gemma 3 has no cap, Gemma 2 one base"
        )
    rope = rope_to(config.rope_base, config.rope_scaling)
    values = sizes_to_hugging_face(config) | {
        "architectures": [f"{'Gemma3' if config.qk_norm else 'Gemma2'}ForCausalLM"],
        "model_type": kind,
        "hidden_activation": IN_FILES[config.activation],
        "rope_parameters": {FULL: rope, SLIDING: rope_to(*config.rope(True))} if kind == GEMMA3 else rope,
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": int(config.scale) if config.scale == int(config.scale) else config.scale,
        "attn_logit_softcapping": config.attention_cap,
        "final_logit_softcapping": config.logit_cap,
        "layer_types": layer_types(config),
    }
    return values | ({} if config.window is None else {"sliding_window": config.window})
