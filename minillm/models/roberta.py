"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT, trained better; and XLM-R (Conneau et al. 2019, arXiv:1911.02116).

The model is BERT's. What differs, in the model and around it:

- there is one kind of sentence, and no question whether one follows the other: one head, for hidden tokens;
- the table of positions starts at padding_id + 1, and padding counts as no position: with padding_id = 1, the
  positions of [5, 7, 1, 9, 1] are [2, 3, 1, 4, 1], and the table has padding_id + 1 rows more than the context;
- what is hidden is drawn anew whenever a text is seen, not once and for all (dynamic masking, section 4.1): call
  `mask_tokens` of data/masking.py for each batch;
- text is cut by GPT-2's tokenizer, with more of everything: text, steps, and sequences in a batch.

XLM-R is the same model of a hundred languages, whose text SentencePiece cuts into 250 thousand tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.errors import InputError, did_you_mean
from minillm.models import bert
from minillm.models.bert import (
    BertConfig,
    Encoder,
    MaskedLM,
    MaskedLMHead,
    labels_from,
    names_of_encoder,
    weight_and_bias,
)
from minillm.models.config import check_fixed, config_from, whole_number
from minillm.models.heads import QuestionAnswering, SequenceClassification, TokenClassification
from minillm.nn import Dropout, Linear, uninitialized

KINDS = ("roberta", "xlm-roberta")


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """The shape of a RoBERTa."""

    vocab_size: int = 50265
    token_types: int = 1
    norm_eps: float = 1e-5
    padding_id: int = 1
    kind: str = "roberta"  # or "xlm-roberta": the model type in Hugging Face's files

    def __post_init__(self):
        super().__post_init__()
        if self.kind not in KINDS:
            raise InputError(f"RobertaConfig: kind is {self.kind!r}{did_you_mean(self.kind, KINDS)}")

    @property
    def positions(self) -> int:
        """Rows of the position table: those up to padding_id are of no real token."""
        return self.context + self.padding_id + 1


PRESETS = {
    # for tests: 36 thousand weights
    "nano": RobertaConfig(256, 32, layers=2, heads=2, channels=32, hidden=128, dropout=0.0, attention_dropout=0.0),
    # Sanh et al. 2019, and the two of the paper: 83, 125 and 355 million
    "distilroberta-base": RobertaConfig(layers=6),
    "roberta-base": RobertaConfig(),
    "roberta-large": RobertaConfig(layers=24, heads=16, channels=1024, hidden=4096),
    # of Conneau et al.: 278 and 560 million
    "xlm-roberta-base": RobertaConfig(vocab_size=250002, kind="xlm-roberta"),
    "xlm-roberta-large": RobertaConfig(
        vocab_size=250002, layers=24, heads=16, channels=1024, hidden=4096, kind="xlm-roberta"
    ),
}


class RobertaModel(Encoder):
    """RoBERTa without its head: called with ids (B, T), it returns features (B, T, C); see `features` for the rest."""

    def __init__(self, config: RobertaConfig):
        super().__init__(config)
        self.assign_names()
        self._init_weights()

    def _init_weights(self) -> None:
        super()._init_weights()
        self.wpe.weight.data[self.config.padding_id] = 0

    def position_ids(self, ids: Array) -> Array:
        """padding_id + the number of real tokens up to each, (B, T); padding_id for padding."""
        real = ids != self.config.padding_id
        return np.cumsum(real, axis=1) * real + self.config.padding_id

    def forward(self, ids: Any, token_types: Any = None, lengths: Any = None, attention_mask: Any = None) -> Tensor:
        return self.features(ids, token_types, lengths, attention_mask)


class RobertaForMaskedLM(MaskedLM, RobertaModel):
    """A RoBERTa with its head: called with ids (B, T), it returns logits (B, T, V)."""

    def __init__(self, config: RobertaConfig):
        with uninitialized():  # numbers are drawn below, for all
            super().__init__(config)
        self.head = MaskedLMHead(config)
        self.assign_names()
        self._init_weights()


