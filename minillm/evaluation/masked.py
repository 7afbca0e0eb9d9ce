"""Pseudo-perplexity: how well a model of hidden tokens, such as BERT, restores each token of a text.

    PLL = sum_i log p(x_i | all ids but x_i)         pseudo-perplexity = exp(-PLL / ids)

Each id is hidden once, with all others in sight, also those that follow. So PLL is not the log-probability of a text:
the factors do not multiply to a distribution over texts, and the number can be compared with that of no model of the
next token. It has no bits per byte for that reason.

A text is computed as often as it has ids. One that is longer than the model's context is cut into pieces that do not
overlap; each piece stands between the special tokens that the model expects around a text.

Source: Salazar et al. 2020, Masked Language Model Scoring (arXiv:1910.14659), equations 1 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import no_grad
from minillm.device import to_host
from minillm.errors import InputError
from minillm.evaluation.likelihood import BATCH_TOKENS, Progress
from minillm.grad_mode import quiet
from minillm.tokenizers import Tokenizer


def pseudo_likelihoods(
    model: Any,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """The log-probability of each id of each document, hidden alone.

    Args:
        model: with a head for hidden tokens, such as BertForMaskedLM.

    Shapes: one array (ids,) for each document.
    Units: nats.
    Raises: InputError for a document without ids, or a tokenizer without a mask token.
    """
    mask = mask_id(tokenizer)
    around = tokenizer.build_inputs_with_special_tokens([-1])  # -1 stands for the text
    place = around.index(-1)
    room = model.config.context - len(around) + 1
    pieces: list[tuple[int, list[int]]] = []
    for number, document in enumerate(documents):
        ids = tokenizer.encode(document)
        if not ids:
            raise InputError(f"perplexity: document {number} ({document!r:.40}) has no ids; leave it out")
        pieces += [(number, ids[start : start + room]) for start in range(0, len(ids), room)]
    found: list[list[np.ndarray]] = [[] for _ in documents]
    for done, (number, ids) in enumerate(pieces, 1):
        row = [*around[:place], *ids, *around[place + 1 :]]
        found[number].append(_hidden_one_by_one(model, row, range(place, place + len(ids)), mask, batch_tokens))
        if progress is not None:
            progress(done, len(pieces))
    return list(map(np.concatenate, found))


def mask_id(tokenizer: Tokenizer) -> int:
    """The id of the token that hides another. Raises: InputError for a tokenizer without one."""
    name = tokenizer.names.get("mask_token") or tokenizer.NAMES.get("mask_token", "<mask>")
    if name not in tokenizer.special_tokens:
        raise InputError(
            f"perplexity: the tokenizer has no mask token ({name}), so no token can be hidden; give the tokenizer that "
            "the model was trained with"
        )
    return tokenizer.special_tokens[name]


def _hidden_one_by_one(model: Any, row: list[int], places: range, mask: int, batch_tokens: int) -> np.ndarray:
    """The log-probabilities of the ids at these places, each hidden alone."""
    found: list[np.ndarray] = []
    step = max(1, batch_tokens // len(row))
    with no_grad(), quiet():
        for start in range(0, len(places), step):
            hidden = np.array(places[start : start + step])  # (B,)
            ids = np.array([row] * len(hidden))  # (B, T)
            targets = ids[np.arange(len(hidden)), hidden]
            ids[np.arange(len(hidden)), hidden] = mask
            features = model.features(ids)  # (B, T, C)
            at = features.reshape(-1, features.shape[-1]).index_select(0, np.arange(len(hidden)) * len(row) + hidden)
            logits = model.head(at, model.wte.weight)  # (B, V)
            found.append(-to_host(ops.cross_entropy(logits, targets, reduction="none", dim=-1).data).astype(float))
    if not np.isfinite(nats := np.concatenate(found)).all():
        raise InputError("perplexity: a log-probability is not a number; look at the model's weights")
    return nats
