"""The learning-rate range test: train for a while with a rate that grows, and see where the loss falls and breaks.

The rate grows by one factor each step, from LOW to HIGH. Each loss is smoothed: it is the mean of its neighbours, five
on each side. The loss stays where it is while the rate is too low, falls, has its minimum, and rises when steps are too
large. A tenth of the rate at the minimum is a good peak for a schedule; ten times it is too much.

Source: Smith 2015, "Cyclical learning rates for training neural networks" (arXiv:1506.01186), section 3.3; the tenth of
the minimum is fastai's rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from minillm.errors import InputError
from minillm.grad_mode import quiet
from minillm.study.doctor.finding import Finding
from minillm.training.prepare import make_optimizer
from minillm.training.whole_model import WholeModel

LOW, HIGH, STEPS = 1e-6, 1.0, 100
AROUND = 5  # steps on each side of one, in the smoothed loss
BROKEN = 2.0  # times the first loss, at which the test ends
LEARNS = 0.02  # share of the first loss by which it must fall


class Rates(NamedTuple):
    """The rates that were tried, the loss of the batch at each, and the loss smoothed; (n,) each."""

    rates: np.ndarray
    losses: np.ndarray
    smooth: np.ndarray

    @property
    def lowest(self) -> float:
        """The rate at which the smoothed loss is lowest."""
        return float(self.rates[int(self.smooth.argmin())])

    @property
    def suggested(self) -> float:
        """A tenth of it."""
        return self.lowest / 10

    @property
    def breaks(self) -> float | None:
        """The rate from which on the smoothed loss is above the one at the beginning; None if it never is."""
        (above,) = np.nonzero(self.smooth[self.smooth.argmin() :] > 1.05 * self.smooth[0])
        return float(self.rates[int(self.smooth.argmin()) + above[0]]) if len(above) else None

    @property
    def fall(self) -> float:
        """The share of the first loss by which it has fallen at the lowest place."""
        return float(1 - self.smooth.min() / self.smooth[0])


def range_test(task: Any, model: Any, steps: int = STEPS) -> Rates:
    """Train a model with rates from LOW to HIGH; the weights are put back afterwards.

    Raises: InputError for a task that samples its own data, whose loss does not tell.
    """
    if task.samples:
        raise InputError(f"doctor: the loss of {task.name} says nothing of a learning rate; leave --lr-range out")
    config = task.config
    before = {name: array.copy() for name, array in model.state_dict().items()}
    whole = WholeModel(model.train(), config.weight_decay)
    optimizer = make_optimizer(config, whole.groups)
    rates: list[float] = []
    losses: list[float] = []
    with quiet():
        for step in range(steps):
            rate = LOW * (HIGH / LOW) ** (step / (steps - 1))
            loss = float(whole.forward_backward(task.batch(step), 1, task))
            if not math.isfinite(loss):
                break
            rates.append(rate)
            losses.append(loss)
            if loss > BROKEN * losses[0] and step > steps // 4:
                break
            optimizer.lr = rate
            optimizer.clip_grad_norm(config.clip)
            optimizer.step()
    model.load_state_dict(before)
    model.eval()
    if len(rates) < 2:
        raise InputError(
            "doctor: the loss is no number in the first step, so no rate can be tried; leave --lr-range out"
        )
    smooth = [np.mean(losses[max(0, place - AROUND) : place + AROUND + 1]) for place in range(len(losses))]
    return Rates(np.array(rates), np.array(losses), np.array(smooth))


def judged(rates: Rates, lr: float) -> Iterator[Finding]:
    """Say where a learning rate stands among those that were tried."""
    if rates.fall < LEARNS:
        yield Finding(
            "error",
            "learning-rate-range",
            f"no rate from {LOW:g} to {rates.rates[-1]:.1g} lowers the loss of {rates.smooth[0]:.3f} by more than "
            f"{max(0.0, rates.fall):.1%} in {len(rates.rates)} steps: the model does not learn",
            "look at the other findings: are targets and gradients right?",
            "the picture",
        )
        return
    told = f"the loss is lowest, {rates.smooth.min():.3f} after {rates.smooth[0]:.3f}, at the rate {rates.lowest:.1e}"
    told += f", and is lost from {rates.breaks:.1e} on" if rates.breaks else ""
    limit = rates.breaks or 10 * rates.lowest
    if lr >= limit or lr < 0.01 * rates.suggested:
        kind = "too high" if lr >= limit else "too low"
        yield Finding(
            "warning",
            "learning-rate-range",
            f"lr={lr:g} is {kind}: {told}",
            f"give --lr {rates.suggested:.1g}",
            "the picture",
        )
    else:
        yield Finding(
            "note",
            "learning-rate-range",
            f"{told}; lr={lr:g} is among the rates that work",
            f"nothing; {rates.suggested:.1g}, a tenth of the lowest place, is usual",
            "the picture",
        )