class RobertaForSequenceClassification(SequenceClassification, RobertaModel):
    """A RoBERTa that tells texts apart, by two layers on the vector of the first token."""

    def __init__(self, config: RobertaConfig):
        with uninitialized():  # numbers are drawn below, for all
            super().__init__(config)
        self.drop_features = Dropout(config.head_dropout)
        self.classifier_fc = Linear(config.channels, config.channels)
        self.classifier_proj = Linear(config.channels, config.labels)
        self.assign_names()
        self._init_weights()

    def class_logits(self, features: Tensor) -> Tensor:
        x = ops.tanh(self.classifier_fc(self.drop_features(features[:, 0])))
        return self.classifier_proj(self.drop_features(x))


class RobertaForTokenClassification(TokenClassification, RobertaModel):
    """A RoBERTa that tells tokens apart."""

    def __init__(self, config: RobertaConfig):
        with uninitialized():
            super().__init__(config)
        self.add_head(config.head_dropout)
        self.assign_names()
        self._init_weights()


class RobertaForQuestionAnswering(QuestionAnswering, RobertaModel):
    """A RoBERTa that finds the answer to a question in a text."""

    def __init__(self, config: RobertaConfig):
        with uninitialized():
            super().__init__(config)
        self.add_head()
        self.assign_names()
        self._init_weights()


# --- Hugging Face's names ------------------------------------------------------------------------------------------

PREFIX = "roberta."
# Numbers 0, 1, ...; tied copies; a layer that some files have, and that nothing trained.
IGNORED = ("position_ids", "lm_head.decoder.weight", "lm_head.decoder.bias", "pooler.dense.weight", "pooler.dense.bias")
TIED = {"lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"}
HUGGING_FACE: dict[str, str | tuple[str, ...]] = {
    **names_of_encoder("roberta"),
    **weight_and_bias(
        {
            "head.fc": "lm_head.dense",
            "head.ln": "lm_head.layer_norm",
            "classifier_fc": "classifier.dense",
            "classifier_proj": "classifier.out_proj",
            "classifier": "classifier",
            "qa_outputs": "qa_outputs",
        }
    ),
    "head.bias": "lm_head.bias",
}


# Of each kind what is there where a key is missing and BERT has another.
MISSING = {"roberta": {"vocab_size": 50265, "pad_token_id": 1}, "xlm-roberta": {"vocab_size": 30522, "pad_token_id": 1}}


def config_from_hugging_face(values: Mapping[str, Any]) -> RobertaConfig:
    """From the values of a config.json of model type roberta or xlm-roberta.

    Raises: InputError for what this model cannot do, and for keys that have another type or do not fit, by name.
    """
    check_fixed(values, {"model_type": tuple(MISSING), **{key: (only,) for key, only in bert.FIXED.items()}})
    kind = values.get("model_type") or "roberta"
    keys = {field: (key, MISSING[kind].get(key, missing)) for field, (key, missing) in bert.KEYS.items()}
    padding_id = whole_number(values, "pad_token_id", 1, least=0)
    positions = whole_number(values, "max_position_embeddings", 512)  # the size of the table
    context = positions - padding_id - 1
    if context < 1:
        raise InputError(
            f"load: config.json has max_position_embeddings={positions}; give more, for the first {padding_id + 1} "
            f"places, up to pad_token_id={padding_id}, are of no token"
        )
    return config_from(RobertaConfig, keys, values, context=context, labels=labels_from(values), kind=kind)


def config_to_hugging_face(config: RobertaConfig) -> dict[str, Any]:
    """The values of a config.json."""
    return bert.config_to_hugging_face(config) | {
        "architectures": [f"{'Roberta' if config.kind == 'roberta' else 'XLMRoberta'}ForMaskedLM"],
        "model_type": config.kind,
        "max_position_embeddings": config.positions,
    }
