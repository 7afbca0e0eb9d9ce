"""Hide some tokens of a batch, for a model that learns to say what they were (BERT, RoBERTa).

Each token is chosen with probability 0.15. What the model sees in its place is, with the probabilities

    0.8    the mask token
    0.1    a random token
    0.1    the token itself

and what it has to say is the token. The last two keep it from caring about mask tokens only, which no later text has.
Where nothing was chosen, the label is -100, which `cross_entropy` does not count.

Whole words: a word of several tokens is chosen as one, or the rest of it would give the hidden part away; each of its
tokens then meets one of the three fates on its own, as in the original code.

What is hidden is drawn from the project's random stream, anew at each call: masking the same text again hides other
tokens (dynamic masking), and a run that is resumed where it stopped hides the same.

Source: Devlin et al. 2018, section 3.1 and appendix A.1; whole words: the note of May 2019 in their code's README;
dynamic masking: Liu et al. 2019, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from minillm import random
from minillm.errors import InputError, ShapeError, check_index, check_shapes

IGNORED = -100  # the label where nothing was chosen
MASKED, REPLACED = 0.8, 0.1  # probabilities of the first two fates


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
    """Choose tokens with `probability`, hide them, and return what the model sees, and what it has to say.

    Shapes: ids (B, T) of integers; results (B, T), int64: ids, and labels that are -100 where nothing was chosen.
    special_ids: tokens that are never chosen, nor put in a token's place, such as [CLS], [SEP] and padding; the mask
        token is one of them without being named.
    lengths: (B,), of each sequence the number of real tokens, which come first; the others are never chosen.
    continues: (V,), boolean: whether a token continues the word of the token before it, such as "##ing". Given this,
        whole words are chosen. A word ends at a special token, and at the end of the row.
    generator: the random stream; `minillm.random.default`, which `manual_seed` restarts, where it is None.
    Raises: DtypeError and InputError for ids that are not in the vocabulary; ShapeError for shapes that do not fit;
        InputError for a probability outside [0, 1], or where no token is left that is not special.
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
        raise InputError(f"mask_tokens: all {vocab_size} tokens are special; leave out those that are text")

    may_hide = is_ordinary[ids]
    if lengths is not None:
        lengths = np.asarray(lengths)
        check_shapes("mask_tokens", ids=("B T", ids), lengths=("B", lengths))
        check_index("mask_tokens", lengths, ids.shape[1] + 1, "lengths")
        may_hide &= np.arange(ids.shape[1]) < lengths[:, None]
    draw = (generator or random.default).numpy()
    chance, fate = draw.random(ids.shape), draw.random(ids.shape)
    replacement = ordinary[draw.integers(len(ordinary), size=ids.shape)]
    if continues is not None:  # all tokens of a word share the chance of its first
        chance = np.take_along_axis(chance, _word_starts(ids, may_hide, continues, vocab_size), axis=1)
    chosen = may_hide & (chance < probability)
    seen = np.select([~chosen, fate < MASKED, fate < MASKED + REPLACED], [ids, mask_id, replacement], ids)
    return seen.astype(np.int64), np.where(chosen, ids, IGNORED).astype(np.int64)


def _word_starts(ids: np.ndarray, may_hide: np.ndarray, continues: Any, vocab_size: int) -> np.ndarray:
    """For each token, the position (B, T) where its word starts: at its first token, or a special one before it."""
    continues = np.asarray(continues)
    if continues.shape != (vocab_size,) or continues.dtype != bool:
        raise ShapeError(
            f"mask_tokens: continues has shape {continues.shape} and dtype {continues.dtype}; "
            f"give ({vocab_size},) of bool, one for each token of the vocabulary"
        )
    goes_on = continues[ids] & may_hide
    return np.maximum.accumulate(np.where(goes_on, 0, np.arange(ids.shape[1])), axis=1)
