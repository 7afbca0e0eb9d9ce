"""The doctor: says what is wrong with a training before its first step, or with a run, and what to do about it.

    findings = examine(*case_of(config))        before training: settings as `minillm train` takes them
    findings = examine(task, model)             the same for a task and a model of one's own
    findings = examine_run("runs/mine")         a run: its metrics.jsonl
    findings = examine_loop(step, model, optimizer)    some steps of a loop of one's own

Each check is a function that yields findings (finding.py): its docstring says where its threshold comes from.

    case.py         a training before its first step, and all that the checks read of it
    start.py        the loss that it begins with         leaks.py       what a prediction sees
    targets.py      what the loss asks for               layers.py      dead and constant layers
    parameters.py   gradients, ties, what is frozen      settings.py    learning rate, epochs
    text.py         text as tokens                       records.py     instructions, pairs, labelled texts
    rates.py        the learning-rate range test
    runs.py         what metrics.jsonl tells             answers.py     the same for losses on answers
    watched.py      what watch.jsonl tells               reference.py   the curves of the presets
    pictures.py     a run and a range test, drawn        loop.py        a loop of one's own
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from minillm.errors import MinillmError
from minillm.grad_mode import quiet
from minillm.study.doctor import layers, leaks, parameters, records, settings, start, targets, text
from minillm.study.doctor.case import Case
from minillm.study.doctor.finding import Finding, lines_of, sorted_findings, summary
from minillm.study.doctor.loop import examine_loop
from minillm.study.doctor.prepare import case_of
from minillm.study.doctor.runs import examine_run

__all__ = [
    "CHECKS",
    "Case",
    "Finding",
    "case_of",
    "examine",
    "examine_loop",
    "examine_run",
    "lines_of",
    "sorted_findings",
    "summary",
]

Check = Callable[[Case], Iterator[Finding]]
# In the order in which they run: the data first, because a step on wrong ids raises.
CHECKS: tuple[Check, ...] = (
    *(text.token_ids, text.text_data, text.padding_is_end),
    *(records.left_out, records.too_long, records.copies, records.short_answers, records.classes, records.length_bias),
    *(targets.no_targets, targets.padding_in_loss, targets.prompt_in_loss, targets.end_not_learned, targets.mask_rate),
    *(layers.not_finite, start.initial_loss, start.logit_spread, targets.label_shift, start.random_evaluation),
    targets.padding_seen,
    *(leaks.leaks, layers.dead_units, layers.constant_layers),
    *(parameters.unused_parameters, parameters.frozen_parameters, parameters.tied_parameters),
    *(parameters.gradient_sizes, parameters.gradient_slope),
    *(settings.learning_rate, settings.sgd_rate, settings.shrinking, settings.epochs),
)


# Findings after which no other is looked for, because every other number follows from them.
ENDING = ("ids-out-of-range", "one-token", "not-finite", "random-evaluation")


def examine(task: Any, model: Any, trained: bool = False) -> list[Finding]:
    """The findings about a training before its first step, the worst first.

    task: a task with data (training/tasks/task.py), whose first batch is looked at; model: the model that it trains,
    which is left in evaluation mode, with the gradients of some rows. trained: its weights come from a trained model.
    """
    case = Case(task, model, trained)
    found: list[Finding] = []
    with quiet():
        for check in CHECKS:
            try:
                found += check(case)
            except MinillmError as error:
                found.append(step_fails(error))
                break
            if any(one.name in ENDING for one in found):
                break
    return sorted_findings(found)


def step_fails(error: Exception) -> Finding:
    """The finding for an error that the first batch raises."""
    return Finding(
        "error",
        "step-fails",
        f"the first step raises an error: {str(error).rstrip('.')}",
        "correct what the error names; the other checks need a step that runs",
        "`minillm train` with these settings",
    )
