"""A prediction sees all of its context, but neither what it predicts nor another text of a packed row.

Each check changes some tokens and looks which logits move. What must not move is compared to 1e-4 of the largest logit:
products of matrices of one shape give equal bits, whatever the other rows hold, and the rest is rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minillm.autograd import Forward, no_grad, observe
from minillm.backend import Array
from minillm.device import to_host
from minillm.parallel.objective import Batch, rows_of
from minillm.study.doctor.case import LONG, Case
from minillm.study.doctor.finding import Finding

ROUNDING = 1e-4  # of the largest logit
IGNORED = -100


def leaks(case: Case) -> Iterator[Finding]:
    """See whether predictions see what they must not, and use what they should."""
    if "perm_mask" in case.rows:
        yield from _permutation(case)
    elif "source" in case.rows:
        yield from _target_side(case)
    elif "starts" in case.rows:
        yield from _packed(case)
        yield from _future(case)
    elif case.sequences() is not None:
        yield from _future(case)
    elif "labels" in case.rows:
        yield from _both_sides(case)


def moved(before: Array, after: Array) -> Array:
    """The largest change of the logits (..., V) at each place (...), in shares of the largest logit."""
    return np.abs(after - before).max(-1) / max(float(np.abs(before).max(initial=0.0)), 1e-12)


def _logits(case: Case, ids: Array) -> Array:
    with no_grad():
        return to_host(case.model(ids).data).astype(np.float64)


def logits_of_loss(case: Case, rows: Batch) -> Array:
    """The logits (..., V) that the loss of these rows compares with its targets: those of its first cross-entropy."""
    found: list[Array] = []

    def on_forward(call: Forward) -> None:
        if call.op.name == "cross_entropy":
            found.append(to_host(call.inputs[0]).astype(np.float64))

    with no_grad(), observe(on_forward):
        case.task.sums(case.model, rows)
    return found[0]


def other(ids: Array, vocabulary: int) -> Array:
    """Ids of which each differs from the given one."""
    draw = np.random.default_rng(0)
    return (ids + draw.integers(1, max(2, vocabulary), ids.shape)) % vocabulary


def _future(case: Case) -> Iterator[Finding]:
    """Change all tokens after some place: no logit up to there may move; and all before: it must."""
    ids = case.sequences()
    assert ids is not None
    T, vocabulary = ids.shape[1], case.model.config.vocab_size
    if T < 3 or not hasattr(case.model, "logits") or not hasattr(case.model, "output_weight"):
        return
    if type(case.model).__name__.endswith("ForSequenceClassification"):
        return
    before = _logits(case, ids)
    for place in sorted({0, T // 2, T - 2}):
        changed = ids.copy()
        changed[:, place + 1 :] = other(ids[:, place + 1 :], vocabulary)
        far = moved(before, _logits(case, changed))[:, : place + 1].max(0)  # (place + 1,)
        if far.max() > ROUNDING:
            yield Finding(
                "error",
                "future-leak",
                f"changing the tokens after position {place} moves the logits at position {int(far.argmax())} by "
                f"{far.max():.1%} of the largest: a prediction sees the tokens that follow",
                "mask the attention with causal=True, and mix no other positions (a norm or a mean over T)",
                "python: model(ids)[:, :t] before and after a change of ids[:, t:]; `minillm diff` names the layer",
            )
            return
    changed = ids.copy()
    changed[:, : T - 1] = other(ids[:, : T - 1], vocabulary)
    if moved(before, _logits(case, changed))[:, T - 1].max() <= 1e-6:
        yield Finding(
            "error",
            "no-context",
            f"the logits at position {T - 1} stay as they are when all {T - 1} tokens before it change: the model sees "
            "one token",
            "check the mask of the attention (is it the wrong way round?) and that its result is added to the stream",
            "python: model(ids)[:, -1] before and after a change of ids[:, :-1]",
        )


def _packed(case: Case) -> Iterator[Finding]:
    """Change the first text of a packed row: no other text of the row may move."""
    ids, starts = case.rows["ids"][:, : 2 * LONG], case.rows["starts"][:, : 2 * LONG]
    several = np.flatnonzero((starts != 0).any(1))
    if not len(several):
        return
    row = several[:1]
    ids, starts = ids[row], starts[row]
    first = starts == 0
    changed = np.where(first, other(ids, case.model.config.vocab_size), ids)
    with no_grad():
        before, after = (to_host(case.model(one, starts=starts).data).astype(np.float64) for one in (ids, changed))
    far = moved(before, after)[~first].max()
    if far > ROUNDING:
        yield Finding(
            "error",
            "packing-leak",
            f"changing the first text of a packed row moves the logits of the next text by {far:.1%} of the largest: "
            "texts in one row see each other",
            "give the model `starts`, and let positions count from each text's own start",
            "python: model(ids, starts=starts) before and after a change of the first text",
        )


def _target_side(case: Case) -> Iterator[Finding]:
    """Change the targets from some place on: no logit up to there may move. Change the sources: they must."""
    rows = rows_of(case.rows, 0, 2)
    target, vocabulary = rows["target"][:, :LONG], case.model.config.vocab_size
    rows["target"] = target
    T = int((target != IGNORED).sum(-1).min())
    if T < 2:
        return
    before = logits_of_loss(case, rows)  # (B, T, V)
    for place in sorted({0, T // 2, T - 1}):
        changed: Any = np.where(target == IGNORED, target, other(target, vocabulary))
        changed[:, :place] = target[:, :place]
        far = moved(before, logits_of_loss(case, rows | {"target": changed}))[:, : place + 1].max(0)
        if far.max() > ROUNDING:
            yield Finding(
                "error",
                "future-leak",
                f"changing the targets from position {place} on moves the logits at position {int(far.argmax())} by "
                f"{far.max():.1%} of the largest: the decoder sees what it should write",
                "shift the decoder's input to the right by one, and mask its attention with causal=True",
                "python: model(source, target_in)[:, :t] before and after a change of target_in[:, t:]",
            )
            return
    others = rows | {"source": other(rows["source"], vocabulary)}
    if moved(before, logits_of_loss(case, others)).max() <= 1e-6:
        yield Finding(
            "error",
            "no-context",
            "no logit moves when every token of the sources changes: the decoder does not read them",
            "check that the decoder attends to the encoder's output, and that the result is added to the stream",
            "python: model(source, target_in) for two sources",
        )


def _permutation(case: Case) -> Iterator[Finding]:
    """Change the tokens that are predicted, one in each row: its own logits may not move."""
    rows = rows_of(case.rows, 0, 4)
    mapping = rows["target_mapping"]  # (B, P, T)
    before = logits_of_loss(case, rows)
    labels = rows["labels"]  # (B, P)
    numbers = np.cumsum((labels != IGNORED).reshape(-1)).reshape(labels.shape) - 1  # where each label's logits are
    for target in (0, labels.shape[1] - 1):
        known = np.flatnonzero(labels[:, target] != IGNORED)
        if not len(known):
            continue
        ids = rows["ids"].copy()
        places = mapping[known, target].argmax(-1)
        ids[known, places] = other(ids[known, places], case.model.config.vocab_size)
        far = moved(before, logits_of_loss(case, rows | {"ids": ids}))[numbers[known, target]].max()
        if far > ROUNDING:
            yield Finding(
                "error",
                "future-leak",
                f"changing a token that is predicted moves its own logits by {far:.1%} of the largest: the query "
                "stream sees the token that it should predict",
                "let perm_mask hide each predicted token from itself, and attend with g as query and h as keys",
                "python: the logits of a target before and after a change of its id",
            )
            return


def _both_sides(case: Case) -> Iterator[Finding]:
    """Change the tokens right of a hidden one, then those left of it: its logits must move each time."""
    rows = rows_of(case.rows, 0, 1)
    (places,) = np.nonzero(rows["labels"][0] != IGNORED)
    ids = rows["ids"]
    length = int(rows["lengths"][0]) if "lengths" in rows else ids.shape[1]
    inner = [number for number, place in enumerate(places) if 1 < place < length - 2]
    if not inner:
        return
    number, place = inner[len(inner) // 2], int(places[inner[len(inner) // 2]])
    before = logits_of_loss(case, rows)
    sides: dict[str, Callable[[], slice]] = {"right": lambda: slice(place + 1, length), "left": lambda: slice(0, place)}
    for side, part in sides.items():
        changed: Any = ids.copy()
        changed[:, part()] = other(ids[:, part()], case.model.config.vocab_size)
        if moved(before, logits_of_loss(case, rows | {"ids": changed}))[number] <= 1e-6:
            yield Finding(
                "error",
                "one-sided",
                f"the logits of the hidden token at position {place} stay as they are when all tokens on its {side} "
                "change: an encoder must see both sides",
                "leave causal=True out of an encoder's attention, and check its mask",
                "python: the logits of a hidden token before and after a change of its neighbours",
            )
            return
