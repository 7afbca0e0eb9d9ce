"""Claims about several processes: however a training is divided over two ranks, it is that of one process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from minillm.errors import InputError
from minillm.nn import Decoder
from minillm.parallel.communicator import Communicator
from minillm.parallel.launch import launch
from minillm.parallel.mesh import Mesh, ParallelModel
from minillm.study.ledger.claim import DoesNotApply, Measured
from minillm.study.ledger.rounding import Outcome, compared
from minillm.study.ledger.steps import PARTS, STEPS, WEIGHT_DECAY, Training, take_steps
from minillm.study.ledger.subject import Subject

RANKS = 2


class Division(NamedTuple):
    """The way in which two ranks share a training."""

    dp: int = 1
    tp: int = 1
    pp: int = 1
    zero: int = 0


def of(division: Division) -> Callable[[Subject], Measured]:
    """The claim that a training on this division is that of one process."""
    return functools.partial(divided_is_whole, division=division)


def divided_is_whole(subject: Subject, division: Division) -> Measured:
    """Losses, norms of the gradient, weights and moments of two steps, on rank 0 and in one process."""
    kind, objective = subject.start.kind, subject.start.objective
    in_parts = division.tp * division.pp > 1
    if in_parts and not (isinstance(kind, type) and issubclass(kind, Decoder) and objective.next_tokens):
        raise DoesNotApply(f"only models of the next token are divided, and {subject.name} is none")
    expected, bound = subject.two_steps
    found = launch(on_rank, RANKS, subject.training, division)[0]
    if isinstance(found, str):
        raise DoesNotApply(found)
    difference, where = compared(found, expected)
    return Measured(difference, bound, where)


def on_rank(communicator: Communicator, training: Training, division: Division) -> Outcome | str | None:
    """The outcome of the steps on rank 0; on all ranks the reason if the model cannot be divided so."""
    mesh = Mesh(communicator, division.dp, division.tp, division.pp)
    try:
        model = ParallelModel(training.model(), mesh, WEIGHT_DECAY, division.zero)
    except InputError as reason:
        return str(reason)
    outcome = take_steps(training, model, training.optimizer(model), STEPS, PARTS)
    mesh.close()
    return outcome if communicator.rank == 0 else None
