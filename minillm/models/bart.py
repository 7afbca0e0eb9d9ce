"""BART (Lewis et al. 2019, arXiv:1910.13461): one Transformer reads a source, another writes a target.

This is the original Transformer (Vaswani et al. 2017, arXiv:1706.03762), built for translation. In its encoder every
token of the source sees every other; the result is called the memory. Its decoder predicts the next token of the target
from the tokens before it and from the memory. With a source (B, S) and a target (B, T):

    memory = encoder(source)                                                               (B, S, C)
    block of the encoder:  x = norm(x + attention(x)),  x = norm(x + mlp(x))
    block of the decoder:  x = norm(x + causal attention(x)),  x = norm(x + attention(x to memory)),
                           x = norm(x + mlp(x))
    logits = x table^T + bias                                                              (B, T, V)

- Attention to the memory (cross-attention) takes its queries from the target, and its keys and values from the memory.
  These stay the same while the target grows, so `Bart.conditioned` computes them once.
- One token table serves encoder, decoder and output. Each side has its own position table, whose first two rows belong
  to no position, as in the original code. The sum of the two vectors is normalised.
- The decoder's input is the target, shifted by one place: `shift_right` puts `decoder_start_id` in front and drops the
  last token, which is predicted only.

BART learns from text alone by restoring damaged text (data/denoising.py); any pairs of sequences serve as well.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import Parameter, Tensor
from minillm.backend import Array, as_array
from minillm.errors import InputError, ShapeError, check_shapes
from minillm.models.bart_conditioned import Conditioned, KeysAndValues
from minillm.models.bart_config import PRESETS as PRESETS
from minillm.models.bart_config import BartConfig
from minillm.models.bart_config import config_from_hugging_face as config_from_hugging_face
from minillm.models.bart_config import config_to_hugging_face as config_to_hugging_face
from minillm.models.bert import weight_and_bias
from minillm.models.heads import Head, QuestionAnswering, SequenceClassification, vectors_at
from minillm.nn import (
    ACTIVATIONS,
    CrossAttention,
    Dropout,
    Embedding,
    KVCache,
    LayerNorm,
    Linear,
    Module,
    SelfAttention,
)
from minillm.nn.initial import normal_

OFFSET = 2  # row of the first position in a position table
IGNORED_TARGET = -100


class FeedForward(Module):
    """Two linear layers with an activation between them, from C to `hidden` and back, and dropout after each."""

    def __init__(self, config: BartConfig, hidden: int):
        self.fc = Linear(config.channels, hidden)
        self.proj = Linear(hidden, config.channels)
        self.inner_dropout = Dropout(config.activation_dropout)
        self.dropout = Dropout(config.dropout)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner_dropout(ACTIVATIONS[self.activation](self.fc(x)))  # (..., hidden)
        return self.dropout(self.proj(hidden))


class EncoderBlock(Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: BartConfig):
        channels = config.channels
        self.attn = SelfAttention(channels, config.encoder_heads, config.dropout, config.attention_dropout)
        self.ln_1 = LayerNorm(channels)
        self.mlp = FeedForward(config, config.encoder_hidden)
        self.ln_2 = LayerNorm(channels)

    def forward(self, x: Tensor, lengths: Any = None) -> Tensor:
        x = self.ln_1(x + self.attn(x, lengths=lengths))  # (B, S, C)
        return self.ln_2(x + self.mlp(x))


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
        memory: Tensor | KeysAndValues,
        lengths: Any = None,
        cache: KVCache | None = None,
        visible: Array | None = None,
    ) -> Tensor:
        keys_and_values = self.cross.keys_and_values(memory) if isinstance(memory, Tensor) else memory
        x = self.ln_1(x + self.attn(x, cache, visible))  # (B, T, C)
        x = self.ln_2(x + self.cross(x, keys_and_values, lengths))
        return self.ln_3(x + self.mlp(x))


class Side(Module):
    """The parts of an encoder or a decoder: a position table, the norm of its input, and blocks."""

    def __init__(self, config: BartConfig, blocks: list[Any]):
        self.wpe = Embedding(config.context + OFFSET, config.channels)
        self.ln = LayerNorm(config.channels)
        self.drop = Dropout(config.dropout)
        self.h = blocks

    def embed(self, tokens: Tensor, positions: Array) -> Tensor:
        """Input of the first block, (B, T, C), from token vectors (B, T, C) at positions (T,) or (B, T)."""
        return self.drop(self.ln(tokens + self.wpe(positions + OFFSET)))


class BartModel(Module):
    """BART without its output layer: called with a source and a target's beginning, it returns features (B, T, C)."""

    def __init__(self, config: BartConfig):
        self.config = config
        self.wte = Embedding(config.vocab_size, config.channels)  # token table of both sides; also the output layer
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
        """The memory: a vector for each token of the source that depends on the whole source.

        Shapes: source (B, S) of integers; result (B, S, C).
        source_lengths: (B,), the number of real tokens of each source, which come first. No token sees padding, and the
            result has no meaning at padding.
        Raises: ShapeError for shapes that do not fit, or more tokens than the context; DtypeError and InputError for
            ids that are not in the table, or lengths beyond S.
        """
        source = self._checked("source", source)
        x = self.encoder.embed(self._tokens(source), np.arange(source.shape[1], like=source))
        for block in self.encoder.h:
            x = block(x, source_lengths)
        return x

    def keys_and_values(self, memory: Tensor) -> list[KeysAndValues]:
        """Keys and values (B, H, S, D) for the cross-attention of each decoder block, from a memory (B, S, C)."""
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
        """Features (B, T, C) of a target's ids (B, T) at these positions, given the keys and values of the sources."""
        x = self.decoder.embed(self._tokens(ids), positions)
        for number, block in enumerate(self.decoder.h):
            x = block(x, keys_and_values[number], source_lengths, cache[number] if cache else None, visible)
        return x

    def features(self, source: Any, target_in: Any, source_lengths: Any = None) -> Tensor:
        """Input of the output layer, (B, T, C); see `encode` for the source.

        Shapes: source (B, S); target_in (B, T), the decoder's input, integers, as `shift_right` makes it of a target.
        """
        name = type(self).__name__
        source, target_in = self._checked("source", source), self._checked("target_in", target_in)
        check_shapes(name, source=("B S", source), target_in=("B T", target_in))
        memory = self.encode(source, source_lengths)
        x = self.decoder.embed(self._tokens(target_in), np.arange(target_in.shape[1], like=target_in))
        for block in self.decoder.h:
            x = block(x, memory, source_lengths)
        return x

    def forward(self, source: Any, target_in: Any, source_lengths: Any = None) -> Tensor:
        return self.features(source, target_in, source_lengths)

    def _tokens(self, ids: Array) -> Tensor:
        x = self.wte(ids)
        return x * math.sqrt(self.config.channels) if self.config.scale_embedding else x

    def _checked(self, what: str, ids: Any) -> Array:
        """The ids as an array (B, T). Raises: ShapeError if T is 0 or more than the context."""
        ids, name = ids.data if isinstance(ids, Tensor) else as_array(ids), type(self).__name__
        if ids.ndim != 2:
            raise ShapeError(f"{name}: {what} has shape {ids.shape}; give (B, T), such as ids[None] for one sequence")
        if not 1 <= ids.shape[1] <= self.config.context:
            raise ShapeError(f"{name}: {what} has T={ids.shape[1]}; give 1 to {self.config.context}, the context")
        return ids


