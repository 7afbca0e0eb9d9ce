"""GPT-2 (Radford et al. 2019): a stack of pre-norm Transformer blocks that predicts the next token.

Read it with the data, from `GPT2.forward` on. With ids (B, T):

    x = token table[ids] + position table[positions]             (B, T, C), the residual stream
    in each block:  x = x + attention(norm(x)),  x = x + mlp(norm(x))
    logits = norm(x) token table^T                               (B, T, V)

so every block adds to the residual stream twice, and the table (V, C) that turned ids into vectors turns vectors into
logits. The position table is (context, C).
Attention and the MLP are SelfAttention and MLP of minillm/nn. An optimiser, once built, replaces the array of every
parameter by a view into a flat buffer (optim/flat.py). The second half of the file says how Hugging Face's files name
the same things.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.errors import InputError, did_you_mean
from minillm.models.config import Config, check_fixed, config_from
from minillm.models.heads import LastTokenClassification
from minillm.models.labels import check_labels, classifier_from, classifier_to
from minillm.nn import ACTIVATIONS, MLP, Decoder, Dropout, Embedding, KVCache, LayerNorm, Linear, Module, SelfAttention
from minillm.nn.initial import normal_


@dataclass(frozen=True)
class GPT2Config(Config):
    """The shape of a GPT-2."""

    vocab_size: int = 50257  # V, number of token ids
    context: int = 1024  # longest sequence, in tokens
    layers: int = 12  # L, number of blocks
    heads: int = 12  # H, attention heads per block; must divide channels
    channels: int = 768  # C, width of the residual stream
    dropout: float = 0.0  # probability: after the embedding, in attention and on each residual branch
    bias: bool = True  # linear layers and layer norms have a bias
    hidden: int | None = None  # width of the MLP; four times --channels unless given
    activation: str = "gelu_tanh"  # in the MLP: "gelu_tanh", "gelu" (the exact one), "relu" or "silu"
    tied: bool = True  # the output layer is the token table
    norm_eps: float = 1e-5  # added to the variance
    embedding_dropout: float | None = None  # probability after the embedding; None: that of dropout
    attention_dropout: float | None = None  # probability for each attention weight; None: that of dropout
    # of a head for texts (heads.py), which no option sets
    labels: int = field(default=2, metadata={"option": False})  # number of classes
    label_names: tuple[str, ...] = field(default=(), metadata={"option": False})  # their names; (): they have none
    problem_type: str | None = field(default=None, metadata={"option": False})  # what the head learns
    padding_id: int | None = field(default=None, metadata={"option": False})  # token after the end of a text

    def __post_init__(self):
        super().__post_init__()
        self.check_least(1, "vocab_size", "context", "layers", "heads", "channels", "hidden")
        self.check_divides("heads", "channels")
        self.check_probabilities("dropout", "embedding_dropout", "attention_dropout")
        self.check_above_zero("norm_eps")
        check_labels(self)
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"GPT2Config: activation is {self.activation!r}{did_you_mean(self.activation, ACTIVATIONS)}"
            )

    @property
    def size_of_mlp(self) -> int:
        """Width of the MLP."""
        return 4 * self.channels if self.hidden is None else self.hidden


PRESETS = {
    # for tests: 35 thousand weights
    "nano": GPT2Config(vocab_size=256, context=32, layers=2, heads=2, channels=32),
    # nanoGPT's character-level examples, for a CPU and for a GPU: 0.8 and 11 million weights
    "tiny": GPT2Config(vocab_size=65, context=64, layers=4, heads=4, channels=128),
    "baby": GPT2Config(vocab_size=65, context=256, layers=6, heads=6, channels=384),
    # the four of the paper: 124, 355, 774 and 1,558 million weights
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(layers=24, heads=16, channels=1024),
    "gpt2-large": GPT2Config(layers=36, heads=20, channels=1280),
    "gpt2-xl": GPT2Config(layers=48, heads=25, channels=1600),
}


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPT2Config):
        channels, eps, bias = config.channels, config.norm_eps, config.bias
        p = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.ln_1 = LayerNorm(channels, eps, bias)
        self.attn = SelfAttention(channels, config.heads, config.dropout, p, bias, causal=True)
        self.ln_2 = LayerNorm(channels, eps, bias)
        self.mlp = MLP(channels, config.size_of_mlp, config.dropout, bias, config.activation)

    def forward(
        self, x: Tensor, cache: KVCache | None = None, visible: Array | None = None, starts: Array | None = None
    ) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, visible, starts=starts)  # (B, T, C)
        return x + self.mlp(self.ln_2(x))  # (B, T, C)


class GPT2(Decoder):
    """A GPT-2 language model: called with ids (B, T), it returns logits (B, T, V)."""

    def __init__(self, config: GPT2Config):
        self.config = config
        self.wte = Embedding(config.vocab_size, config.channels)  # token table; also the output layer, if tied
        self.wpe = Embedding(config.context, config.channels)  # position table
        self.drop = Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.h = [Block(config) for _ in range(config.layers)]
        self.ln_f = LayerNorm(config.channels, config.norm_eps, config.bias)
        if not config.tied:
            self.lm_head = Linear(config.channels, config.vocab_size, bias=False)
        self.assign_names()
        self._init_weights()

    def _init_weights(self) -> None:
        """Matrices from a normal distribution with mean 0 and standard deviation 0.02; all biases 0.

        The matrices that write to the residual stream, two a block, have the standard deviation 0.02 / sqrt(2L).
        Source: Radford et al. 2019, section 2.3: the sum of 2L branches would otherwise grow with depth.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = 0.02 / math.sqrt(2 * self.config.layers) if name.endswith("proj.weight") else 0.02
                normal_(parameter.data, std)
            elif name.endswith("bias"):
                parameter.data[...] = 0

    def forward(self, ids: Any, starts: Any = None) -> Tensor:
        """Logits (B, T, V): for each of the ids (B, T), how likely each token is to follow it."""
        x = self.features(ids, starts=starts)  # (B, T, C)
        return self.logits(x)  # (B, T, V)

    def loss(self, ids: Any, targets: Any, reduction: str = "mean", starts: Any = None) -> Tensor:
        """Cross-entropy of the logits against targets (B, T), in nats per token; a target of -100 does not count."""
        logits = self(ids, starts)  # (B, T, V). No one else reads the logits, so the backward may overwrite them.
        return ops.cross_entropy(logits, targets, reduction=reduction, overwrite=True, dim=-1)  # ()

    def features(self, ids: Any, cache: list[KVCache] | None = None, starts: Any = None) -> Tensor:
        """Input of the output layer, (B, T, C). With a cache, the ids follow the tokens in it, and are added to it."""
        x = self.embed(ids, cache, starts)  # (B, T, C)
        x = self.blocks(x, cache, starts)  # (B, T, C)
        return self.ln_f(x)  # (B, T, C)

    def embed(self, ids: Any, cache: list[KVCache] | None = None, starts: Any = None) -> Tensor:
        """Input of the first block, (B, T, C): for each id the vector of its token plus that of its position."""
        ids, start, stop = self.checked_positions(ids, cache)
        positions = np.arange(start, stop, like=ids)  # (T,)
        if cache and cache[0].padding is not None:
            positions = np.maximum(positions - cache[0].padding[:, None], 0)  # (B, T)
        if (first := self.checked_starts(starts, ids, cache)) is not None:
            positions = positions - first  # (B, T)
        return self.drop(self.wte(ids) + self.wpe(positions))  # (B, T, C) + (T, C)

    def blocks(self, x: Tensor, cache: list[KVCache] | None = None, starts: Any = None) -> Tensor:
        """Residual stream after the last block, (B, T, C)."""
        visible = cache[0].visible(cache[0].length + x.shape[1]) if cache else None
        for number, block in enumerate(self.h):
            x = block(x, cache[number] if cache else None, visible, starts)  # (B, T, C)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Logits (..., V) of features (..., C)."""
        return ops.linear(x, self.output_weight) if self.config.tied else self.lm_head(x)  # (..., V)

    @property
    def output_weight(self) -> Tensor:
        """Output-projection weight, (V, C): the token table, if the two are tied.

        The tied table then gets two gradients in a backward: first from the logits' linear, last from the embedding.
        """
        return self.wte.weight if self.config.tied else self.lm_head.weight

    def new_cache(self, batch: int = 1, padding: Array | None = None) -> list[KVCache]:
        """An empty cache for each block, with room for the whole context; see KVCache for padding."""
        head_size = self.config.channels // self.config.heads
        shape = (batch, self.config.heads, self.config.context, head_size)
        return [KVCache(*shape, self.wte.weight.data, padding) for _ in self.h]


