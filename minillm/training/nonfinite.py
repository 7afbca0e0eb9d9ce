"""Losses and gradients that are not finite, and losses that jump.

A step whose loss, or whose norm of the gradient, is NaN or infinite changes no weight and no moment. The batch is then
computed once more, with the dropout that it had, and every operation is looked at: the first one that made such a
number is named. With `--nonfinite stop` the run ends there; with `--nonfinite skip` it goes on with the next batch. The
step counts all the same, so that the schedule and the order of the data stay those of a run without it. MOST_SKIPPED
steps in a row end the run: one batch can be bad by itself, but ten that share nothing but the weights cannot.

A loss is a *spike* if it lies above the median of the WINDOW losses before it by more than SPIKE times their median
distance from that median. With losses spread as a normal distribution, less than one step in a billion is.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from minillm.autograd import Backward, Forward, observe
from minillm.errors import InputError
from minillm.finite import kinds_of, made
from minillm.training.config import TrainConfig

MOST_SKIPPED = 10
WINDOW = 50  # losses
SPIKE = 10.0


def check_finite(config: TrainConfig, step: int, what: str, value: float, maker: str = "") -> None:
    """Raise InputError for a value that is infinite or not a number, with what made it and what to do about it."""
    if not math.isfinite(value):
        raise InputError(
            f"train: at step {step} the {what} is {value}{maker}, as happens when steps are too large; train again "
            f"with a lower --lr (now {config.lr}) or a longer --warmup (now {config.warmup}), or give --nonfinite skip"
        )


def problem_of(loss: float, grad_norm: float) -> str:
    """The value that is not finite, such as `loss is nan`; an empty text if both are finite."""
    if not math.isfinite(loss):
        return f"loss is {loss}"
    return "" if math.isfinite(grad_norm) else f"norm of the gradient is {grad_norm}"


def maker(repeat: Callable[[], Any]) -> str:
    """The operation that first made such a number, in words that follow `the loss is nan`; empty if none did.

    repeat: computes the loss and the gradients of the step once more. Operations of several ranks are looked at where
    they run, so a rank that finds nothing says so.
    """
    found: list[str] = []

    def look(call: Forward | Backward) -> None:
        if found:
            return
        results: Sequence[Any]
        if isinstance(call, Forward):
            half, given = "forward", [*call.inputs, *call.settings.values()]
            results = list(call.outputs)
        else:
            half, given = "backward", call.douts
            results = [dx for dx, edge in zip(call.dinputs, call.node.edges, strict=True) if edge is not None]
        before, after = kinds_of(given), kinds_of(results)
        layer = f" of {call.scope}" if call.scope else ""
        if new := made(before, after):
            found.append(f", which the {half} of {call.op.name}{layer} made first ({new})")
        elif half == "forward" and after.nan:
            found.append(
                f", and the forward of {call.op.name}{layer} is the first that reads NaN: weights or data hold it"
            )

    with observe(look, look):
        repeat()
    return found[0] if found else ""


def stop_or_skip(config: TrainConfig, step: int, problem: str, made_by: str, in_a_row: int) -> str:
    """The sentence that tells of a skipped step. in_a_row: skipped steps, this one included.

    Raises: InputError where the run is to stop.
    """
    told = f"at step {step} the {problem}{made_by}"
    if config.nonfinite == "stop":
        raise InputError(
            f"train: {told}; train again with a lower --lr (now {config.lr}) or a longer --warmup (now "
            f"{config.warmup}), or go on without such steps (--nonfinite skip)"
        )
    if in_a_row >= MOST_SKIPPED:
        raise InputError(
            f"train: {told}, the {in_a_row}th step in a row that is skipped, so the weights are at fault and not the "
            f"batch; resume from the last checkpoint with a lower --lr (now {config.lr})"
        )
    return f"{told}; the step is skipped, and no weight has changed"


class Spikes:
    """Tells losses that jump, from the losses before."""

    def __init__(self, losses: Iterable[float | None] = ()):
        self.losses: deque[float] = deque((loss for loss in losses if loss is not None), maxlen=WINDOW)

    def median_under(self, loss: float) -> float | None:
        """The median of the losses before, if this one is a spike; else None. The loss is one of them from now on."""
        before = sorted(self.losses)
        self.losses.append(loss)
        if len(before) < WINDOW or loss <= before[-1]:
            return None
        median = statistics.median(before)
        distance = statistics.median(abs(one - median) for one in before)
        return median if loss > median + SPIKE * distance else None
