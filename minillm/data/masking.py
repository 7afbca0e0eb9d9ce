"""Hide some tokens of a batch, for a model that learns to predict them (BERT, RoBERTa).

Each token is chosen with probability 0.15. In its place the model sees, with these probabilities,

    0.8    the mask token
    0.1    a random token
    0.1    the token itself

and it has to predict the original token. The last two keep the model from attending to mask tokens only, which later
texts do not have. For tokens that were not chosen, the label is -100, which `cross_entropy` ignores.

Whole words: the tokens of a word are chosen together, because its other tokens would give a hidden one away; the
replacement of each is then drawn separately, as in the original code.

The choice comes from the project's random stream, afresh at each call: masking the same text again hides other tokens
(dynamic masking), and a run that is resumed where it stopped hides the same tokens.

Source: Devlin et al. 2018, section 3.1 and appendix A.1; whole words: the note of May 2019 in their code's README;
dynamic masking: Liu et al. 2019, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from minillm import random
from minillm.errors import InputError, ShapeError, check_index, check_shapes

IGNORED = -100  # the label of a token that was not chosen
MASKED, REPLACED = 0.8, 0.1  # probabilities of the mask token and of a random token


def mask_tokens(
    ids: Any,
    vocab_size: int,
    mask_id: int,
    special_ids: Iterable[int] = (),
    *,
    lengths: Any = None,
    continues: Any = None,
    probability: float = 0.15,
    generator: random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose tokens with `probability`, hide them, and return the model's input and the labels.

    Shapes: ids (B, T) of integers; results (B, T), int64: ids, and labels, -100 for tokens that were not chosen.
    special_ids: tokens that are never chosen and never replace another, such as [CLS], [SEP] and padding; the mask
        token is one of them without being named.
    lengths: (B,), the number of real tokens of each sequence, which come first; padding is never chosen.
    continues: (V,), boolean: true for tokens that continue the word of the token before, such as "##ing". If it is
        given, whole words are chosen. A word ends at a special token, and at the end of the row.
    generator: the random stream; `minillm.random.default`, which `manual_seed` restarts, where it is None.
    Raises: DtypeError and InputError for ids that are not in the vocabulary; ShapeError for shapes that do not match;
        InputError for a probability outside [0, 1], or if all tokens are special.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2:
        raise ShapeError(f"mask_tokens: ids have shape {ids.shape}; give (B, T), such as ids[None] for one sequence")
    check_index("mask_tokens", ids, vocab_size, "token id")
    special = np.array([mask_id, *special_ids])
    check_index("mask_tokens", special, vocab_size, "special id")
    if not 0 <= probability <= 1:
        raise InputError(f"mask_tokens: probability is {probability}; give a number from 0 to 1")
    is_ordinary = np.ones(vocab_size, bool)
    is_ordinary[special] = False
    ordinary = is_ordinary.nonzero()[0]
    if not len(ordinary):
        raise InputError(f"mask_tokens: all {vocab_size} tokens are special; leave ordinary tokens out of special_ids")

    may_hide = is_ordinary[ids]
    if lengths is not None:
        lengths = np.asarray(lengths)
        check_shapes("mask_tokens", ids=("B T", ids), lengths=("B", lengths))
        check_index("mask_tokens", lengths, ids.shape[1] + 1, "lengths")
        may_hide &= np.arange(ids.shape[1]) < lengths[:, None]
    draw = (generator or random.default).numpy()
    chance, fate = draw.random(ids.shape), draw.random(ids.shape)
    replacement = ordinary[draw.integers(len(ordinary), size=ids.shape)]
    if continues is not None:  # all tokens of a word share the draw of the first one
        chance = np.take_along_axis(chance, _word_starts(ids, may_hide, continues, vocab_size), axis=1)
    chosen = may_hide & (chance < probability)
    seen = np.select([~chosen, fate < MASKED, fate < MASKED + REPLACED], [ids, mask_id, replacement], ids)
    return seen.astype(np.int64), np.where(chosen, ids, IGNORED).astype(np.int64)


def _word_starts(ids: np.ndarray, may_hide: np.ndarray, continues: Any, vocab_size: int) -> np.ndarray:
    """The position (B, T) at which each token's word starts: its first token, or the special token before it."""
    continues = np.asarray(continues)
    if continues.shape != (vocab_size,) or continues.dtype != bool:
        raise ShapeError(
            f"mask_tokens: continues has shape {continues.shape} and dtype {continues.dtype}; "
            f"give ({vocab_size},) of bool, one for each token of the vocabulary"
        )
    goes_on = continues[ids] & may_hide
    return np.maximum.accumulate(np.where(goes_on, 0, np.arange(ids.shape[1])), axis=1)
