"""Heads that classify texts or tokens, or find an answer in a text, on the features of any encoder.

A pretrained encoder gives each token a vector (B, T, C). A head is a layer or two from there to the logits of a few
classes, and is trained together with the encoder (Devlin et al. 2018, section 4):

- texts: the vector of the first token gives logits (B, K) of K classes, or one number; in a decoder that of the last
  token, which alone has seen the whole text. A reward model is a decoder with such a head and one number, the reward;
- tokens: the vector of each token gives logits (B, T, K), of names of people and places, for example;
- answers: the vector of each token gives two logits, that an answer starts there, and that it ends there, (B, T) each.

A class in an encoder's file has one of these heads and the encoder as bases, and defines `class_logits`. `with_head`
gives a pretrained encoder a new head.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import Tensor
from minillm.backend import Array, as_array
from minillm.device import device_of, is_on_gpu, like
from minillm.errors import InputError, check_shapes, did_you_mean
from minillm.models.labels import KEYS_OF_HEAD, PROBLEMS
from minillm.nn import Dropout, Linear, Module
from minillm.pretrained import HEADS, SavedWith, keep
from minillm.weights import general_name

UNKNOWN = -100  # label of a token or text that does not count


class Head(Module):
    """Base of all heads; the other base is an encoder, with `features` (B, T, C) of ids."""

    config: Any
    features: Any
    _init_weights: Any

    def token_vectors(self, ids: Any, token_types: Any, lengths: Any, attention_mask: Any) -> Tensor:
        """The features (B, T, C) of the encoder."""
        return self.features(ids, token_types=token_types, lengths=lengths, attention_mask=attention_mask)

    def class_logits(self, features: Tensor) -> Any:
        """The logits of the head from features (B, T, C)."""
        raise TypeError(f"{type(self).__name__}: a head needs a class_logits method")

    def forward(self, ids: Any, token_types: Any = None, lengths: Any = None, attention_mask: Any = None) -> Any:
        return self.class_logits(self.token_vectors(ids, token_types, lengths, attention_mask))


class SequenceClassification(Head):
    """A head for texts: called with ids (B, T), the model returns logits (B, K) of the classes of each text."""

    def loss(
        self,
        ids: Any,
        classes: Any,
        token_types: Any = None,
        lengths: Any = None,
        attention_mask: Any = None,
        reduction: str = "mean",
    ) -> Tensor:
        """The loss of the logits against the classes of the texts, by the configuration's `problem_type`.

        - "single_label_classification": cross-entropy, in nats; classes (B,), integers, -100 if unknown.
        - "regression": squared difference; classes (B,) or (B, K), numbers.
        - "multi_label_classification": binary cross-entropy of each class; classes (B, K), 1 if the text has it, or 0.

        None: regression if there is one logit, else single label for integers and multi label for other numbers.
        reduction: "mean" or "sum", over the texts, or over all numbers and answers.
        """
        logits = self(ids, token_types, lengths, attention_mask)
        given = array_of(classes, logits.data)
        problem, count = self.config.problem_type, logits.shape[-1]
        if problem is None:
            by_dtype = PROBLEMS[1] if given.dtype.kind in "iu" else PROBLEMS[2]
            problem = PROBLEMS[0] if count == 1 else by_dtype
        if problem == "single_label_classification":
            check_shapes("loss", logits=("B K", logits), classes=("B", given))
            return ops.cross_entropy(logits, given, reduction=reduction, overwrite=True)
        if given.ndim == 1 and count == 1:
            given = given[:, None]
        check_shapes("loss", logits=("B K", logits), classes=("B K", given))
        wanted = Tensor(given.astype(logits.dtype))
        if problem == "regression":
            return reduced((logits - wanted) ** 2, reduction)
        return reduced(binary_cross_entropy(logits, wanted), reduction)


class LastTokenClassification(SequenceClassification):
    """A head for texts on a decoder: the vector of a text's last token gives the logits (B, K)."""

    def __init__(self, config: Any):
        super().__init__(replace(config, tied=True))  # type: ignore[call-arg]  # there is no output layer
        self.config = config
        self.score = Linear(config.channels, config.labels, bias=False)
        self.assign_names()
        self._init_weights()

    def forward(self, ids: Any, token_types: Any = None, lengths: Any = None, attention_mask: Any = None) -> Tensor:
        """Logits (B, K) of texts, ids (B, T), with padding on the right, which a decoder's earlier tokens do not see.

        lengths: (B,), the number of tokens of each text. Without them a text ends, as in transformers, at its last id
        that is not the configuration's `padding_id`, or at T if there is none.
        """
        if token_types is not None or attention_mask is not None:
            raise InputError(f"{type(self).__name__}: a decoder has no token_types and no attention_mask; give lengths")
        features = self.features(ids)  # (B, T, C)
        return self.score(vectors_at(features, self._last_places(array_of(ids, features.data), lengths)))

    def _last_places(self, ids: Array, lengths: Any) -> Array:
        """The place of each text's last token, (B,)."""
        B, T = ids.shape
        if lengths is not None:
            lengths = array_of(lengths, ids)
            check_shapes("forward", ids=("B T", ids), lengths=("B", lengths))
            if not is_on_gpu(lengths) and ((lengths < 1) | (lengths > T)).any():  # a GPU would be waited for
                raise InputError(
                    f"{type(self).__name__}: lengths are {lengths}; give 1 to {T}, the tokens of each text"
                )
            return lengths - 1
        if self.config.padding_id is None:
            return np.full_like(ids, T - 1, shape=B)
        return np.where(ids != self.config.padding_id, np.arange(T, like=ids), 0).max(1)


