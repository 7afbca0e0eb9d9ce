"""Records, such as instructions, pairs of answers and labelled texts: what was lost, and what repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from minillm.data.pairs import IGNORED
from minillm.study.doctor.case import Case
from minillm.study.doctor.finding import Finding

LOST = 0.05  # share of records that are left out
CUT = 0.2  # share of records that are cut
COPIES = 0.2  # share of records that repeat another one
SHORT = 0.5  # share of answers of a word or less
MAJORITY = 0.9  # share of the most frequent class
LONGER = 0.9  # share of pairs whose chosen answer is the longer one
FEW = 20  # examples


def left_out(case: Case) -> Iterator[Finding]:
    """Find records that were left out, and answers that are empty."""
    task: Any = case.task
    records = getattr(task, "records", None)
    lost = list(records.problems) if records is not None else []
    total = len(lost) + (len(records.items) if records is not None else 0)
    pairs = getattr(task, "left_out", None)
    if isinstance(pairs, dict):  # of sources and targets
        lost = [what for what, number in pairs.items() for _ in range(number)]
        total = len(lost) + sum(len(part.sources) for part in (task.train, task.validation))
    if not total or len(lost) <= LOST * total:
        return
    empty = len([one for one in lost if "empty" in one])
    if empty > LOST * total:
        yield Finding(
            "warning",
            "empty-answers",
            f"{empty:,} of {total:,} records have an empty answer or text, and are left out: {empty / total:.0%}",
            "look where the data was made: was an answer lost, or a field named otherwise?",
            f"the first: {next(one for one in lost if 'empty' in one)}",
        )
    if len(lost) - empty > LOST * total:
        first = next(one for one in lost if "empty" not in one)
        yield Finding(
            "warning",
            "left-out",
            f"{len(lost) - empty:,} of {total:,} records cannot be used, and are left out: "
            f"{(len(lost) - empty) / total:.0%}",
            "correct the records, or give the fields and the length that fit them",
            f"the first: {first}",
        )


def too_long(case: Case) -> Iterator[Finding]:
    """Find records that are cut, or dropped because nothing of their answer is left."""
    task: Any = case.task
    total = len(getattr(task, "examples", None) or getattr(task, "pairs", None) or ())
    cut, gone = getattr(task, "cut", 0), getattr(task, "without_answer", 0)
    if task.name == "classify":
        total, cut = (sum(map(len, part)) for part in (task.lengths, [one[one == task.length] for one in task.lengths]))
    if task.name == "grpo":
        total, gone = len(task.prompts) + task.too_long, task.too_long
    everything = total + (gone if task.name != "grpo" else 0)
    if everything and (cut > CUT * everything or gone > LOST * everything):
        yield Finding(
            "warning",
            "too-long",
            f"{cut:,} of {everything:,} records are cut to the longest length, and {gone:,} are dropped because "
            "nothing to learn is left of them",
            "give a larger --max-length or --context, or shorter records",
            "the first lines of the training: what was cut and left out",
        )


def copies(case: Case) -> Iterator[Finding]:
    """Find records that repeat another one, and too few of them."""
    texts = texts_of(case.task)
    if texts is None or not texts:
        return
    counts = Counter(texts)
    repeated = (len(texts) - len(counts)) / len(texts)
    if repeated > COPIES and len(texts) > FEW:
        most, times = counts.most_common(1)[0]
        yield Finding(
            "warning",
            "duplicates",
            f"{repeated:.0%} of the {len(texts):,} records repeat another one; one comes {times:,} times "
            f"({most[:40]!r})",
            "drop records that come twice",
            "`sort FILE | uniq -d`",
        )
    if len(counts) < FEW:
        yield Finding(
            "warning",
            "tiny-data",
            f"there are {len(counts)} different records, which a model learns by heart in a few steps",
            "give more records: some hundreds at least",
            "the first lines of the training",
        )


def texts_of(task: Any) -> list[str] | None:
    """The text of each record with its answer; None for tasks without records."""
    if task.name == "classify":
        return [one.text for one in task.data.examples]
    records = getattr(task, "records", None)
    if records is None or not records.items:
        return None
    rows = []
    for item in records.items:
        both = item if hasattr(item, "chosen") else (item,)
        rows.append("\0".join(message.content for one in both for message in one.messages))
    return rows


def short_answers(case: Case) -> Iterator[Finding]:
    """Find answers of one token with its end: nothing but a word to learn."""
    task: Any = case.task
    if task.name not in ("sft", "preference"):
        return
    examples = task.examples if task.name == "sft" else [one for pair in task.pairs for one in pair]
    lengths = np.array([(one.targets != IGNORED).sum() for one in examples])
    share = float((lengths <= 1).mean())
    if share > SHORT:
        yield Finding(
            "warning",
            "empty-answers",
            f"{share:.0%} of the answers have one token with their end: there is nothing to learn but to stop",
            "look at the records: which field has the answer?",
            "python: task.examples[0].targets",
        )


def classes(case: Case) -> Iterator[Finding]:
    """Find classes that nearly all texts have, that no text has, and texts with two classes."""
    task: Any = case.task
    if task.name != "classify":
        return
    counts = np.bincount(task.classes[0], minlength=len(task.labels))
    share, most = counts.max() / max(1, counts.sum()), task.labels[int(counts.argmax())]
    if share > MAJORITY:
        yield Finding(
            "warning",
            "label-imbalance",
            f"{share:.0%} of the {counts.sum():,} training texts are {most!r}: a model that always says so is right "
            f"for {share:.0%}, and learns little else",
            "gather texts of the other classes, draw them more often, or judge by F1 and not by accuracy",
            "val_accuracy in metrics.jsonl beside that share",
        )
    missing = [name for name, count in zip(task.labels, counts, strict=True) if not count]
    if missing:
        yield Finding(
            "warning",
            "label-missing",
            f"{len(missing)} of {len(task.labels)} classes have no training text, the first of them {missing[0]!r}",
            "add texts of that class, or begin with a head for the classes of the data (--new-head)",
            "the first lines of the training: the number of texts of each class",
        )
    seen: dict[str, set[str]] = {}
    for one in task.data.examples:
        seen.setdefault(one.text, set()).add(one.label)
    both = [text for text, names in seen.items() if len(names) > 1]
    if len(both) > 0.02 * len(seen):
        yield Finding(
            "warning",
            "label-conflict",
            f"{len(both):,} of {len(seen):,} texts stand in the data with two classes, such as {both[0][:40]!r}",
            "decide on one class for each text, and drop the other record",
            "`sort FILE | uniq -c`",
        )


def length_bias(case: Case) -> Iterator[Finding]:
    """Find pairs in which the better answer is nearly always the longer one (Singhal et al. 2023, arXiv:2310.03716)."""
    if case.task.name not in ("preference", "reward"):
        return
    task: Any = case.task
    lengths = np.array([[(one.targets != IGNORED).sum() for one in pair] for pair in task.pairs])  # (N, 2)
    if len(lengths) < FEW:
        return
    longer, shorter = (float((lengths[:, a] > lengths[:, b]).mean()) for a, b in ((0, 1), (1, 0)))
    if max(longer, shorter) > LONGER:
        kind, share = ("longer", longer) if longer > shorter else ("shorter", shorter)
        yield Finding(
            "warning",
            "length-bias",
            f"the chosen answer is the {kind} one in {share:.0%} of {len(lengths):,} pairs: length alone tells them "
            "apart, and will be learned",
            "add pairs whose better answer is not so, or take a loss per token (simpo, ipo, sigmoid_norm)",
            "python: the lengths of task.pairs",
        )