class Bart(BartModel):
    """A BART that writes: called with a source and a target's beginning, it returns logits (B, T, V).

    eos_ids: the tokens that end a text, as far as the model's files name them.
    """

    eos_ids: tuple[int, ...] = ()

    def __init__(self, config: BartConfig):
        super().__init__(config)
        # Files of BART hold this bias; it is zero in all published models, and is never trained.
        self.final_logits_bias = Parameter(np.zeros((1, config.vocab_size), np.float32), "final_logits_bias")
        self.final_logits_bias.requires_grad_(False)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (..., V) of features (..., C)."""
        return ops.linear(x, self.wte.weight, self.final_logits_bias[0])

    def forward(self, source: Any, target_in: Any, source_lengths: Any = None) -> Tensor:
        """Logits (B, T, V) of the token after each token of target_in; the arguments are those of `features`."""
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

        Shapes: source (B, S) and source_lengths (B,) as in `encode`; targets (B, T), with -100 for tokens that do not
            count. The decoder's input is `shift_right` of them.
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
        """A model of the next token of targets for these sources (S, length), for `minillm.generate`.

        The sources are encoded here, once, without dropout and without gradients.

        >>> list(generate(model.conditioned(source), [config.decoder_start_id], 50, stop=[config.eos_id]))
        """
        return Conditioned(self, source, source_lengths)


def shift_right(targets: Array, start_id: int, padding_id: int) -> Array:
    """The decoder's input for `targets` (B, T): start_id, then all targets but the last.

    A target of -100, which does not count, becomes padding.
    """
    seen = np.empty_like(targets)
    seen[:, :1] = start_id
    seen[:, 1:] = np.where(targets[:, :-1] == IGNORED_TARGET, padding_id, targets[:, :-1])
    return seen


# --- heads ---------------------------------------------------------------------------------------------------------


class BartReader(Head, BartModel):
    """A BART that reads one text with both sides, under a head: its decoder's input is the source, shifted.

    Source: Lewis et al. 2019, section 3.1: the vector of the last token in the decoder has seen the whole text.
    """

    def token_vectors(self, ids: Any, token_types: Any, lengths: Any, attention_mask: Any) -> Tensor:
        name = type(self).__name__
        if token_types is not None:
            raise InputError(f"{name}: token_types were given, but a BART has none; leave them out")
        if attention_mask is not None:
            raise InputError(f"{name}: attention_mask was given; give lengths, (B,), with the padding after the texts")
        source = self._checked("ids", ids)
        target_in = shift_right(source, self.config.decoder_start_id, self.config.padding_id)
        return self.features(source, target_in, lengths)


class BartForSequenceClassification(BartReader, SequenceClassification):
    """A BART that classifies texts by two layers on the vector of each text's last end token, eos_id."""

    def __init__(self, config: BartConfig):
        super().__init__(config)
        self.drop_features = Dropout(config.classifier_dropout)
        self.classifier_fc = Linear(config.channels, config.channels)
        self.classifier_proj = Linear(config.channels, config.labels)
        self.assign_names()
        self._init_weights()

    def forward(self, ids: Any, token_types: Any = None, lengths: Any = None, attention_mask: Any = None) -> Tensor:
        features = self.token_vectors(ids, token_types, lengths, attention_mask)
        ends = self._checked("ids", ids)[:, ::-1] == self.config.eos_id
        if not ends.any(1).all():
            raise InputError(
                f"{type(self).__name__}: text {int(np.argmin(ends.any(1)))} has no end token, eos_id="
                f"{self.config.eos_id}; put it at the end of each text"
            )
        last = ends.shape[1] - 1 - np.argmax(ends, axis=1)
        x = ops.tanh(self.classifier_fc(self.drop_features(vectors_at(features, last))))  # (B, C)
        return self.classifier_proj(self.drop_features(x))


class BartForQuestionAnswering(BartReader, QuestionAnswering):
    """A BART that finds the answer to a question in a text; it has two labels, whatever the configuration says."""

    def __init__(self, config: BartConfig):
        super().__init__(config if config.labels == 2 else replace(config, labels=2, label_names=()))
        self.add_head()
        self.assign_names()
        self._init_weights()


# --- Hugging Face's names ------------------------------------------------------------------------------------------


def _joined(ours: str, theirs: str, parts: str) -> dict[str, tuple[str, ...]]:
    """The names of the layers that a joined layer stacks, such as queries, keys and values: weights and biases."""
    return {f"{ours}.{kind}": tuple(f"{theirs}.{part}_proj.{kind}" for part in parts) for kind in ("weight", "bias")}


def _names_of_side(side: str, names: dict[str, str]) -> dict[str, str | tuple[str, ...]]:
    """Hugging Face's name for each parameter of the encoder or the decoder."""
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
# Copies of the token table; version numbers in old files.
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
    **weight_and_bias(
        {
            "classifier_fc": "classification_head.dense",
            "classifier_proj": "classification_head.out_proj",
            "qa_outputs": "qa_outputs",
        }
    ),
}
