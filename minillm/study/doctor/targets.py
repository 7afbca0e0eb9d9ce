"""The targets of the loss: is it the next token, are there targets, and does padding stay out of it?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minillm.backend import Array
from minillm.study.doctor.case import Case
from minillm.study.doctor.finding import Finding
from minillm.study.doctor.leaks import other

IGNORED = -100
SHIFTS = range(-1, 4)
ALIKE = 0.99  # share of equal tokens from which on two rows of ids are shifted copies
BATCHES = 8  # whose masks are counted
RUN = 8  # equal targets at the end of a row that look like padding
ROWS = 0.25  # share of rows that end so


def no_targets(case: Case) -> Iterator[Finding]:
    """Find a loss without a target."""
    for name, count in case.task.counts(case.batch).items():
        if not count:
            yield Finding(
                "error",
                "no-targets",
                f"the first batch has no target for the term {name!r} of the loss, which stays 0 and teaches nothing",
                "check what is masked: prompts alone, or everything because the records are cut before their answers",
                "python: task.counts(task.batch(0))",
            )


def label_shift(case: Case) -> Iterator[Finding]:
    """Find targets that are not the tokens that follow.

    Both the targets of the batch and those that the cross-entropy received are compared with the ids, because a data
    set and a model may both shift, or neither.
    """
    ids = case.rows.get("ids")
    if ids is None or "targets" not in case.rows:
        return
    seen = [case.rows["targets"]]
    if len(case.step.entropies) == 1 and type(case.task).next_tokens:
        seen.append(case.step.entropies[0].targets)
    for targets in seen:
        found = list(shifted(ids, targets))
        yield from found
        if found:
            return


def shifted(ids: Array, targets: Array) -> Iterator[Finding]:
    """Find targets (..., T) that are ids (..., T) of another place than the next.

    Where all are equal (a text of one letter), nothing can be said.
    """
    ids, targets = ids.reshape(-1, ids.shape[-1]), targets.reshape(-1, targets.shape[-1])
    if targets.shape[0] != len(ids) or not 0 <= ids.shape[1] - targets.shape[1] <= 2:
        return
    shares = {shift: equal_share(ids, targets, shift) for shift in SHIFTS}
    best = max(shares, key=lambda shift: shares[shift])
    if shares[best] < ALIKE or shares[1] >= ALIKE:
        return
    what = {0: "the inputs themselves", -1: "the tokens before the inputs"}.get(best, f"{best} tokens ahead")
    yield Finding(
        "error",
        "label-shift",
        f"the targets are {what}: {shares[best]:.0%} of them equal ids[t{best:+d}], and {shares[1]:.0%} the next "
        "token ids[t+1]",
        "shift by one in one place: targets = ids[:, 1:] beside ids[:, :-1], with a loss that shifts nothing",
        "python: (targets[:, :-1] == ids[:, 1:]).mean()",
    )


def equal_share(ids: Array, targets: Array, shift: int) -> float:
    """The share of targets[t] that are ids[t + shift], among those that count and have such a place; 0 for too few."""
    T = targets.shape[1]
    places = np.arange(max(0, -shift), min(T, ids.shape[1] - shift))
    if len(places) < 2:
        return 0.0
    wanted, found = ids[:, places + shift], targets[:, places]
    counts = found != IGNORED
    return float((wanted == found)[counts].mean()) if counts.sum() >= 4 else 0.0


def padding_in_loss(case: Case) -> Iterator[Finding]:
    """Find targets behind the end of a text."""
    for name in ("targets", "labels", "target"):
        targets = case.batch.get(name)
        if targets is None or targets.ndim < 2 or targets.dtype.kind not in "iu":
            continue
        flat = targets.reshape(-1, targets.shape[-1])
        counted = flat != IGNORED
        if "lengths" in case.batch and case.batch["lengths"].size == len(flat):
            behind = np.arange(flat.shape[1]) >= case.batch["lengths"].reshape(-1, 1)
        else:
            same = (flat == flat[:, -1:]) & counted
            runs = same[:, ::-1].cumprod(1).sum(1)  # (rows,), equal targets at the end
            behind = np.arange(flat.shape[1]) >= flat.shape[1] - np.where(runs >= RUN, runs - 1, 0)[:, None]
            if len(flat) < 2 or (runs >= RUN).mean() < ROWS or np.unique(flat[:, -1][runs >= RUN]).size > 1:
                continue
            if not (flat[counted] != flat[0, -1]).any():  # a text of one letter, which text.py tells of
                continue
        wrong = float((behind & counted).sum() / max(1, counted.sum()))
        if wrong:
            yield Finding(
                "error",
                "padding-in-loss",
                f"{wrong:.0%} of the targets of the first batch are padding behind the ends of texts, so the model "
                "learns to write padding",
                "set the targets of padding to -100, told by the lengths and not by an id",
                "python: the last columns of the targets of a batch",
            )
            return


def padding_seen(case: Case) -> Iterator[Finding]:
    """Change what stands behind the ends of texts: the loss may not move."""
    for batch in case.several(4):
        for ids, lengths in (("ids", "lengths"), ("source", "source_lengths")):
            if ids not in batch or lengths not in batch or case.task.samples:
                continue
            behind = np.arange(batch[ids].shape[-1]) >= batch[lengths][..., None]
            (padded,) = np.nonzero(behind.reshape(len(behind), -1).any(1))
            if not len(padded):
                continue
            rows = {name: array[padded[:8]] for name, array in batch.items()}
            changed = np.where(behind[padded[:8]], other(rows[ids], case.model.config.vocab_size), rows[ids])
            before, after = case.loss(rows), case.loss(rows | {ids: changed})
            if abs(after - before) > 1e-4 * max(1.0, abs(before)):
                yield Finding(
                    "error",
                    "padding-seen",
                    f"changing the padding moves the loss from {before:.4f} to {after:.4f}: real tokens attend to it",
                    "give the model the lengths of the texts, or a mask of their tokens",
                    "python: the loss of a batch before and after a change of its padding",
                )
            return


def prompt_in_loss(case: Case) -> Iterator[Finding]:
    """Find examples of instructions in which the prompt is learned too: the first target is that of token 1."""
    examples = getattr(case.task, "examples", None)
    if case.task.name != "sft" or not examples:
        return
    long = [one for one in examples if len(one.ids) > 2]
    share = float(np.mean([one.targets[0] != IGNORED for one in long])) if long else 0.0
    if share > 0.5:
        yield Finding(
            "warning",
            "prompt-in-loss",
            f"in {share:.0%} of the examples the prompt is learned like the answer, so much of the loss is that of "
            "questions and templates",
            "set the targets of everything but the answers to -100",
            "python: task.examples[0].targets",
        )


def end_not_learned(case: Case) -> Iterator[Finding]:
    """Find answers whose end is never a target: the model would not learn to stop."""
    task: Any = case.task
    if task.name not in ("sft", "preference") or not hasattr(task, "template"):
        return
    ends = {*task.template.stop_ids(task.tokenizer), task.tokenizer.eos_id} - {None}
    pairs = getattr(task, "pairs", None)
    examples = task.examples if pairs is None else [one for pair in pairs for one in pair]
    learned = [one.targets[one.targets != IGNORED] for one in examples[:1000]]
    ended = float(np.mean([len(answer) > 0 and int(answer[-1]) in ends for answer in learned]))
    if ended < 0.5:
        yield Finding(
            "error" if ended == 0 else "warning",
            "end-not-learned",
            f"{ended:.0%} of the answers end with a target that ends a text, so the model does not learn to stop",
            "put the token that ends an answer behind it, keep its target where padding has the same id, and cut fewer",
            "python: task.examples[0].targets[-1]",
        )


def mask_rate(case: Case) -> Iterator[Finding]:
    """Compare the share of hidden tokens with the one that was asked for, and see that they are hidden.

    The share of n tokens has the standard deviation sqrt(p (1 - p)/n), and some more where whole words are hidden: five
    times sqrt(3) of it are allowed. Of BERT's hidden tokens 10 % stay as they are, Devlin et al. 2018, section 3.1.
    """
    if case.task.name != "masked":
        return
    task: Any = case.task
    special = [i for i in task.tokenizer.special_tokens.values() if i != task.mask]
    ordinary = chosen = kept = masks = lost = 0
    for batch in case.several(BATCHES):
        ids, labels = batch["ids"], batch["labels"]
        counts = labels != IGNORED
        real = np.arange(ids.shape[1]) < batch["lengths"][:, None] if "lengths" in batch else np.ones_like(counts)
        ordinary += int((real & (counts | ~np.isin(ids, special))).sum())
        chosen += int(counts.sum())
        kept += int((counts & (ids == labels)).sum())
        masks += int((ids == task.mask).sum())
        lost += int(((ids == task.mask) & ~counts).sum())
    share, wanted = chosen / max(1, ordinary), float(task.options.hidden_share)
    if abs(share - wanted) > 5 * math.sqrt(3 * wanted * (1 - wanted) / max(1, ordinary)) or not 0.02 <= wanted <= 0.6:
        yield Finding(
            "warning",
            "mask-rate",
            f"{share:.1%} of the tokens of the first batches are predicted, where hidden_share asks for {wanted:.1%}; "
            "15% is usual, and up to 40% works",
            "set --hidden-share to 0.15, and count ordinary tokens alone",
            "python: (batch['labels'] != -100).mean()",
        )
    if lost:
        yield Finding(
            "error",
            "label-shift",
            f"{lost:,} of {masks:,} mask tokens have no label at their place: labels and ids are shifted",
            "put each label at the place of the token that it is of: an encoder shifts nothing",
            "python: (labels[ids == mask_id] != -100).mean(), which must be 1",
        )
    if chosen >= 20 and kept > 0.5 * chosen:
        yield Finding(
            "error",
            "visible-labels",
            f"{kept / chosen:.0%} of the tokens that are predicted stand in the input as they are, where 10% should: "
            "there is nothing to predict",
            "put the mask token in the place of 80% of them, and a random token in that of 10%",
            "python: (ids == labels)[labels != -100].mean()",
        )
