"""Draw an order of a batch's tokens, for a model that predicts each from those before it (XLNet).

Only one token in six is predicted, and these tokens are the last in the order: the others, the context, are seen by all
and see each other, but see no predicted token. So it remains to draw the predicted tokens, and their order.

Tokens: they form spans. As long as there is text, a length L from 1 to 5 is drawn, and a place for L tokens in a row
within the next 6 L. Near the end L is drawn from the lengths that fit, and if fewer than 6 tokens are left, one of them
is predicted, each with probability 1/6. So every span is whole, and the share is one in six for a text of any length.

Order: a uniformly random one for each text. Special tokens, such as [SEP] and [CLS], are not predicted, but have a
place among the predicted tokens: they see the tokens before, and are seen by the tokens after. (If all tokens saw them,
like context, a token could see itself two blocks later, through a special token that has seen it.)

Memory: the first `reuse_len` tokens of a text may serve as memory for the next one, which starts where they end. They
must not have seen what the next text has to predict. So they see none of the rest; the rest sees all of them.

The model reads the text itself. `perm_mask` alone keeps each token from seeing what it has to predict.

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

IGNORED = -100  # the padding of labels


class PermutedTokens(NamedTuple):
    """The inputs of an XLNetLMHeadModel's loss: `model.loss(**batch._asdict())`."""

    ids: np.ndarray  # (B, T), int64, unchanged
    labels: np.ndarray  # (B, P), int64: the predicted tokens, from left to right, then -100
    perm_mask: np.ndarray  # (B, T, T), bool: true if the token of axis 1 must not see that of axis 2
    target_mapping: np.ndarray  # (B, P, T), bool: true at the position of each predicted token


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
    special_ids: tokens that are never predicted, such as [CLS] and [SEP]; a span continues after them.
    lengths: (B,), the number of real tokens of each text, which come first; padding is never predicted or seen.
    max_span: the maximum number of tokens in a span.
    reuse_len: the number of first tokens that serve the next text as memory; a setting of the model.
    generator: the random stream; `minillm.random.default`, which `manual_seed` restarts, where it is None.
    For a model with bi_data, give a batch whose second half is reversed: `np.concatenate([ids, ids[:, ::-1]])`.
    Raises: DtypeError for ids that are not integers; ShapeError for shapes that do not match; InputError for a length
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

    # The place of each token in the order: from 0 on in the part that is memory for the next text, from T + 1 on in the
    # rest; the context of each part shares the place just before.
    ordered = target | special
    is_later = np.arange(T) >= (T if reuse_len is None else reuse_len)
    order = np.where(ordered, draw.permuted(np.tile(np.arange(T), (B, 1)), axis=1), -1) + (T + 1) * is_later
    perm_mask = ordered[:, None] & (order[:, :, None] <= order[:, None])
    perm_mask |= (is_later > is_later[:, None]) | ~real[:, None]

    P = max(1, target.sum(1).max(initial=0))
    labels, target_mapping = np.full((B, P), IGNORED, np.int64), np.zeros((B, P, T), bool)
    rows, places = target.nonzero()
    numbers = (target.cumsum(1) - 1)[rows, places]  # index of each target within its text
    labels[rows, numbers] = ids[rows, places]
    target_mapping[rows, numbers, places] = True
    return PermutedTokens(ids.astype(np.int64), labels, perm_mask, target_mapping)


def _choose_spans(chosen: np.ndarray, one_in: int, max_span: int, draw: np.random.Generator) -> None:
    """Mark spans in a row of False, on average one token in `one_in`."""
    start, left = 0, len(chosen)
    while left >= one_in:
        length = int(draw.integers(1, min(max_span, left // one_in) + 1))
        place = start + draw.integers(length * one_in - length + 1)
        chosen[place : place + length] = True
        start, left = start + length * one_in, left - length * one_in
    if left and draw.random() < left / one_in:
        chosen[start + draw.integers(left)] = True
