"""Heads that tell texts or tokens apart, or find an answer in a text, on the features of any encoder.

A pretrained encoder gives each token a vector (B, T, C). A head is a layer or two from there to numbers of few classes,
and is trained together with the encoder (Devlin et al. 2018, section 4):

- texts: of the first token's vector, the logits (B, K) of K classes, or one number;
- tokens: of each token's vector, the logits (B, T, K), such as names of people and places;
- answers: of each token's vector two logits, that an answer starts there, and that it ends there, (B, T) each.

A file of an encoder gives its classes one of these and the encoder as bases, and says how `class_logits` come about.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import Tensor
from minillm.backend import Array, as_array
from minillm.device import like
from minillm.errors import InputError, check_shapes
from minillm.nn import Dropout, Linear, Module

PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
UNKNOWN = -100  # label of what is not counted


class Head(Module):
    """What has features (B, T, C) of ids: an encoder is the other base."""

    config: Any
    features: Any

    def class_logits(self, features: Tensor) -> Any:
        """What the head makes of features (B, T, C)."""
        raise TypeError(f"{type(self).__name__}: a head needs a class_logits method")

    def forward(self, ids: Any, token_types: Any = None, lengths: Any = None, attention_mask: Any = None) -> Any:
        return self.class_logits(self.features(ids, token_types, lengths, attention_mask))


class SequenceClassification(Head):
    """Called with ids (B, T), it returns logits (B, K) of the classes of a text."""

    def loss(
        self, ids: Any, classes: Any, token_types: Any = None, lengths: Any = None, attention_mask: Any = None
    ) -> Tensor:
        """How far the logits are from the classes that the texts have, on average.

        Cross-entropy, in nats, of one class for each text: classes (B,), integers, -100 where it is not known. With one
        logit, or where the configuration says "regression", the square of the difference: classes (B,) or (B, K),
        numbers. With numbers for several logits, or "multi_label_classification", each is a question of its own,
        whether a text is of that class: classes (B, K), 1 or 0, and the cross-entropy of each answer.
        """
        logits = self(ids, token_types, lengths, attention_mask)
        given = array_of(classes, logits.data)
        problem, count = self.config.problem_type, logits.shape[-1]
        if problem is None:
            by_dtype = PROBLEMS[1] if given.dtype.kind in "iu" else PROBLEMS[2]
            problem = PROBLEMS[0] if count == 1 else by_dtype
        if problem == "single_label_classification":
            check_shapes("loss", logits=("B K", logits), classes=("B", given))
            return ops.cross_entropy(logits, given, overwrite=True)
        if given.ndim == 1 and count == 1:
            given = given[:, None]
        check_shapes("loss", logits=("B K", logits), classes=("B K", given))
        wanted = Tensor(given.astype(logits.dtype))
        if problem == "regression":
            return ((logits - wanted) ** 2).mean()
        return binary_cross_entropy(logits, wanted)


def binary_cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """-log of the probability of each answer, on average: log(1 + e^x) - x y, without ever taking e^x of a large x."""
    positive, negative = ops.relu(logits), ops.relu(-logits)
    return (positive - logits * wanted + ops.log(ops.exp(-(positive + negative)) + 1)).mean()


class TokenClassification(Head):
    """Called with ids (B, T), it returns logits (B, T, K) of the classes of each token."""

    def add_head(self, dropout: float) -> None:
        """The layers of the head."""
        self.drop_features = Dropout(dropout)
        self.classifier = Linear(self.config.channels, self.config.labels)

    def class_logits(self, features: Tensor) -> Tensor:
        return self.classifier(self.drop_features(features))

    def loss(
        self, ids: Any, labels: Any, token_types: Any = None, lengths: Any = None, attention_mask: Any = None
    ) -> Tensor:
        """Cross-entropy of the tokens that have a label, in nats for each.

        Shapes: labels (B, T), classes from 0 on, and -100 where there is nothing to say.
        """
        logits = self(ids, token_types, lengths, attention_mask)
        return ops.cross_entropy(logits, array_of(labels, logits.data), ignore_index=UNKNOWN, overwrite=True, dim=-1)


class QuestionAnswering(Head):
    """Called with ids (B, T), it returns two logits (B, T) each: that an answer starts, and that it ends at a token."""

    def add_head(self, dropout: float = 0.0) -> None:
        """The layers of the head."""
        if self.config.labels != 2:
            raise InputError(
                f"{type(self).__name__}: labels is {self.config.labels}; give 2: an answer starts, and an answer ends"
            )
        self.drop_features = Dropout(dropout)
        self.qa_outputs = Linear(self.config.channels, 2)

    def class_logits(self, features: Tensor) -> tuple[Tensor, Tensor]:
        both = self.qa_outputs(self.drop_features(features))
        return both[..., 0], both[..., 1]

    def loss(
        self,
        ids: Any,
        starts: Any,
        ends: Any,
        token_types: Any = None,
        lengths: Any = None,
        attention_mask: Any = None,
    ) -> Tensor:
        """The mean of two cross-entropies, of where the answer starts and of where it ends, in nats.

        Shapes: starts and ends (B,), positions; one beyond the text is not counted.
        """
        logits = self(ids, token_types, lengths, attention_mask)
        losses = []
        for one, place in zip(logits, (starts, ends), strict=True):
            given = array_of(place, one.data)
            check_shapes("loss", logits=("B T", one), positions=("B", given))
            if given.dtype.kind not in "iu":
                raise InputError(f"loss: positions have dtype {given.dtype}; give whole numbers")
            length = one.shape[1]
            losses.append(ops.cross_entropy(one, np.clip(given, 0, length), ignore_index=length))
        return (losses[0] + losses[1]) * 0.5


def array_of(x: Any, beside: Array) -> Array:
    """What a person gave, as an array on the device of another."""
    return like(x.data if isinstance(x, Tensor) else as_array(x), beside)
