"""Pairs of texts for BERT's second task, next-sentence prediction.

Documents are lists of sentences, sentences lists of token ids. Sentences of a document are taken in order until they
fill a sequence; a random number of them, from the start, form text A. Text B is, with equal probability,

    the other sentences       0, it follows
    from another document     1, it does not; the other sentences are then put back, and are the next to be taken

and a sequence is [CLS] A [SEP] B [SEP], with token type 0 up to the first [SEP], and 1 after it. If both together are
too long, the longer one loses tokens at its front or its end. One sequence in ten is made shorter, so that the model
meets short ones too.

Source: Devlin et al. 2018, appendix A.2, and `create_instances_from_document` of their code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from minillm import random
from minillm.errors import InputError

SHORT = 0.1  # share of sequences that are made shorter than `length`


class SentencePair(NamedTuple):
    """A sequence for BERT, with the label of next-sentence prediction."""

    ids: list[int]  # [CLS] A [SEP] B [SEP]
    token_types: list[int]  # 0 up to the first [SEP], then 1
    next_sentence: int  # 0 where B follows A, 1 where it does not


def sentence_pairs(
    documents: Sequence[Sequence[Sequence[int]]],
    length: int,
    cls_id: int,
    sep_id: int,
    *,
    generator: random.Generator | None = None,
) -> Iterator[SentencePair]:
    """Pass once over the documents, in order, and yield sequences of at most `length` tokens.

    generator: the random stream; `minillm.random.default`, which `manual_seed` restarts, where it is None.
    Raises: InputError for fewer than two documents, an empty sentence or document, or a length below 5, which has no
    room for a token of each text.
    """
    if length < 5:
        raise InputError(f"sentence_pairs: length is {length}; give 5 or more: [CLS], [SEP] twice, and a token of each")
    if len(documents) < 2:
        raise InputError(
            f"sentence_pairs: there are {len(documents)} documents; give two or more, so that another can be drawn"
        )
    for number, document in enumerate(documents):
        if not document or not all(len(sentence) for sentence in document):
            raise InputError(f"sentence_pairs: document {number} is empty, or has an empty sentence; leave it out")
    draw = (generator or random.default).numpy()
    for number, document in enumerate(documents):
        place = 0
        while place < len(document):
            wanted = length - 3
            if draw.random() < SHORT:
                wanted = int(draw.integers(2, wanted + 1))
            end, size = place, 0
            while end < len(document) and size < wanted:
                size += len(document[end])
                end += 1
            middle = place + 1 if end - place < 2 else int(draw.integers(place + 1, end))
            a = _joined(document[place:middle])
            if end - place == 1 or draw.random() < 0.5:  # no sentence of the document is left for text B
                b, follows, place = _from_another(documents, number, wanted - len(a), draw), False, middle
            else:
                b, follows, place = _joined(document[middle:end]), True, end
            _shorten(a, b, length - 3, draw)
            ids = [cls_id, *a, sep_id, *b, sep_id]
            yield SentencePair(ids, [0] * (len(a) + 2) + [1] * (len(b) + 1), int(not follows))


def _joined(sentences: Sequence[Sequence[int]]) -> list[int]:
    return [int(i) for sentence in sentences for i in sentence]


def _from_another(documents: Sequence[Sequence[Sequence[int]]], own: int, wanted: int, draw: np.random.Generator):
    """Sentences of another document, from a random one on, until there are enough tokens; at least one sentence."""
    other = int(draw.integers(len(documents) - 1))
    document = documents[other + (other >= own)]
    tokens: list[int] = []
    for sentence in document[int(draw.integers(len(document))) :]:
        tokens += (int(i) for i in sentence)
        if len(tokens) >= wanted:
            break
    return tokens


def _shorten(a: list[int], b: list[int], room: int, draw: np.random.Generator) -> None:
    """Take single tokens off the longer text, off its front or its end, until both fit."""
    while len(a) + len(b) > room:
        del (a if len(a) > len(b) else b)[0 if draw.random() < 0.5 else -1]
