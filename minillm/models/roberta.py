"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT, trained better.

The model is BERT's. What differs, in the model and around it:

- there is one kind of sentence, and no question whether one follows the other: one head, for hidden tokens;
- the table of positions starts at padding_id + 1, and padding counts as no position: with padding_id = 1, the
  positions of [5, 7, 1, 9, 1] are [2, 3, 1, 4, 1], and the table has padding_id + 1 rows more than the context;
- what is hidden is drawn anew whenever a text is seen, not once and for all (dynamic masking, section 4.1): call
  `mask_tokens` of data/masking.py for each batch;
- text is cut by GPT-2's tokenizer, with more of everything: text, steps, and sequences in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.models import bert
from minillm.models.bert import (
    BertConfig,
    Encoder,
    MaskedLM,
    MaskedLMHead,
    fields_from_hugging_face,
    names_of_encoder,
    weight_and_bias,
)
from minillm.nn import uninitialized


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """The shape of a RoBERTa."""

    vocab_size: int = 50265
    token_types: int = 1
    norm_eps: float = 1e-5
    padding_id: int = 1

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


# --- Hugging Face's names ------------------------------------------------------------------------------------------

PREFIX = "roberta."
# Numbers 0, 1, ...; tied copies; a layer that some files have, and that nothing trained.
IGNORED = ("position_ids", "lm_head.decoder.weight", "lm_head.decoder.bias", "pooler.dense.weight", "pooler.dense.bias")
TIED = {"lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"}
HUGGING_FACE: dict[str, str | tuple[str, ...]] = {
    **names_of_encoder("roberta"),
    **weight_and_bias({"head.fc": "lm_head.dense", "head.ln": "lm_head.layer_norm"}),
    "head.bias": "lm_head.bias",
}


def config_from_hugging_face(values: Mapping[str, Any]) -> RobertaConfig:
    """From the values of a config.json of model type roberta.

    Raises: InputError for what this model cannot do, by name.
    """
    found = fields_from_hugging_face("roberta", {"vocab_size": 50265, "pad_token_id": 1, **values})
    found["context"] -= found["padding_id"] + 1  # theirs is the size of the table
    return RobertaConfig(**found)


def config_to_hugging_face(config: RobertaConfig) -> dict[str, Any]:
    """The values of a config.json."""
    return bert.config_to_hugging_face(config) | {
        "architectures": ["RobertaForMaskedLM"],
        "model_type": "roberta",
        "max_position_embeddings": config.positions,
    }
