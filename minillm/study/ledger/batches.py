"""Claims about batches: parts of one, texts in one row, masks, dropout, and activations that are computed again."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from minillm.autograd import no_grad
from minillm.data.instructions import Example
from minillm.data.packing import rows_of
from minillm.errors import InputError
from minillm.nn import Decoder
from minillm.parallel.data_parallel import model_blocks
from minillm.parallel.objective import Batch
from minillm.study.ledger.claim import DoesNotApply, Measured
from minillm.study.ledger.generation import decoder_of
from minillm.study.ledger.rounding import Outcome, bound_of, compared, kept, sensitivity_of
from minillm.study.ledger.steps import gradients_of, trained
from minillm.study.ledger.subject import Subject

PARTS = 3  # micro-batches, of 2, 2 and 1 rows
RATES = ("dropout", "embedding_dropout", "attention_dropout", "activation_dropout")  # in the bodies of models


def micro_batches(subject: Subject) -> Measured:
    """A step in parts of the batch against one of the whole batch, without dropout, whose masks would be others."""

    def step(model: Any, parts: int = 1) -> Outcome:
        return trained(subject.training, model.eval(), micro_batches=parts)

    difference, where = compared(step(subject.model(), PARTS), step(subject.model()))
    return Measured(difference, subject.bound, where)


def recomputed(subject: Subject) -> Measured:
    """A step that computes every block again in the backward, with the same dropout masks, against one that keeps all.

    The second forward runs the same operations on the same numbers, so no bit may differ.
    """
    model = subject.model()
    if not (blocks := model_blocks(model)):
        raise DoesNotApply(f"this {type(model).__name__} has no list of blocks")
    found = trained(subject.training, model, layers=range(len(blocks)))
    difference, where = compared(found, subject.reference)
    return Measured(difference, 0.0, where)


def packed(subject: Subject) -> Measured:
    """Texts of several lengths in two rows against each text alone: logits, loss and gradient."""
    model = subject.model().eval()
    if not isinstance(model, Decoder) or "starts" not in inspect.signature(model.forward).parameters:
        raise DoesNotApply(f"this {type(model).__name__} takes no texts that share a row")
    ids = subject.batch["ids"]
    lengths = [max(1, ids.shape[1] * share // 8) for share in (3, 5, 1, 4, 2)]
    texts = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    examples = [Example(text, np.append(text[1:], -100)) for text in texts]
    groups = [[examples[0], examples[1]], [examples[2], examples[3], examples[4]]]

    def together(model: Any) -> Outcome:
        batch = rows_of(groups)
        where = [(row, start) for row, group in enumerate(groups) for start in _starts(group)]
        with no_grad():
            logits = model(batch["ids"], batch["starts"]).data
        found = [logits[row, start : start + len(text)] for (row, start), text in zip(where, texts, strict=True)]
        loss = model.loss(batch["ids"], batch["targets"], "sum", batch["starts"])
        return _outcome(model, found, [loss])

    def apart(model: Any) -> Outcome:
        with no_grad():
            found = [model(text[None]).data[0] for text in texts]
        return _outcome(model, found, [model.loss(e.ids[None], e.targets[None], "sum") for e in examples])

    reference = apart(model)
    model.zero_grad()
    difference, where = compared(together(model), reference)
    model.zero_grad()
    return Measured(difference, bound_of(subject.size, sensitivity_of(apart, model, reference)), where)


def _starts(group: list[Example]) -> list[int]:
    """The place where each text of a row begins."""
    return [sum(len(example.ids) for example in group[:number]) for number in range(len(group))]


def _outcome(model: Any, logits: list, losses: list) -> Outcome:
    """The logits of texts, the sum of losses, and its gradient."""
    for loss in losses:
        loss.backward()
    total = np.array(sum(loss.item() for loss in losses))
    by_text = {str(number): one for number, one in enumerate(logits)}
    return {"logits of text": kept(by_text), "loss": kept({"": total}), "gradient of": gradients_of(model)}


def masked(subject: Subject) -> Measured:
    """Outputs that must not see a token, when this token becomes another one: not one bit changes.

    A model of the next token must not see the last one before its place, and another model no token behind the end of
    a text. An XLNet must not see the token that comes last in the order.
    """
    model, rng = subject.model("float32").eval(), np.random.default_rng(0)
    vocabulary = model.config.vocab_size

    def another(ids: Any) -> Any:
        return (ids + rng.integers(1, vocabulary, ids.shape)) % vocabulary

    with no_grad():
        if (found := decoder_of(model, subject.batch)) is not None:
            decoder, ids = found
            changed = ids.copy()
            changed[:, -1] = another(ids[:, -1])
            before, after = (decoder(given).data[:, :-1] for given in (ids, changed))
            remark = "the logits before the last token"
        else:
            before, after, remark = _behind_the_length(model, subject.batch, another)
    difference, _ = compared({"": {"": after}}, {"": {"": before}})
    return Measured(difference, 0.0, remark)


def _behind_the_length(model: Any, batch: Batch, another: Any) -> tuple[Any, Any, str]:
    """The outputs of a model that sees a whole text, before and after hidden tokens have changed, and their name."""
    if "perm_mask" in batch:
        given = {name: batch[name] for name in ("perm_mask", "target_mapping")}
        hidden = batch["perm_mask"].all(axis=1)  # (B, T): tokens that no token sees
        if not hidden.any():
            raise DoesNotApply("every token of this batch is seen by another one")
        changed = np.where(hidden, another(batch["ids"]), batch["ids"])
        before, after = (model(ids, **given).data for ids in (batch["ids"], changed))
        return before, after, "the logits of all predicted tokens, of which none sees the changed one"
    if "lengths" not in inspect.signature(getattr(model, "features", model.forward)).parameters:
        raise DoesNotApply(f"this {type(model).__name__} takes no lengths of texts")
    ids = batch["ids"]
    lengths = np.maximum(1, ids.shape[1] - 1 - np.arange(len(ids)))
    real = np.arange(ids.shape[1]) < lengths[:, None]
    changed = np.where(real, ids, another(ids))
    before, after = (model.features(given, lengths=lengths).data[real] for given in (ids, changed))
    return before, after, "the features before a text's end"


def dropout_repeats(subject: Subject) -> Measured:
    """Two steps from one seed give equal bits; another seed, and no dropout, give other losses."""
    if not any(getattr(subject.start.config, name, None) for name in RATES):
        raise DoesNotApply(f"this {subject.name} has no dropout")
    difference, where = compared(trained(subject.training, subject.model()), subject.reference)
    model = subject.model()
    one, other = (subject.start.loss(model, seed=seed).item() for seed in (1, 2))
    without = subject.start.loss(model.eval()).item()
    if len({one, other, without}) < 3:
        raise InputError(
            f"dropout: the loss is {one} with the masks of one seed, {other} with those of another, and {without} "
            "without dropout; they should differ"
        )
    return Measured(difference, 0.0, where)
