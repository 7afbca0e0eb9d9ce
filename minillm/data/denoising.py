"""Corrupt a text, for a model that learns to restore it (BART).

The model reads the text with the sentences in another order, and with spans of tokens hidden, each behind one mask
token; it has to write the original text. One mask does not tell how much is missing:

    text     A B C D . E F G .
    mixed    E F G . A B C D .
    seen     E _ . A B _ D .          one mask hides F G, and one hides C

Lengths of spans are drawn from a Poisson distribution with mean 3, until `probability` of the tokens are hidden (the
last span is cut to fit). A span of length 0 is a mask where nothing is missing. Spans do not overlap: with h tokens
hidden in k spans, and r = n - h left, every one of the (k + r)! / (k! r!) ways to place the spans between the tokens is
as likely as any other, and so is every order of the spans.

Everything is drawn from the project's random stream, afresh at each call.

Source: Lewis et al. 2019, section 2.2 (text infilling, sentence permutation); section 4: 30% of the tokens, all
sentences. There, non-empty spans may overlap, and then less is hidden.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from minillm import random
from minillm.errors import DtypeError, InputError, ShapeError

MEAN_LENGTH = 3.0  # of a span, in tokens


def denoising_pair(
    ids: Any,
    mask_id: int,
    sentence_ends: Iterable[int] = (),
    *,
    probability: float = 0.3,
    mean_length: float = MEAN_LENGTH,
    generator: random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Make a pair of a source, the text corrupted in both ways, and a target, the text itself.

    Shapes: ids (n,) of integers, without the tokens that begin and end a text; results (m,) and (n,), int64.
    sentence_ends: ids after which a sentence ends, such as that of a full stop; without any, no sentence moves.
    The other arguments and the errors are those of `infill`.
    """
    ids = _text("denoising_pair", ids)
    mixed = permute_sentences(ids, sentence_ends, generator=generator)
    seen = infill(mixed, mask_id, probability=probability, mean_length=mean_length, generator=generator)
    return seen, ids


def infill(
    ids: Any,
    mask_id: int,
    *,
    probability: float = 0.3,
    mean_length: float = MEAN_LENGTH,
    generator: random.Generator | None = None,
) -> np.ndarray:
    """Hide spans of a text, each behind one mask token.

    Shapes: ids (n,) of integers; result (m,), int64: n less the hidden tokens, and a mask for each span.
    probability: the share of tokens that are hidden. Of n tokens it is n probability, rounded up or down at random, so
        that the mean is exact for short texts too.
    mean_length: the mean number of tokens in a span as drawn, 0.5 or more.
    generator: the random stream; `minillm.random.default`, which `manual_seed` restarts, where it is None.
    Raises: ShapeError and DtypeError for ids that are not a row of integers; InputError for a probability
        outside [0, 1] or a mean below 0.5.
    """
    ids = _text("infill", ids)
    if not 0 <= probability <= 1:
        raise InputError(f"infill: probability is {probability}; give a number from 0 to 1")
    if not 0.5 <= mean_length < np.inf:
        raise InputError(f"infill: mean_length is {mean_length}; give 0.5 or more")
    draw = (generator or random.default).numpy()
    hidden = int(np.floor(len(ids) * probability + draw.random()))
    spans = span_lengths(min(hidden, len(ids)), mean_length, draw)
    left = len(ids) - int(spans.sum())
    is_span = np.zeros(left + len(spans), bool)  # the remaining tokens and the spans, in order
    is_span[draw.permutation(len(is_span))[: len(spans)]] = True
    widths = np.ones(len(is_span), np.int64)  # number of tokens of the text that each stands for
    widths[is_span] = spans
    seen = np.full(len(is_span), mask_id, np.int64)
    seen[~is_span] = ids[(np.cumsum(widths) - widths)[~is_span]]
    return seen


def span_lengths(hidden: int, mean_length: float, draw: np.random.Generator) -> np.ndarray:
    """Poisson lengths with the sum `hidden`, in random order, so that the cut one may be anywhere."""
    lengths: list[int] = []
    missing = hidden
    while missing > 0:
        lengths.append(min(int(draw.poisson(mean_length)), missing))
        missing -= lengths[-1]
    return draw.permutation(np.array(lengths, np.int64))


def permute_sentences(
    ids: Any, sentence_ends: Iterable[int], *, generator: random.Generator | None = None
) -> np.ndarray:
    """The sentences of a text in a random order, every order as likely as any other.

    A sentence ends after a token in `sentence_ends`, or after the last of several in a row, and at the end of the text.
    Shapes: ids (n,) of integers; result (n,), int64. Raises: ShapeError and DtypeError for other ids.
    """
    ids = _text("permute_sentences", ids)
    ends = np.isin(ids, np.array(list(sentence_ends), np.int64))
    last = ends & ~np.append(ends[1:], False)
    sentences = np.split(ids, np.flatnonzero(last[:-1]) + 1)
    order = (generator or random.default).numpy().permutation(len(sentences))
    return np.concatenate([sentences[i] for i in order])


def _text(function: str, ids: Any) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.ndim != 1:
        raise ShapeError(f"{function}: ids have shape {ids.shape}; give (n,), one text at a time")
    if len(ids) and ids.dtype.kind not in "iu":
        raise DtypeError(f"{function}: ids have dtype {ids.dtype}, expected integers; encode the text first")
    return ids.astype(np.int64)