def binary_cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """log(1 + e^x) - x y for logits x and answers y of 1 or 0, without computing e^x of a large x."""
    both = ops.stack([ops.zeros_like(logits), logits], -1)  # log(e^0 + e^x)
    return ops.logsumexp(both, -1) - logits * wanted


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """The mean or the sum of losses."""
    if reduction not in ("mean", "sum"):
        raise InputError(f"loss: reduction is {reduction!r}{did_you_mean(reduction, ('mean', 'sum'))}")
    return losses.mean() if reduction == "mean" else losses.sum()


class TokenClassification(Head):
    """A head for tokens: called with ids (B, T), the model returns logits (B, T, K) of the classes of each token."""

    def add_head(self, dropout: float) -> None:
        """Add the layers of the head."""
        self.drop_features = Dropout(dropout)
        self.classifier = Linear(self.config.channels, self.config.labels)

    def class_logits(self, features: Tensor) -> Tensor:
        return self.classifier(self.drop_features(features))

    def loss(
        self,
        ids: Any,
        labels: Any,
        token_types: Any = None,
        lengths: Any = None,
        attention_mask: Any = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Cross-entropy of the tokens with a label, in nats: their mean, or their sum.

        Shapes: labels (B, T), classes from 0 on, and -100 for tokens without one.
        """
        logits = self(ids, token_types, lengths, attention_mask)
        labels = array_of(labels, logits.data)
        return ops.cross_entropy(logits, labels, reduction=reduction, ignore_index=UNKNOWN, overwrite=True, dim=-1)


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
        reduction: str = "mean",
    ) -> Tensor:
        """The cross-entropies of the answers' starts and ends, in nats: the mean of the two means, or the sum of all.

        Shapes: starts and ends (B,), positions; a position beyond the text does not count. With `lengths`, padding is
            no possible answer, so that it changes nothing; without, all T tokens are, as in transformers.
        """
        logits = self(ids, token_types, lengths, attention_mask)
        losses = []
        for one, place in zip(logits, (starts, ends), strict=True):
            given = array_of(place, one.data)
            check_shapes("loss", logits=("B T", one), positions=("B", given))
            if given.dtype.kind not in "iu":
                raise InputError(f"loss: positions have dtype {given.dtype}; give whole numbers")
            length = one.shape[1]
            given = np.clip(given, 0, length)
            if lengths is not None:
                real = array_of(lengths, one.data)
                given = np.where(given < real, given, length)
                one = ops.where(np.arange(length, like=real) < real[:, None], one, -np.inf)  # (B, T)
            losses.append(ops.cross_entropy(one, given, reduction=reduction, ignore_index=length))
        return losses[0] + losses[1] if reduction == "sum" else (losses[0] + losses[1]) * 0.5


def array_of(x: Any, beside: Array) -> Array:
    """An argument as an array, on the device of `beside`."""
    return like(x.data if isinstance(x, Tensor) else as_array(x), beside)


def vectors_at(features: Tensor, places: Array) -> Tensor:
    """The vector of each text, (B, C), from features (B, T, C), at these places (B,)."""
    B, T, C = features.shape
    return features.reshape(B * T, C).index_select(0, np.arange(B, like=places) * T + places)


# A pretrained encoder gets a head


def with_head(model: Any, head: str, labels: int | Sequence[str] = 2, problem_type: str | None = None) -> Any:
    """A model with the body of `model` and a new head, whose first weights are drawn; `model` stays as it is.

    head: "ForSequenceClassification", "ForTokenClassification" or "ForQuestionAnswering".
    labels: the number of classes, or their names, which config.json keeps; problem_type: as in the configuration.
    What `model` lacks of the body is drawn too, such as BERT's pooler if it has learnt from hidden tokens alone.

    >>> with_head(minillm.load("my-bert"), "ForSequenceClassification", labels=("negative", "positive"))

    Raises: InputError for a model without such a head, and for an unknown head.
    """
    if head not in HEADS:
        raise InputError(f"with_head: there is no head {head!r}{did_you_mean(head, HEADS)}")
    module = sys.modules[type(model).__module__]
    found = [kind for kind in vars(module).values() if isinstance(kind, type) and head in kind.__name__]
    if not found:
        raise InputError(
            f"with_head: {type(model).__name__} has no {head} here; give a BERT, RoBERTa, DistilBERT, XLNet or BART; a "
            "GPT-2 or Llama has a head for texts alone"
        )
    names = () if isinstance(labels, int) else tuple(labels)
    count = labels if isinstance(labels, int) else len(names)
    config = replace(model.config, labels=count, label_names=names, problem_type=problem_type)
    made, first = found[0](config), model.parameters()[0]
    made.to(device_of(first.data), first.dtype)
    take_body(made, model)
    return made.train(model.training)


def take_body(model: Any, other: Any) -> list[str]:
    """Copy the body of `other` into `model`, of the same family, with what its files say beside the head.

    Returns the names of the parameters that stay as they are: those of the head, and of the body if `other` lacks them.
    """
    module, weights, left = sys.modules[type(model).__module__], other.state_dict(), []
    for name, parameter in model.named_parameters():
        if is_of_body(module, name) and name in weights:
            parameter.data[...] = like(weights[name], parameter.data)
        else:
            left.append(name)
    said = vars(other).get("saved_with")
    if said:
        keep(model, SavedWith({key: value for key, value in said.config.items() if key not in KEYS_OF_HEAD}, {}))
    return left


def is_of_body(module: Any, name: str) -> bool:
    """True for the name of a parameter that every model of this file has, whatever its head."""
    theirs = module.HUGGING_FACE[general_name(name)]
    return (theirs if isinstance(theirs, str) else theirs[0]).startswith(module.PREFIX)