class GPT2ForSequenceClassification(LastTokenClassification, GPT2):  # type: ignore[misc]
    """A GPT-2 that classifies texts, or gives them a reward: called with ids (B, T), it returns logits (B, K)."""


# --- Hugging Face's names ------------------------------------------------------------------------------------------

PREFIX = "transformer."
TIED = {"lm_head.weight": "transformer.wte.weight"}
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
    "lm_head.weight": "lm_head.weight",
    "score.weight": "score.weight",
}
TRANSPOSED = {f"h.{{i}}.{part}.weight" for part in ("attn.qkv", "attn.proj", "mlp.fc", "mlp.proj")}  # Conv1D
IGNORED = ("attn.bias", "attn.masked_bias", "lm_head.weight")  # causal masks; a second copy of the token table


# For each field of the configuration: its key in a config.json, and its value if the key is missing.
KEYS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 50257),
    "context": ("n_positions", 1024),
    "layers": ("n_layer", 12),
    "heads": ("n_head", 12),
    "channels": ("n_embd", 768),
    "dropout": ("resid_pdrop", 0.1),
    "embedding_dropout": ("embd_pdrop", 0.1),
    "attention_dropout": ("attn_pdrop", 0.1),
    "hidden": ("n_inner", None),
    "activation": ("activation_function", "gelu_new"),
    "norm_eps": ("layer_norm_epsilon", 1e-5),
    "tied": ("tie_word_embeddings", True),
}
# Activations by their names in files; where several names mean one function, the first is written.
ACTIVATIONS_IN_FILES = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
ACTIVATIONS_IN_FILES |= {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"}
DROPOUTS = ("embedding_dropout", "attention_dropout")  # fields that are None if all dropout probabilities are equal
FIXED = {
    "model_type": ("gpt2",),
    "activation_function": tuple(ACTIVATIONS_IN_FILES),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def config_from_hugging_face(values: Mapping[str, Any]) -> GPT2Config:
    """The configuration in the values of a config.json of model type gpt2.

    Raises: InputError that names a key which this model cannot honour, or whose value has the wrong type.
    """
    check_fixed(values, FIXED)
    config = config_from(
        GPT2Config,
        KEYS,
        values,
        activation=ACTIVATIONS_IN_FILES[values.get("activation_function") or "gelu_new"],
        **classifier_from(values),
    )
    same = {name: None for name in DROPOUTS if getattr(config, name) == config.dropout}
    if config.hidden == 4 * config.channels:
        same["hidden"] = None
    return replace(config, **same)


def config_to_hugging_face(config: GPT2Config) -> dict[str, Any]:
    """The values of a config.json. Raises: InputError for a model without biases, which the format cannot express."""
    if not config.bias:
        raise InputError(
            "save_pretrained: Hugging Face's GPT-2 has biases; a GPT2 with bias=False cannot be saved for it"
        )
    values = {key: getattr(config, field) for field, (key, _) in KEYS.items()}
    activation = next(name for name, ours in ACTIVATIONS_IN_FILES.items() if ours == config.activation)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **values,
        **{KEYS[name][0]: config.dropout for name in DROPOUTS if getattr(config, name) is None},
        "activation_function": activation,
        **dict.fromkeys(("bos_token_id", "eos_token_id")),  # the model itself has no such ids
        **classifier_to(config),
    }
