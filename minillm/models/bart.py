"""BART (Lewis et al. 2019, arXiv:1910.13461): one Transformer reads a source, another writes a target.

This is the first Transformer (Vaswani et al. 2017, arXiv:1706.03762), as a translator needs it: an encoder in which
every token of the source sees every other, and a decoder that gives the next token of the target, from those before it
and from what the encoder made of the source, its memory. With a source (B, S) and a target (B, T):

    memory = encoder(source)                                                               (B, S, C)
    block of the encoder:  x = norm(x + attention(x)),  x = norm(x + mlp(x))
    block of the decoder:  x = norm(x + causal attention(x)),  x = norm(x + attention(x to memory)),
                           x = norm(x + mlp(x))
    logits = x table^T + bias                                                              (B, T, V)

- Attention to the memory (cross-attention) takes its queries from the target, and its keys and values from the memory.
  These stay as they are while the target grows: `Bart.conditioned` makes them once.
- One table of tokens serves encoder, decoder and output. Each side has its own table of positions, of which the first
  two rows belong to no position, as the original code had it; what is looked up is summed and normalised.
- The decoder's input is the target one place later: `shift_right` puts `decoder_start_id` in front, and the last token
  is only ever predicted.

BART learns from text alone by mending what was damaged (data/denoising.py); any pairs of sequences will do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import Parameter, Tensor, no_grad
from minillm.backend import Array, as_array
from minillm.device import like
from minillm.errors import InputError, ShapeError, check_shapes
from minillm.models.bert import weight_and_bias
from minillm.models.config import Config, check_fixed, config_from
from minillm.nn import (
    CrossAttention,
    Decoder,
    Dropout,
    Embedding,
    KVCache,
    LayerNorm,
    Linear,
    Module,
    SelfAttention,
    normal_,
)

OFFSET = 2  # rows of the position tables before that of the first position
IGNORED_TARGET = -100
KeysAndValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BartConfig(Config):
    """The shape of a BART."""

    vocab_size: int = 50265  # V, number of token ids
    context: int = 1024  # longest source, and longest target, in tokens
    encoder_layers: int = 12  # number of blocks
    decoder_layers: int = 12
    encoder_heads: int = 16  # attention heads per block; must divide channels
    decoder_heads: int = 16
    channels: int = 1024  # C, width of the residual stream
    encoder_hidden: int = 4096  # width of the MLP
    decoder_hidden: int = 4096
    dropout: float = 0.1  # probability, after the embedding and on each residual branch
    attention_dropout: float = 0.0  # probability, of each weight in attention
    activation_dropout: float = 0.0  # probability, of each number within the MLP
    activation: str = "gelu"  # of the MLP: "gelu" (the exact one) or "relu"
    scale_embedding: bool = False  # whether what is looked up in the table of tokens is multiplied by sqrt(C)
    init_std: float = 0.02  # of the first weights
    bos_id: int = 0  # token id that begins a text
    padding_id: int = 1  # token id that fills short sequences
    eos_id: int = 2  # token id that ends a text
    decoder_start_id: int = 2  # token id that the decoder sees first

    def __post_init__(self):
        super().__post_init__()
        sizes = [f"{side}_{size}" for side in ("encoder", "decoder") for size in ("layers", "heads", "hidden")]
        self.check_least(1, "vocab_size", "context", "channels", *sizes)
        self.check_divides("encoder_heads", "channels")
        self.check_divides("decoder_heads", "channels")
        self.check_probabilities("dropout", "attention_dropout", "activation_dropout")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"BartConfig: activation is {self.activation!r}; give 'gelu' or 'relu'")
        if not self.init_std >= 0:
            raise InputError(f"BartConfig: init_std is {self.init_std}; give 0 or more")
        for field in ("bos_id", "padding_id", "eos_id", "decoder_start_id"):
            if not 0 <= getattr(self, field) < self.vocab_size:
                raise InputError(
                    f"BartConfig: {field} is {getattr(self, field)}; give a token id, 0 to {self.vocab_size - 1}"
                )


ACTIVATIONS = ("gelu", "relu")


def both_sides(layers: int, heads: int, hidden: int) -> dict[str, Any]:
    """The fields of an encoder and a decoder of one size."""
    return {
        f"{side}_{size}": number
        for side in ("encoder", "decoder")
        for size, number in {"layers": layers, "heads": heads, "hidden": hidden}.items()
    }


PRESETS = {
    # for tests: 58 thousand weights
    "nano": BartConfig(256, 32, channels=32, **both_sides(2, 2, 64), dropout=0.0),
    # for some ten thousand pairs of sentences (Wu et al. 2021, arXiv:2105.14462): 2.3 million with 6,000 tokens
    "multi30k": BartConfig(
        *(6000, 128),
        channels=128,
        **both_sides(4, 4, 256),
        dropout=0.2,
        activation="relu",
        scale_embedding=True,
        init_std=128**-0.5,
    ),
    # of the paper: 139 and 406 million
    "bart-base": BartConfig(channels=768, **both_sides(6, 12, 3072), attention_dropout=0.1, activation_dropout=0.1),
    "bart-large": BartConfig(attention_dropout=0.1, activation_dropout=0.1),
}


class FeedForward(Module):
    """Two linear layers with an activation between, channels to hidden and back, and dropout after each."""

    def __init__(self, config: BartConfig, hidden: int):
        self.fc = Linear(config.channels, hidden)
        self.proj = Linear(hidden, config.channels)
        self.inner_dropout = Dropout(config.activation_dropout)
        self.dropout = Dropout(config.dropout)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        x = ops.gelu(self.fc(x)) if self.activation == "gelu" else ops.relu(self.fc(x))
        return self.dropout(self.proj(self.inner_dropout(x)))


class EncoderBlock(Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: BartConfig):
        channels = config.channels
        self.attn = SelfAttention(channels, config.encoder_heads, config.dropout, config.attention_dropout)
        self.ln_1 = LayerNorm(channels)
        self.mlp = FeedForward(config, config.encoder_hidden)
        self.ln_2 = LayerNorm(channels)

    def forward(self, x: Tensor, lengths: Any = None) -> Tensor:
        _, x = self.ln_1(x, self.attn(x, lengths=lengths))  # the norm of the sum
        _, x = self.ln_2(x, self.mlp(x))
        return x


class DecoderBlock(Module):
    """norm(x + causal attention(x)), then norm(x + attention(x to memory)), then norm(x + mlp(x))."""

    def __init__(self, config: BartConfig):
        channels, heads = config.channels, config.decoder_heads
        self.attn = SelfAttention(channels, heads, config.dropout, config.attention_dropout, causal=True)
        self.ln_1 = LayerNorm(channels)
        self.cross = CrossAttention(channels, heads, config.dropout, config.attention_dropout)
        self.ln_2 = LayerNorm(channels)
        self.mlp = FeedForward(config, config.decoder_hidden)
        self.ln_3 = LayerNorm(channels)

    def forward(
        self,
        x: Tensor,
        keys_and_values: KeysAndValues,
        lengths: Any = None,
        cache: KVCache | None = None,
        visible: Array | None = None,
    ) -> Tensor:
        _, x = self.ln_1(x, self.attn(x, cache, visible))
        _, x = self.ln_2(x, self.cross(x, keys_and_values, lengths))
        _, x = self.ln_3(x, self.mlp(x))
        return x


class Side(Module):
    """What the encoder and the decoder are made of: positions, the norm of what goes in, and blocks."""

    def __init__(self, config: BartConfig, blocks: list[Any]):
        self.wpe = Embedding(config.context + OFFSET, config.channels)
        self.ln = LayerNorm(config.channels)
        self.drop = Dropout(config.dropout)
        self.h = blocks

    def embed(self, tokens: Tensor, positions: Array) -> Tensor:
        """What the first block gets, (B, T, C), of tokens (B, T, C) at positions (T,) or (B, T)."""
        return self.drop(self.ln(tokens + self.wpe(positions + OFFSET)))


class BartModel(Module):
    """BART without its output layer: called with a source and a target's beginning, it returns features (B, T, C)."""

    def __init__(self, config: BartConfig):
        self.config = config
        self.wte = Embedding(config.vocab_size, config.channels)  # tokens of both sides; also the output layer
        self.encoder = Side(config, [EncoderBlock(config) for _ in range(config.encoder_layers)])
        self.decoder = Side(config, [DecoderBlock(config) for _ in range(config.decoder_layers)])
        self.assign_names()
        self._init_weights()

    def _init_weights(self) -> None:
        """Matrices from N(0, init_std), biases 0, norms 1; padding starts as the zero vector."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                normal_(parameter.data, self.config.init_std)
            elif name.endswith("bias"):
                parameter.data[...] = 0
        self.wte.weight.data[self.config.padding_id] = 0

    def encode(self, source: Any, source_lengths: Any = None) -> Tensor:
        """The memory: one vector for each token of the source, which knows of the whole source.

        Shapes: source (B, S) of integers; result (B, S, C).
        source_lengths: (B,), of each source the number of real tokens, which come first. No token sees one that is not
            real, and what stands at its place in the result has no meaning.
        Raises: ShapeError for shapes that do not fit, or more tokens than the context; DtypeError and InputError for
            ids that are not in the table, or lengths beyond S.
        """
        source = self._checked("source", source)
        x = self.encoder.embed(self._tokens(source), np.arange(source.shape[1], like=source))
        for block in self.encoder.h:
            x = block(x, source_lengths)
        return x

    def keys_and_values(self, memory: Tensor) -> list[KeysAndValues]:
        """What each block of the decoder attends to, two of (B, H, S, D) of a memory (B, S, C)."""
        return [block.cross.keys_and_values(memory) for block in self.decoder.h]

    def decode(
        self,
        ids: Array,
        positions: Array,
        keys_and_values: list[KeysAndValues],
        source_lengths: Any = None,
        cache: list[Any] | None = None,
        visible: Array | None = None,
    ) -> Tensor:
        """The features (B, T, C) of a target's ids (B, T) at these positions, given what to attend to."""
        x = self.decoder.embed(self._tokens(ids), positions)
        for number, block in enumerate(self.decoder.h):
            x = block(x, keys_and_values[number], source_lengths, cache[number] if cache else None, visible)
        return x

    def features(self, source: Any, target_in: Any, source_lengths: Any = None) -> Tensor:
        """What the output layer gets, (B, T, C); see `encode` for the source.

        Shapes: source (B, S), target_in (B, T) of integers: what the decoder sees, such as `shift_right` makes.
        """
        name = type(self).__name__
        source, target_in = self._checked("source", source), self._checked("target_in", target_in)
        check_shapes(name, source=("B S", source), target_in=("B T", target_in))
        keys_and_values = self.keys_and_values(self.encode(source, source_lengths))
        positions = np.arange(target_in.shape[1], like=target_in)
        return self.decode(target_in, positions, keys_and_values, source_lengths)

    def forward(self, source: Any, target_in: Any, source_lengths: Any = None) -> Tensor:
        return self.features(source, target_in, source_lengths)

    def _tokens(self, ids: Array) -> Tensor:
        x = self.wte(ids)
        return x * math.sqrt(self.config.channels) if self.config.scale_embedding else x

    def _checked(self, what: str, ids: Any) -> Array:
        """The ids as an array (B, T), at least one token of each sequence, and no more than the context holds."""
        ids, name = ids.data if isinstance(ids, Tensor) else as_array(ids), type(self).__name__
        if ids.ndim != 2:
            raise ShapeError(f"{name}: {what} has shape {ids.shape}; give (B, T), such as ids[None] for one sequence")
        if not 1 <= ids.shape[1] <= self.config.context:
            raise ShapeError(f"{name}: {what} has T={ids.shape[1]}; give 1 to {self.config.context}, the context")
        return ids


