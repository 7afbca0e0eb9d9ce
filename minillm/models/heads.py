"""Heads that classify texts or tokens, or find an answer in a text, on the features of any encoder.

A pretrained encoder gives each token a vector (B, T, C). A head is a layer or two from there to the logits of a few
classes, and is trained together with the encoder (Devlin et al. 2018, section 4):

- texts: the vector of the first token gives logits (B, K) of K classes, or one number;
- tokens: the vector of each token gives logits (B, T, K), of names of people and places, for example;
- answers: the vector of each token gives two logits, that an answer starts there, and that it ends there, (B, T) each.

A class in an encoder's file has one of these heads and the encoder as bases, and defines `class_logits`.
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
UNKNOWN = -100  # label of a token or text that does not count


class Head(Module):
    """Base of all heads; the other base is an encoder, with `features` (B, T, C) of ids."""

    config: Any
    features: Any

    def class_logits(self, features: Tensor) -> Any:
        """The logits of the head from features (B, T, C)."""
        raise TypeError(f"{type(self).__name__}: a head needs a class_logits method")

    def forward(self, ids: Any, token_types: Any = None, lengths: Any = None, attention_mask: Any = None) -> Any:
        return self.class_logits(self.features(ids, token_types, lengths, attention_mask))


class SequenceClassification(Head):
    """A head for texts: called with ids (B, T), the model returns logits (B, K) of the classes of each text."""

    def loss(
        self, ids: Any, classes: Any, token_types: Any = None, lengths: Any = None, attention_mask: Any = None
    ) -> Tensor:
        """The mean loss of the logits against the classes of the texts, by the configuration's `problem_type`.

        - "single_label_classification": cross-entropy, in nats; classes (B,), integers, -100 if unknown.
        - "regression": squared difference; classes (B,) or (B, K), numbers.
        - "multi_label_classification": binary cross-entropy of each class; classes (B, K), 1 if the text has it, or 0.

        None: regression if there is one logit, else single label for integers and multi label for other numbers.
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
    """The mean of log(1 + e^x) - x y over logits x and answers y of 1 or 0, without computing e^x of a large x."""
    positive, negative = ops.relu(logits), ops.relu(-logits)
    return (positive - logits * wanted + ops.log(ops.exp(-(positive + negative)) + 1)).mean()


class TokenClassification(Head):
    """A head for tokens: called with ids (B, T), the model returns logits (B, T, K) of the classes of each token."""

    def add_head(self, dropout: float) -> None:
        """Add the layers of the head."""
        self.drop_features = Dropout(dropout)
        self.classifier = Linear(self.config.channels, self.config.labels)

    def class_logits(self, features: Tensor) -> Tensor:
        return self.classifier(self.drop_features(features))

    def loss(
        self, ids: Any, labels: Any, token_types: Any = None, lengths: Any = None, attention_mask: Any = None
    ) -> Tensor:
        """Mean cross-entropy of the tokens with a label, in nats.

        Shapes: labels (B, T), classes from 0 on, and -100 for tokens without one.
        """
        logits = self(ids, token_types, lengths, attention_mask)
        return ops.cross_entropy(logits, array_of(labels, logits.data), ignore_index=UNKNOWN, overwrite=True, dim=-1)


class QuestionAnswering(Head):
    """A head for answers: called with ids (B, T), the model returns logits (B, T) of the start, and of the end."""

    def add_head(self, dropout: float = 0.0) -> None:
        """Add the layers of the head."""
        if self.config.labels != 2:
            raise InputError(
                f"{type(self).__name__}: labels is {self.config.labels}; give 2, for the start and the end of an answer"
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
        """The mean of the cross-entropies of the answer's start and end, in nats.

        Shapes: starts and ends (B,), positions; a position beyond the text does not count.
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
    """An argument as an array, on the device of `beside`."""
    return like(x.data if isinstance(x, Tensor) else as_array(x), beside)
