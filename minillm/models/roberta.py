"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT, trained better; and XLM-R (Conneau et al. 2019, arXiv:1911.02116).

The model is BERT's (bert.py). What differs, in the model and around it:

- there is one kind of sentence, and no prediction of the next one: the only head is for hidden tokens;
- the table of positions starts at padding_id + 1, and padding has no position: with padding_id = 1, the positions of
  [5, 7, 1, 9, 1] are [2, 3, 1, 4, 1], and the table has padding_id + 1 rows more than the context;
- the hidden tokens are drawn anew whenever a text is seen, instead of once for all (dynamic masking, section 4.1): call
  `mask_tokens` of data/masking.py for each batch;
- GPT-2's tokenizer splits the text, and training takes more text, more steps, and more sequences in a batch.

XLM-R is the same model for a hundred languages, with a vocabulary of 250 thousand SentencePiece tokens.
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
    names_of_encoder,
    weight_and_bias,
)
from minillm.models.config import check_fixed, config_from, whole_number
from minillm.models.heads import QuestionAnswering, SequenceClassification, TokenClassification
from minillm.models.labels import labels_from
from minillm.nn import Dropout, Linear
from minillm.nn.initial import uninitialized

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
        """Number of rows of the position table; real tokens use those after padding_id."""
        return self.context + self.padding_id + 1


PRESETS = {
    # for tests: 36 thousand weights
    "nano": RobertaConfig(256, 32, layers=2, heads=2, channels=32, hidden=128, dropout=0.0, attention_dropout=0.0),
    # Sanh et al. 2019, and the two of the paper: 83, 125 and 355 million weights
    "distilroberta-base": RobertaConfig(layers=6),
    "roberta-base": RobertaConfig(),
    "roberta-large": RobertaConfig(layers=24, heads=16, channels=1024, hidden=4096),
    # the sizes of Conneau et al.: 278 and 560 million weights
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
        """Rows (B, T) of the position table: padding_id + 1, + 2, ... for real tokens, and padding_id for padding."""
        real = ids != self.config.padding_id
        return np.cumsum(real, axis=1) * real + self.config.padding_id


class RobertaForMaskedLM(MaskedLM, RobertaModel):
    """A RoBERTa with its head: called with ids (B, T), it returns logits (B, T, V)."""

    def __init__(self, config: RobertaConfig):
        with uninitialized():  # all weights are drawn below
            super().__init__(config)
        self.head = MaskedLMHead(config)
        self.assign_names()
        self._init_weights()


class RobertaForSequenceClassification(SequenceClassification, RobertaModel):
    """A RoBERTa that classifies texts by two layers on the vector of the first token."""

    def __init__(self, config: RobertaConfig):
        with uninitialized():  # all weights are drawn below
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
    """A RoBERTa that classifies tokens."""

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
# Positions 0, 1, ...; tied copies; an untrained layer in some files.
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


# The values of missing keys that differ from BERT's, by model type.
MISSING = {"roberta": {"vocab_size": 50265, "pad_token_id": 1}, "xlm-roberta": {"vocab_size": 30522, "pad_token_id": 1}}


def config_from_hugging_face(values: Mapping[str, Any]) -> RobertaConfig:
    """The configuration in the values of a config.json of model type roberta or xlm-roberta.

    Raises: InputError that names a key which this model cannot honour, or whose value has the wrong type.
    """
    check_fixed(values, {"model_type": tuple(MISSING), **{key: (only,) for key, only in bert.FIXED.items()}})
    kind = values.get("model_type") or "roberta"
    keys = {field: (key, MISSING[kind].get(key, missing)) for field, (key, missing) in bert.KEYS.items()}
    padding_id = whole_number(values, "pad_token_id", 1, least=0)
    positions = whole_number(values, "max_position_embeddings", 512)  # the size of the table
    context = positions - padding_id - 1
    if context < 1:
        raise InputError(
            f"load: config.json has max_position_embeddings={positions}; give more, because no token uses the first "
            f"{padding_id + 1} places, up to pad_token_id={padding_id}"
        )
    return config_from(RobertaConfig, keys, values, context=context, kind=kind, **labels_from(values))


def config_to_hugging_face(config: RobertaConfig) -> dict[str, Any]:
    """The values of a config.json."""
    return bert.config_to_hugging_face(config) | {
        "architectures": [f"{'Roberta' if config.kind == 'roberta' else 'XLMRoberta'}ForMaskedLM"],
        "model_type": config.kind,
        "max_position_embeddings": config.positions,
    }
