"""The claim about the KV cache: token by token, the logits are those of the whole text at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.autograd import no_grad
from minillm.backend import Array
from minillm.models.heads import Head
from minillm.nn import Decoder
from minillm.parallel.objective import Batch
from minillm.study.ledger.claim import DoesNotApply, Measured
from minillm.study.ledger.rounding import Outcome, bound_of, compared, kept, sensitivity_of
from minillm.study.ledger.subject import Subject


def decoder_of(model: Any, batch: Batch) -> tuple[Any, Array] | None:
    """The part of a model that predicts the next token, and ids for it; None for a model that does not."""
    if isinstance(model, Decoder) and not isinstance(model, Head):
        return model, batch["ids"]
    if hasattr(model, "conditioned"):
        return model.conditioned(batch["source"], batch.get("source_lengths")), batch["target"].clip(0)
    return None


def cached_is_whole(subject: Subject) -> Measured:
    """Logits of each next token, with a cache and without: for texts of one length, and for aligned ones.

    With the cache, a first piece of the text comes at once, and then token by token. Texts of different lengths end
    together, behind padding that no token sees.
    """
    model = subject.model().eval()
    if decoder_of(model, subject.batch) is None:
        raise DoesNotApply(f"this {type(model).__name__} does not generate text token by token")
    ids = decoder_of(model, subject.batch)[1]  # type: ignore[index]
    (rows, length), first = ids.shape, ids.shape[1] // 2
    padding = np.arange(rows) % first  # so that each first piece has a token

    def whole(model: Any) -> Outcome:
        decoder, ids = decoder_of(model, subject.batch)  # type: ignore[misc]
        found = {"of texts of one length": decoder(ids).data[:, first - 1 :]}
        for row, padded in enumerate(padding):
            found[f"behind padding of {padded}"] = decoder(ids[:, : length - padded]).data[row, first - 1 - padded :]
        return {"logits": kept(found)}

    def cached(model: Any) -> Outcome:
        decoder, ids = decoder_of(model, subject.batch)  # type: ignore[misc]
        found = {"of texts of one length": _by_token(decoder, ids, first, None)}
        aligned = np.stack([np.roll(row, padded) for row, padded in zip(ids, padding, strict=True)])
        for padded, logits in zip(padding, _by_token(decoder, aligned, first, padding), strict=True):
            found[f"behind padding of {padded}"] = logits
        return {"logits": kept(found)}

    with no_grad():
        reference, found = whole(model), cached(model)
        sensitivity = sensitivity_of(whole, model, reference)
    difference, where = compared(found, reference)
    return Measured(difference, bound_of(subject.size, sensitivity), where)


def _by_token(decoder: Any, ids: Array, first: int, padding: Array | None) -> Array:
    """Logits (B, T - first + 1, V) after `first` tokens, and after each of the later ones."""
    cache = decoder.new_cache(len(ids), padding)
    pieces = [ids[:, :first], *(ids[:, place : place + 1] for place in range(first, ids.shape[1]))]
    return np.stack([decoder.next_logits(piece, cache).data for piece in pieces], axis=1)
