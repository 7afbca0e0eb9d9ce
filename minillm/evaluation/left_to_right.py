"""Every model that gives texts a probability, in the form of a model of the next token.

A Decoder is one. An XLNet is one too: it predicts tokens in any order, so also from left to right, where the query of a
position sees the tokens before it. BERT and its relatives give no probability to a text (masked.py has what they give),
and an encoder-decoder gives one to a target with a source, not to a text alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import InputError
from minillm.models.bart import Bart
from minillm.models.bert import MaskedLMHead
from minillm.models.heads import Head
from minillm.models.xlnet import XLNetLMHeadModel
from minillm.nn import Decoder

XLNET_CONTEXT = 512  # tokens in a text of XLNet's training; the model itself has no limit


class Size(NamedTuple):
    """The part of a model's configuration that scoring reads."""

    vocab_size: int
    context: int


class LeftToRight(Decoder):
    """An XLNet that reads from left to right."""

    def __init__(self, model: Any):
        self.model, self.config = model, Size(model.config.vocab_size, XLNET_CONTEXT)

    def features(self, ids: Any, cache: Any = None) -> Tensor:
        """The inputs of the output layer: for each of ids (B, T) the query of the position after it, (B, T, C)."""
        B, T = ids.shape
        unseen = np.zeros((B, 1), ids.dtype)  # stands at the last position, whose token nothing sees
        places = np.arange(T + 1)
        perm_mask = np.broadcast_to(places[None, :] >= places[:, None], (B, T + 1, T + 1))
        target_mapping = np.broadcast_to(places[1:, None] == places, (B, T, T + 1))
        return self.model.features(
            np.concatenate([ids, unseen], axis=1), perm_mask=perm_mask, target_mapping=target_mapping
        )

    def logits(self, x: Tensor) -> Tensor:
        """Logits (..., V) of features (..., C)."""
        return ops.linear(x, self.model.wte.weight, self.model.bias)


def left_to_right(function: str, model: Any) -> Decoder:
    """The model itself, if it predicts the next token, or an XLNet as such a model.

    Raises: InputError for any other, with what it can be measured by.
    """
    if isinstance(model, Decoder) and not isinstance(model, Head):
        return model
    if isinstance(model, XLNetLMHeadModel):
        return LeftToRight(model)
    name = type(model).__name__
    if isinstance(model, Bart):
        raise InputError(
            f"{function}: a {name} gives a probability to a target with a source, not to a text alone; measure it by "
            "multiple choice or translation"
        )
    if is_masked(model):
        raise InputError(
            f"{function}: a {name} predicts hidden tokens from both sides, so it gives a text no probability; its "
            "measure is pseudo-perplexity (minillm.evaluation.masked)"
        )
    raise InputError(f"{function}: a {name} predicts no tokens; give a model of the next token, such as a GPT-2")


def is_masked(model: Any) -> bool:
    """True for a model with a head for hidden tokens, such as BertForMaskedLM."""
    return isinstance(getattr(model, "head", None), MaskedLMHead)
