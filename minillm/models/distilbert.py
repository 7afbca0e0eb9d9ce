"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): a BERT with half the blocks, trained to imitate the whole one.

The model is BERT's (bert.py). What differs: there are no kinds of sentences, no pooler, and no dropout after attention;
the head for texts is two layers on the vector of the first token, with a ReLU between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import InputError
from minillm.models.bert import (
    BertConfig,
    Encoder,
    MaskedLM,
    MaskedLMHead,
    weight_and_bias,
)
from minillm.models.config import check_fixed, config_from
from minillm.models.heads import QuestionAnswering, SequenceClassification, TokenClassification
from minillm.models.labels import labels_from, labels_to
from minillm.nn import Dropout, Linear
from minillm.nn.initial import uninitialized


@dataclass(frozen=True)
class DistilBertConfig(BertConfig):
    """The shape of a DistilBERT."""

    layers: int = 6
    token_types: int = 0
    classifier_dropout: float | None = (
        0.2  # probability before the last layer of a head for texts; None: that of dropout
    )
    answer_dropout: float = 0.1  # probability before a head for answers

    LEAST_TOKEN_TYPES: ClassVar[int] = 0

    def __post_init__(self):
        super().__post_init__()
        self.check_probabilities("answer_dropout")
        if self.token_types or self.norm_eps != 1e-12:
            raise InputError(
                f"DistilBertConfig: token_types={self.token_types} and norm_eps={self.norm_eps}; give 0 and 1e-12"
            )


NO_DROPOUT: dict[str, Any] = dict(dropout=0.0, attention_dropout=0.0, classifier_dropout=0.0, answer_dropout=0.0)
PRESETS = {
    # for tests: 36 thousand weights
    "nano": DistilBertConfig(256, 32, layers=2, heads=2, channels=32, hidden=128, **NO_DROPOUT),
    # the sizes of the paper: 67 million weights
    "distilbert-base-uncased": DistilBertConfig(),
    "distilbert-base-cased": DistilBertConfig(vocab_size=28996),
}


class DistilBertModel(Encoder):
    """DistilBERT without a head: called with ids (B, T), it returns features (B, T, C); see `features` for the rest."""

    def __init__(self, config: DistilBertConfig):
        super().__init__(config)
        for block in self.h:
            block.attn.dropout = Dropout(0.0)
        self.assign_names()
        self._init_weights()


class DistilBertForMaskedLM(MaskedLM, DistilBertModel):
    """A DistilBERT with its head: called with ids (B, T), it returns logits (B, T, V)."""

    def __init__(self, config: DistilBertConfig):
        with uninitialized():  # all weights are drawn below
            super().__init__(config)
        self.head = MaskedLMHead(config)
        self.assign_names()
        self._init_weights()


class DistilBertForSequenceClassification(SequenceClassification, DistilBertModel):
    """A DistilBERT that classifies texts."""

    def __init__(self, config: DistilBertConfig):
        with uninitialized():
            super().__init__(config)
        self.pre_classifier = Linear(config.channels, config.channels)
        self.drop_features = Dropout(config.head_dropout)
        self.classifier = Linear(config.channels, config.labels)
        self.assign_names()
        self._init_weights()

    def class_logits(self, features: Tensor) -> Tensor:
        return self.classifier(self.drop_features(ops.relu(self.pre_classifier(features[:, 0]))))


class DistilBertForTokenClassification(TokenClassification, DistilBertModel):
    """A DistilBERT that classifies tokens."""

    def __init__(self, config: DistilBertConfig):
        with uninitialized():
            super().__init__(config)
        self.add_head(config.dropout)
        self.assign_names()
        self._init_weights()


class DistilBertForQuestionAnswering(QuestionAnswering, DistilBertModel):
    """A DistilBERT that finds the answer to a question in a text."""

    def __init__(self, config: DistilBertConfig):
        with uninitialized():
            super().__init__(config)
        self.add_head(config.answer_dropout)
        self.assign_names()
        self._init_weights()


# --- Hugging Face's names ------------------------------------------------------------------------------------------

PREFIX = "distilbert."
IGNORED = ("position_ids", "vocab_projector.weight")  # positions 0, 1, ...; a second copy of the token table
TIED = {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"}
TABLES = {"wte": "word_embeddings", "wpe": "position_embeddings"}
LAYER = "distilbert.transformer.layer.{i}"
HUGGING_FACE: dict[str, str | tuple[str, ...]] = {
    **{f"{ours}.weight": f"distilbert.embeddings.{theirs}.weight" for ours, theirs in TABLES.items()},
    **{
        f"h.{{i}}.attn.qkv.{kind}": tuple(f"{LAYER}.attention.{part}_lin.{kind}" for part in "qkv")
        for kind in ("weight", "bias")
    },
    **weight_and_bias(
        {
            "ln": "distilbert.embeddings.LayerNorm",
            "h.{i}.attn.proj": f"{LAYER}.attention.out_lin",
            "h.{i}.ln_1": f"{LAYER}.sa_layer_norm",
            "h.{i}.mlp.fc": f"{LAYER}.ffn.lin1",
            "h.{i}.mlp.proj": f"{LAYER}.ffn.lin2",
            "h.{i}.ln_2": f"{LAYER}.output_layer_norm",
            "head.fc": "vocab_transform",
            "head.ln": "vocab_layer_norm",
            "pre_classifier": "pre_classifier",
            "classifier": "classifier",
            "qa_outputs": "qa_outputs",
        }
    ),
    "head.bias": "vocab_projector.bias",
}
# For each field of the configuration: its key in a config.json, and its value if the key is missing.
KEYS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 30522),
    "context": ("max_position_embeddings", 512),
    "layers": ("n_layers", 6),
    "heads": ("n_heads", 12),
    "channels": ("dim", 768),
    "hidden": ("hidden_dim", 3072),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "classifier_dropout": ("seq_classif_dropout", 0.2),
    "answer_dropout": ("qa_dropout", 0.1),
    "padding_id": ("pad_token_id", 0),
    "problem_type": ("problem_type", None),
}
FIXED = {"activation": "gelu", "tie_word_embeddings": True}


def config_from_hugging_face(values: Mapping[str, Any]) -> DistilBertConfig:
    """The configuration in the values of a config.json of model type distilbert.

    Raises: InputError that names a key which this model cannot honour, or whose value has the wrong type.
    """
    check_fixed(values, {key: (only,) for key, only in {"model_type": "distilbert", **FIXED}.items()})
    return config_from(DistilBertConfig, KEYS, values, **labels_from(values))


def config_to_hugging_face(config: DistilBertConfig) -> dict[str, Any]:
    """The values of a config.json."""
    return {
        "architectures": ["DistilBertForMaskedLM"],
        "model_type": "distilbert",
        **{key: getattr(config, field) for field, (key, _) in KEYS.items()},
        "seq_classif_dropout": config.head_dropout,
        **FIXED,
        **labels_to(config),
    }
