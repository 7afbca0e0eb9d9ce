"""Draw an order in which the tokens of a batch are read, for a model that predicts each from those before it (XLNet).

Of a text only some tokens are predicted, one in six, and they are the last ones in the order: the others, the context,
are seen by all and see each other, but none of those that are predicted. So what is left to draw is which tokens are
predicted, and in which order.

Which: spans. As long as there is text, a length L from 1 to 5 is drawn, and a place for L tokens in a row within the
next 6 L. Near the end L is drawn from those that fit, and where fewer than 6 tokens are left, one of them is predicted
with a probability of a sixth for each. So every span is whole, and the share is one in six for a text of any length.

In which order: one for each text, drawn evenly. Special tokens, such as [SEP] and [CLS], are not predicted, but have
their place in the order as those that are: they see what comes before, and are seen by what comes after. (Were they
seen by all, as context is, a token could be read from what a special token has seen of it, two blocks later.)

Memory: the first `reuse_len` tokens of a text may be left to the next one, which starts where they end, as memory. They
must not have seen what the next text is to predict. So they see none of the rest; the rest sees all of them.

What the model reads is the text itself. That no token sees what it is to predict is all in `perm_mask`.

Source: Yang et al. 2019, sections 2.3 and 2.6, with K = 6 and spans as the text says. Order, special tokens and
memory are those of Yang et al.'s code (`_local_perm`); its spans (`_sample_mask`) are others: whole words, lengths in
proportion to 1/L, a window that the span lengthens, and single tokens to fill up to a fixed number. transformers'
collator (`DataCollatorForPermutationLanguageModeling`) draws spans as here, but cuts those that cross the end of the
text, puts mask tokens into it, so that no predicted token knows another, and lets all tokens see the special ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from minillm import random
from minillm.errors import DtypeError, InputError, ShapeError, check_index, check_shapes

IGNORED = -100  # the label where nothing is predicted


class PermutedTokens(NamedTuple):
    """What the loss of an XLNetLMHeadModel takes: `model.loss(**batch._asdict())`."""

    ids: np.ndarray  # (B, T), int64, as they were
    labels: np.ndarray  # (B, P), int64: what is to be predicted, from left to right, then -100; P fits all texts
    perm_mask: np.ndarray  # (B, T, T), bool: whether the token of the second axis may not see that of the third
    target_mapping: np.ndarray  # (B, P, T), bool: where what is to be predicted stands


def permute_tokens(
    ids: Any,
    special_ids: Iterable[int] = (),
    *,
    lengths: Any = None,
    one_in: int = 6,
    max_span: int = 5,
    reuse_len: int | None = None,
    generator: random.Generator | None = None,
) -> PermutedTokens:
    """Choose spans of tokens to predict, one token in `one_in`, and draw the order in which they are predicted.

    Shapes: ids (B, T) of integers.
    special_ids: tokens that are never predicted, such as [CLS] and [SEP]; a span goes on behind them.
    lengths: (B,), of each text the number of real tokens, which come first; the others are never predicted nor seen.
    max_span: the most tokens in a span.
    reuse_len: the number of tokens, from the first on, that the next text has as memory; it is the model's setting.
    generator: the random stream; `minillm.random.default`, which `manual_seed` restarts, where it is None.
    For a model with bi_data, give it a batch of which half is written backwards: `np.concatenate([ids, ids[:, ::-1]])`.
    Raises: DtypeError for ids that are not integers; ShapeError for shapes that do not fit; InputError for a length
        outside 0 to T, or one_in, max_span or reuse_len below 1.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2:
        raise ShapeError(f"permute_tokens: ids have shape {ids.shape}; give (B, T), such as ids[None] for one sequence")
    if ids.dtype.kind not in "iu":
        raise DtypeError(f"permute_tokens: ids have dtype {ids.dtype}; give integers")
    for name, value in (("one_in", one_in), ("max_span", max_span), ("reuse_len", reuse_len)):
        if value is not None and value < 1:
            raise InputError(f"permute_tokens: {name} is {value}; give 1 or more")
    B, T = ids.shape
    real = np.ones((B, T), bool)
    if lengths is not None:
        lengths = np.asarray(lengths)
        check_shapes("permute_tokens", ids=("B T", ids), lengths=("B", lengths))
        check_index("permute_tokens", lengths, T + 1, "lengths")
        real = np.arange(T) < lengths[:, None]
    draw = (generator or random.default).numpy()
    special = np.isin(ids, list(special_ids)) & real
    target = np.zeros((B, T), bool)
    for b, length in enumerate(real.sum(1)):
        _choose_spans(target[b, :length], one_in, max_span, draw)
    target &= ~special

    # The place of each token in the order, from 0 on in the part that is memory for the next text, and from T + 1 on in
    # the rest; the context of each part shares the place before.
    ordered = target | special
    is_later = np.arange(T) >= (T if reuse_len is None else reuse_len)
    order = np.where(ordered, draw.permuted(np.tile(np.arange(T), (B, 1)), axis=1), -1) + (T + 1) * is_later
    perm_mask = ordered[:, None] & (order[:, :, None] <= order[:, None])
    perm_mask |= (is_later > is_later[:, None]) | ~real[:, None]

    P = max(1, target.sum(1).max(initial=0))
    labels, target_mapping = np.full((B, P), IGNORED, np.int64), np.zeros((B, P, T), bool)
    rows, places = target.nonzero()
    numbers = (target.cumsum(1) - 1)[rows, places]  # of each target among those of its text
    labels[rows, numbers] = ids[rows, places]
    target_mapping[rows, numbers, places] = True
    return PermutedTokens(ids.astype(np.int64), labels, perm_mask, target_mapping)


def _choose_spans(chosen: np.ndarray, one_in: int, max_span: int, draw: np.random.Generator) -> None:
    """Mark spans in a row of False, one token in `one_in`."""
    start, left = 0, len(chosen)
    while left >= one_in:
        length = int(draw.integers(1, min(max_span, left // one_in) + 1))
        place = start + draw.integers(length * one_in - length + 1)
        chosen[place : place + length] = True
        start, left = start + length * one_in, left - length * one_in
    if left and draw.random() < left / one_in:
        chosen[start + draw.integers(left)] = True
