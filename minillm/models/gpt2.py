"""GPT-2 (Radford et al. 2019): a stack of pre-norm Transformer blocks that predicts the next token.

Read from the bottom up, or with the data: ids (B, T) become vectors (B, T, C), each block adds to them twice, and the
table that turned ids into vectors turns vectors into logits (B, T, V).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.errors import InputError
from minillm.models.config import Config
from minillm.nn import MLP, Decoder, Dropout, Embedding, KVCache, LayerNorm, Module, SelfAttention, normal_


@dataclass(frozen=True)
class GPT2Config(Config):
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
        self.attn = SelfAttention(
            config.channels, config.heads, config.dropout, config.dropout, config.bias, causal=True
        )
        self.ln_2 = LayerNorm(config.channels, bias=config.bias)
        self.mlp = MLP(config.channels, 4 * config.channels, config.dropout, config.bias)

    def forward(self, x: Tensor, cache: KVCache | None = None, visible: Array | None = None) -> Tensor:
        x, normed = self.ln_2(x, self.attn(self.ln_1(x), cache, visible))  # the sum, and the norm of it
        return x + self.mlp(normed)


class GPT2(Decoder):
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
                normal_(parameter.data, std)
            elif name.endswith("bias"):
                parameter.data[...] = 0

    @property
    def output_weight(self) -> Tensor:
        """Of the output layer, (V, C): the token table."""
        return self.wte.weight

    def new_cache(self, batch: int = 1, padding: Array | None = None) -> list[KVCache]:
        """An empty cache for `next_logits`, one for each block, with room for the whole context."""
        head_size = self.config.channels // self.config.heads
        shape = (batch, self.config.heads, self.config.context, head_size)
        return [KVCache(*shape, self.wte.weight.data, padding) for _ in self.h]

    def embed(self, ids: Any, cache: list[KVCache] | None = None) -> Tensor:
        """What the first block gets, (B, T, C): of each id its token's vector, and that of its position."""
        ids, start, stop = self.checked_positions(ids, cache)
        positions = np.arange(start, stop, like=ids)
        if cache and cache[0].padding is not None:
            positions = np.maximum(positions - cache[0].padding[:, None], 0)  # (B, T)
        return self.drop(self.wte(ids) + self.wpe(positions))

    def blocks(self, x: Tensor, cache: list[KVCache] | None = None) -> Tensor:
        """What the last norm gets, (B, T, C)."""
        visible = cache[0].visible(cache[0].length + x.shape[1]) if cache else None
        for number, block in enumerate(self.h):
            x = block(x, cache[number] if cache else None, visible)
        return x


# --- Hugging Face's names ------------------------------------------------------------------------------------------

PREFIX = "transformer."
HUGGING_FACE = {
    "wte.weight": "transformer.wte.weight",
    "wpe.weight": "transformer.wpe.weight",
    **{
        f"{ours}.{kind}": f"transformer.{theirs}.{kind}"
        for ours, theirs in {
            "h.{i}.ln_1": "h.{i}.ln_1",
            "h.{i}.attn.qkv": "h.{i}.attn.c_attn",
            "h.{i}.attn.proj": "h.{i}.attn.c_proj",
            "h.{i}.ln_2": "h.{i}.ln_2",
            "h.{i}.mlp.fc": "h.{i}.mlp.c_fc",
            "h.{i}.mlp.proj": "h.{i}.mlp.c_proj",
            "ln_f": "ln_f",
        }.items()
        for kind in ("weight", "bias")
    },
}
TRANSPOSED = {f"h.{{i}}.{part}.weight" for part in ("attn.qkv", "attn.proj", "mlp.fc", "mlp.proj")}  # Conv1D
IGNORED = ("attn.bias", "attn.masked_bias", "lm_head.weight")  # masks; the token table again


def config_from_hugging_face(values: Mapping[str, Any]) -> GPT2Config:
    """From the values of a config.json of model type gpt2.

    Raises: InputError for what this model cannot do, by name.
    """
    expected = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,),
        "n_inner": (None, 4 * values["n_embd"]),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    }
    for name, choices in expected.items():
        if values.get(name, choices[0]) not in choices:
            raise InputError(f"load: config.json has {name}={values[name]!r}, which GPT2 here does not do")
    return GPT2Config(
        vocab_size=values["vocab_size"],
        context=values["n_positions"],
        layers=values["n_layer"],
        heads=values["n_head"],
        channels=values["n_embd"],
        dropout=values.get("resid_pdrop", 0.1),
    )


def config_to_hugging_face(config: GPT2Config) -> dict[str, Any]:
    """The values of a config.json. Raises: InputError without biases, which GPT-2 has."""
    if not config.bias:
        raise InputError("save_pretrained: a GPT2 with bias=False has no form in Hugging Face's format")
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_embd": config.channels,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        **dropout,
    }
