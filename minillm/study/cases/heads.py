"""Gradient-check rows of the heads for texts, tokens and answers (minillm/models/heads.py) of every family.

A head is checked with its loss: the arrays are the features that an encoder would give, and the weights of the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import Tensor
from minillm.device import like
from minillm.models import bart, bert, distilbert, roberta, xlnet
from minillm.models.heads import binary_cross_entropy, is_of_body, vectors_at
from minillm.pretrained import HEADS
from minillm.study.cases.recipes import Case, in_views, normal

B, T = 3, 5
IDS = np.array([[3, 7, 2, 1, 1], [9, 4, 5, 8, 2], [6, 2, 1, 1, 1]])  # with BART's end token, 2, at the end of each text
LENGTHS = np.array([3, 5, 2])
FILES = {"Bert": bert, "Roberta": roberta, "DistilBert": distilbert, "XLNet": xlnet, "Bart": bart}
POOLER = ("pooler.weight", "pooler.bias")  # of BERT's body, and a part of its head for texts
TARGETS: dict[str, tuple[np.ndarray, ...]] = {
    HEADS[0]: (np.array([1, 0, -100]),),
    HEADS[1]: (np.where(np.arange(T) < LENGTHS[:, None], IDS % 2, -100),),
    HEADS[2]: (np.array([0, 3, 4]), np.array([2, 4, 9])),  # two positions beyond the text, which do not count
}


def _head(name: str, head: str) -> Iterator[Case]:
    """The loss of one head of a family, with respect to the features and to the weights of the head."""
    file = FILES[name]
    kind = next((kind for key, kind in vars(file).items() if key.startswith(f"{name}{head}")), None)
    if kind is None:  # BART has no head for tokens
        return
    config = replace(file.PRESETS["nano"], labels=2, channels=4, **_no_dropout(file))
    config = replace(config, **{key: 2 for key in vars(config) if key.endswith("heads")})
    model = kind(config)
    own = {key: x for key, x in model.named_parameters() if not is_of_body(file, key)}
    own |= {key: x for key, x in model.named_parameters() if key in POOLER and head == HEADS[0]}

    def loss(features: Any, *weights: Any) -> Any:
        vars(model)["token_vectors"] = lambda *_: features
        for key, weight in zip(own, weights, strict=True):
            layer, _, part = key.partition(".")
            vars(getattr(model, layer))[part] = weight  # of the model that was made here
        if head == HEADS[2]:
            return model.loss(IDS, *TARGETS[head], lengths=LENGTHS)
        logits = model(IDS, lengths=LENGTHS)
        return ops.cross_entropy(logits, TARGETS[head][0], dim=-1)  # model.loss writes into the logits, once only

    make = normal((B, T, 4), *(x.shape for x in own.values()))
    yield Case(f"{name}{head}", "features and weights", loss, make)
    yield from in_views(f"{name}{head}", loss, make)


def _no_dropout(file: Any) -> dict[str, float]:
    names = vars(file.PRESETS["nano"])
    return {key: 0.0 for key in names if key.endswith("dropout")}


def _parts() -> Iterator[Case]:
    places = np.array([2, 0, 4])
    answers = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])

    def at_places(x: Any) -> Any:
        return vectors_at(x, places)

    def several_classes(x: Any) -> Any:
        return binary_cross_entropy(x, Tensor(like(answers.astype(x.dtype), x.data)))

    for fn, shape in ((at_places, (3, 5, 4)), (several_classes, (3, 4))):
        op = "vectors_at" if fn is at_places else "binary_cross_entropy"
        yield Case(op, "plain", fn, normal(shape))
        yield from in_views(op, fn, normal(shape))


CASES: tuple[Case, ...] = (*_parts(), *(case for name in FILES for head in HEADS for case in _head(name, head)))
