"""The special tokens of each family, and what several tasks of these families share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minillm import random
from minillm.device import to_host
from minillm.errors import InputError
from minillm.tokenizers import Tokenizer

BERT = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
ROBERTA = dict(bos_token="<s>", pad_token="<pad>", eos_token="</s>", mask_token="<mask>")
XLNET = dict(sep_token="<sep>", cls_token="<cls>")
# For each family the special tokens of a tokenizer that is trained here, by their roles, in the order of their ids.
SPECIAL_TOKENS = {"bert": BERT, "distilbert": BERT, "roberta": ROBERTA, "bart": ROBERTA, "xlnet": XLNET}
STEPS, EVALUATIONS = 1 << 62, 1 << 61  # where the random streams of batches begin, far from those of the weights
NUMBERS = 1 << 20  # places in its stream that a batch may use
WIDE = 768  # channels for which the first weights of the encoders are meant


def special_tokens(architecture: str) -> list[str]:
    """The special tokens of a tokenizer that is trained for a family."""
    return list(SPECIAL_TOKENS[architecture].values())


def named(tokenizer: Tokenizer, architecture: str) -> Tokenizer:
    """The tokenizer, whose special tokens know their roles from now on."""
    roles = SPECIAL_TOKENS[architecture].items()
    tokenizer.name_special_tokens(**{role: token for role, token in roles if token in tokenizer.special_tokens})
    return tokenizer


def special_ids(tokenizer: Tokenizer, architecture: str, roles: Sequence[str]) -> list[int]:
    """The ids of the special tokens with these roles.

    Raises: InputError for a tokenizer that has no such token.
    """
    known, ids = tokenizer.roles(), []
    for role in roles:
        token = known.get(role) or SPECIAL_TOKENS[architecture][role]
        if token not in tokenizer.special_tokens:
            raise InputError(
                f"train: the tokenizer has no token {token}, which {architecture} needs as its {role}; take one that "
                "is trained here (bpe, wordpiece or unigram), or that belongs to such a model"
            )
        ids.append(tokenizer.special_tokens[token])
    return ids


def stream(seed: int, begin: int, number: int) -> random.Generator:
    """The random stream of the batch with this number, of the steps or of the evaluations."""
    generator = random.Generator(seed)
    generator.counter = begin + number * NUMBERS
    return generator


def scale_matrices(model: Any) -> Any:
    """Enlarge the first matrices of a narrow encoder by sqrt(768 / C); returns the model.

    Its matrices start with a standard deviation of 0.02, whatever C is. The sum over C inputs, and with it the signal
    of each layer, is so small in a narrow model that it learns nothing for thousands of steps.
    """
    factor = math.sqrt(WIDE / model.config.channels)
    if factor > 1:
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data *= parameter.dtype.type(factor)
    return model


def with_ids(shape: Any, tokenizer: Tokenizer, architecture: str, **roles: str) -> Any:
    """A configuration whose fields have the ids of these roles, such as padding_id="pad_token"."""
    ids = special_ids(tokenizer, architecture, list(roles.values()))
    return dataclasses.replace(shape, vocab_size=tokenizer.vocab_size, **dict(zip(roles, ids, strict=True)))


def right(logits: Any, labels: Any) -> tuple[float, float]:
    """The number of labels (n,) that are the likeliest by the logits (n, K), and the number of all labels."""
    return float((to_host(logits.data).argmax(axis=1) == to_host(labels)).sum()), float(len(labels))


def filled(tokenizer: Tokenizer, ids: np.ndarray, guesses: dict[int, int], left_out: set[int]) -> tuple[str, str]:
    """A text with gaps, and the same text with the guesses of a model in them, for a preview.

    ids (T,): the text; guesses: the token for each position with a gap; left_out: ids that are not shown.
    """
    texts = []
    for gap in (lambda place: "[___]", lambda place: f"[{tokenizer.decode([guesses[place]]).strip()}]"):
        parts: list[str] = []
        run: list[int] = []
        for place, i in enumerate(ids.tolist()):
            if place in guesses:
                parts += [tokenizer.decode(run), gap(place)]
                run = []
            elif i not in left_out:
                run.append(i)
        between = "" if tokenizer.kind == "bpe" else " "  # whose tokens bring their spaces
        texts.append(between.join(filter(None, [*parts, tokenizer.decode(run)])))
    return f"{texts[0]}\n", texts[1]