class Bart(BartModel):
    """A BART that writes: called with a source and a target's beginning, it returns logits (B, T, V).

    eos_ids: the tokens that end a text, where the model's files say so.
    """

    eos_ids: tuple[int, ...] = ()

    def __init__(self, config: BartConfig):
        super().__init__(config)
        # Zeros in all that was published, and never trained: fixed weights, which files of BART hold.
        self.final_logits_bias = Parameter(np.zeros((1, config.vocab_size), np.float32), "final_logits_bias")
        self.final_logits_bias.requires_grad_(False)

    def logits(self, features: Tensor) -> Tensor:
        """Of features (..., C), the logits (..., V)."""
        return ops.linear(features, self.wte.weight, self.final_logits_bias[0])

    def forward(self, source: Any, target_in: Any, source_lengths: Any = None) -> Tensor:
        """Logits (B, T, V) of what follows each token of target_in; the rest as in `features`."""
        return self.logits(self.features(source, target_in, source_lengths))

    def loss(
        self,
        source: Any,
        targets: Any,
        source_lengths: Any = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> Tensor:
        """Cross-entropy of the targets given the sources, in nats per token of the targets.

        Shapes: source (B, S) and source_lengths (B,) as in `encode`; targets (B, T), with -100 where none is counted.
            The decoder sees `shift_right` of them.
        label_smoothing, reduction: as in `ops.cross_entropy`.
        """
        targets = targets.data if isinstance(targets, Tensor) else as_array(targets)
        self._checked("targets", targets)
        target_in = shift_right(targets, self.config.decoder_start_id, self.config.padding_id)
        return ops.cross_entropy(
            self(source, target_in, source_lengths),
            targets,
            label_smoothing=label_smoothing,
            reduction=reduction,
            overwrite=True,
            dim=-1,
        )

    def conditioned(self, source: Any, source_lengths: Any = None) -> Conditioned:
        """This model once it has read its sources (S, length): a model of the next token, for `minillm.generate`.

        The sources are read here, once, without dropout and without a gradient.

        >>> list(generate(model.conditioned(source), [config.decoder_start_id], 50, stop=[config.eos_id]))
        """
        return Conditioned(self, source, source_lengths)


def shift_right(targets: Array, start_id: int, padding_id: int) -> Array:
    """What the decoder sees when it is to say `targets` (B, T): start_id, and all but the last of them.

    Where a target is -100, which is not counted, it sees padding.
    """
    seen = np.empty_like(targets)
    seen[:, :1] = start_id
    seen[:, 1:] = np.where(targets[:, :-1] == IGNORED_TARGET, padding_id, targets[:, :-1])
    return seen


# --- writing a target ----------------------------------------------------------------------------------------------


class SourceCache(KVCache):
    """A KVCache that knows of each row which source it belongs to, and holds the keys and values of that source.

    memory: keys and values (S, H, length, D) of all sources; source_lengths: (S,) or None; sources: (B,), each row's.
    """

    def __init__(
        self, memory: KeysAndValues, source_lengths: Array | None, sources: Array, context: int, padding: Array | None
    ):
        _, heads, _, head_size = memory[0].shape
        super().__init__(len(sources), heads, context, head_size, memory[0].data, padding)
        self.memory, self.lengths_of_sources, self.sources = memory, source_lengths, sources
        self._follow()

    def select(self, rows: Array) -> None:
        """Keep these rows, in this order: some may be dropped, and some be there twice."""
        super().select(rows)
        before, self.sources = self.sources, self.sources[rows]
        if not np.array_equal(before, self.sources):  # as where beams change places within a source
            self._follow()

    def _follow(self) -> None:
        self.keys_and_values, self.source_lengths = at_rows(self.memory, self.lengths_of_sources, self.sources)


def at_rows(memory: KeysAndValues, lengths: Array | None, sources: Array) -> tuple[KeysAndValues, Array | None]:
    """Keys and values, and the lengths, of each row's source."""
    keys, values = memory
    if np.array_equal(sources, np.arange(len(keys.data))):
        return memory, lengths
    rows = like(sources, keys.data)
    return (Tensor(keys.data[rows]), Tensor(values.data[rows])), None if lengths is None else lengths[rows]


class Conditioned(Decoder):
    """A Bart that has read S sources, as a model of the next token; made by `Bart.conditioned`.

    Rows of ids belong to the sources in turn, the same number to each: with S = 2 and B = 6, rows 0, 1, 2 to the first.
    It trains and evaluates as the model does, whose weights it uses, but keys and values of the sources stay as they
    were made.
    """

    def __init__(self, model: Bart, source: Any, source_lengths: Any = None):
        self.model, self.config = model, model.config
        was_training = model.training
        model.eval()
        try:
            with no_grad():
                memory = model.encode(source, source_lengths)
                self.memory = model.keys_and_values(memory)
        finally:
            model.train(was_training)
        self.source_lengths: Array | None = None
        if source_lengths is not None:
            lengths = source_lengths.data if isinstance(source_lengths, Tensor) else as_array(source_lengths)
            self.source_lengths = like(lengths, memory.data)

    @property
    def training(self) -> bool:  # type: ignore[override]
        """Whether dropout acts: the model's."""
        return self.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.model.training = mode

    @property
    def output_weight(self) -> Tensor:
        """Of the output layer, (V, C): the token table."""
        return self.model.wte.weight

    @property
    def eos_ids(self) -> tuple[int, ...]:  # type: ignore[override]
        """The tokens that end a text: the model's."""
        return self.model.eos_ids

    def new_cache(self, batch: int = 1, padding: Array | None = None) -> list[KVCache]:
        """An empty cache for `next_logits`, one for each block, with room for the whole context.

        batch: S k rows, of which each source gets k; padding: as in `Decoder.new_cache`.
        """
        sources = self._sources(batch)
        return [
            SourceCache(memory, self.source_lengths, sources, self.config.context, padding) for memory in self.memory
        ]

    def features(self, ids: Any, cache: list[Any] | None = None) -> Tensor:
        """What the output layer gets, (B, T, C); see `next_logits` for the cache."""
        ids, start, stop = self.checked_positions(ids, cache)
        positions, visible = np.arange(start, stop, like=ids), None
        if not cache:
            found = [at_rows(memory, self.source_lengths, self._sources(len(ids))) for memory in self.memory]
            return self.model.decode(ids, positions, [one for one, _ in found], found[0][1])
        if cache[0].padding is not None:
            positions = np.maximum(positions - cache[0].padding[:, None], 0)  # (B, T)
            visible = cache[0].visible(stop)
        keys_and_values = [entry.keys_and_values for entry in cache]
        return self.model.decode(ids, positions, keys_and_values, cache[0].source_lengths, cache, visible)

    def forward(self, ids: Any) -> Tensor:
        return self.model.logits(self.features(ids))  # (B, T, V)

    def next_logits(self, ids: Any, cache: list[Any]) -> Tensor:
        """The logits (B, V) of what follows ids (B, T), which follow what the cache has seen, and enter it."""
        return self.model.logits(self.features(ids, cache)[:, -1])

    def _sources(self, batch: int) -> Array:
        """Of each of so many rows, its source."""
        count = len(self.memory[0][0].data)
        if batch % count:
            raise ShapeError(
                f"Bart: there are {count} sources for {batch} rows; give each source the same number of rows"
            )
        return np.repeat(np.arange(count), batch // count)


# --- Hugging Face's names ------------------------------------------------------------------------------------------


def _joined(ours: str, theirs: str, parts: str) -> dict[str, tuple[str, ...]]:
    """Of a layer that makes several things at once, the layers that make one each, for the weight and the bias."""
    return {f"{ours}.{kind}": tuple(f"{theirs}.{part}_proj.{kind}" for part in parts) for kind in ("weight", "bias")}


def _names_of_side(side: str, names: dict[str, str]) -> dict[str, str | tuple[str, ...]]:
    """Of each parameter of the encoder or the decoder the name there."""
    block, layer = f"{side}.h.{{i}}", f"model.{side}.layers.{{i}}"
    shared = {"attn.proj": "self_attn.out_proj", "ln_1": "self_attn_layer_norm", "mlp.fc": "fc1", "mlp.proj": "fc2"}
    return {
        f"{side}.wpe.weight": f"model.{side}.embed_positions.weight",
        **_joined(f"{block}.attn.qkv", f"{layer}.self_attn", "qkv"),
        **weight_and_bias(
            {
                f"{side}.ln": f"model.{side}.layernorm_embedding",
                **{f"{block}.{ours}": f"{layer}.{theirs}" for ours, theirs in (shared | names).items()},
            }
        ),
    }


PREFIX = "model."
# The token table again; numbers that count versions, in old files.
IGNORED = ("coder.embed_tokens.weight", "lm_head.weight", "coder.version")
TIED = {
    **{f"model.{side}.embed_tokens.weight": "model.shared.weight" for side in ("encoder", "decoder")},
    "lm_head.weight": "model.shared.weight",
}
HUGGING_FACE: dict[str, str | tuple[str, ...]] = {
    "wte.weight": "model.shared.weight",
    **_names_of_side("encoder", {"ln_2": "final_layer_norm"}),
    **_names_of_side(
        "decoder",
        {
            "cross.q": "encoder_attn.q_proj",
            "cross.proj": "encoder_attn.out_proj",
            "ln_2": "encoder_attn_layer_norm",
            "ln_3": "final_layer_norm",
        },
    ),
    **_joined("decoder.h.{i}.cross.kv", "model.decoder.layers.{i}.encoder_attn", "kv"),
    "final_logits_bias": "final_logits_bias",
}
# Of each field of the configuration the key there, and what it is where the key is missing.
KEYS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 50265),
    "context": ("max_position_embeddings", 1024),
    "encoder_layers": ("encoder_layers", 12),
    "decoder_layers": ("decoder_layers", 12),
    "encoder_heads": ("encoder_attention_heads", 16),
    "decoder_heads": ("decoder_attention_heads", 16),
    "channels": ("d_model", 1024),
    "encoder_hidden": ("encoder_ffn_dim", 4096),
    "decoder_hidden": ("decoder_ffn_dim", 4096),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.0),
    "activation_dropout": ("activation_dropout", 0.0),
    "activation": ("activation_function", "gelu"),
    "scale_embedding": ("scale_embedding", False),
    "init_std": ("init_std", 0.02),
    "bos_id": ("bos_token_id", 0),
    "padding_id": ("pad_token_id", 1),
    "eos_id": ("eos_token_id", 2),
    "decoder_start_id": ("decoder_start_token_id", 2),
}
FIXED = {
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "is_encoder_decoder": True,
    "is_decoder": False,
    "tie_word_embeddings": True,
}
OLD_FIXED = {  # what old files could ask for, under the name of bart
    "normalize_before": False,
    "normalize_embedding": True,
    "add_final_layer_norm": False,
    "static_position_embeddings": False,
}


def config_from_hugging_face(values: Mapping[str, Any]) -> BartConfig:
    """From the values of a config.json of model type bart.

    Raises: InputError for what this model cannot do, and for keys that have another type or do not fit, by name.
    """
    check_fixed(values, {key: (only,) for key, only in {"model_type": "bart", **FIXED, **OLD_FIXED}.items()})
    check_fixed(values, {"activation_function": ACTIVATIONS})
    if isinstance(values.get("eos_token_id"), list):
        raise InputError(
            f"load: config.json has eos_token_id={values['eos_token_id']}; here it can only be one token id"
        )
    return config_from(BartConfig, KEYS, values)


def config_to_hugging_face(config: BartConfig) -> dict[str, Any]:
    """The values of a config.json."""
    return {
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
        **{KEYS[field.name][0]: getattr(config, field.name) for field in fields(config)},
        "forced_eos_token_id": config.eos_id,
        **FIXED,
    }
