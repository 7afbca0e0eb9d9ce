"""A picture of a pipeline's schedule, measured from a run: who computed which micro-batch when, and who waited.

    measured = measure(stages=4, micro_batches=8, kind="1f1b")
    draw(measured, Path("picture.png"))

Stages are processes on this machine (launch.py), and train a small GPT-2 of two layers a stage. A machine with fewer
cores than stages gives each of them less than a core, so what they compute takes longer; the title says so.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minillm import random
from minillm.errors import InputError
from minillm.files import writing
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.parallel.communicator import Communicator
from minillm.parallel.pipeline import Event, bubble_fraction, check_schedule, cut, idle_fraction
from minillm.tuning import tuned_process

ROWS, CONTEXT, VOCABULARY, CHANNELS = 8, 64, 64, 128  # of a micro-batch and of the model
WARM_UP, STEPS = 2, 5  # steps before, and those of which the shortest is shown
COLORS = {"forward": "#9dbbd8", "backward": "#e0a58f"}


class Measured(NamedTuple):
    """A step of a pipeline: its events, in seconds from the first of them."""

    kind: str
    stages: int
    micro_batches: int
    events: list[Event]

    def seconds(self) -> float:
        """Seconds from the start of the first event to the end of the last."""
        return max(event.end for event in self.events)

    def title(self) -> str:
        """The schedule and its bubble fraction, measured and by the formula."""
        cores = os.cpu_count() or self.stages
        crowded = f" on {cores} core{'s' * (cores > 1)}" if cores < self.stages else ""
        theory = bubble_fraction(self.stages, self.micro_batches)
        return (
            f"{self.kind}, {self.stages} stage{'s' * (self.stages > 1)}{crowded}, {self.micro_batches} "
            f"micro-batch{'es' * (self.micro_batches > 1)}: bubble {idle_fraction(self.events):.0%} measured, "
            f"{theory:.0%} in theory"
        )


def measure(stages: int = 4, micro_batches: int = 8, kind: str = "1f1b") -> Measured:
    """Run a pipeline on this machine, and give its shortest step.

    Raises: InputError for fewer than one stage or micro-batch, or an unknown schedule.
    """
    from minillm.parallel.launch import launch

    check_schedule(kind)
    if stages < 1 or micro_batches < 1:
        raise InputError(f"pipeline-picture: {stages=} and {micro_batches=}; give 1 or more of each")
    steps = zip(*launch(events_of_steps, stages, kind, micro_batches), strict=True)  # of each step, those of all stages
    return Measured(kind, stages, micro_batches, shortest([[e for own in step for e in own] for step in steps]))


def events_of_steps(communicator: Communicator, kind: str, micro_batches: int) -> list[list[Event]]:
    """The events of this stage in each step of training a small GPT-2."""
    random.manual_seed(0)
    layers = 2 * communicator.size
    stage = cut(GPT2(GPT2Config(VOCABULARY, CONTEXT, layers, heads=4, channels=CHANNELS)), communicator, kind)
    shape = 2, ROWS * micro_batches, CONTEXT
    ids, targets = np.random.default_rng(0).integers(0, VOCABULARY, shape)
    found = []
    with tuned_process():
        for _ in range(WARM_UP + STEPS):
            stage.model.zero_grad()
            stage.events = []
            communicator.barrier()
            stage.accumulate_gradients(ids, targets, micro_batches)
            found.append(stage.events)
    stage.close()
    return found[WARM_UP:]


def shortest(steps: list[list[Event]]) -> list[Event]:
    """The events of the shortest step, in seconds from its first; the clock is one for all processes of a machine."""
    spans = [max(e.end for e in events) - min(e.start for e in events) for events in steps]
    events = steps[spans.index(min(spans))]
    first = min(event.start for event in events)
    return [event._replace(start=event.start - first, end=event.end - first) for event in events]


def draw(measured: Measured, path: Path) -> None:
    """Write the picture as PNG: a row for each stage, a bar for each forward and backward, with its micro-batch."""
    from matplotlib.figure import Figure  # no pyplot: it would look for a display

    span = 1e3 * measured.seconds()
    width = max(7.0, min(30.0, 1.2 * measured.micro_batches))
    figure = Figure(figsize=(width, 1.4 + 0.5 * measured.stages), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for kind, color in COLORS.items():
        chosen = [event for event in measured.events if event.kind == kind]
        starts, lengths = ([1e3 * value for value in values] for values in _starts_and_lengths(chosen))
        rows = [event.stage for event in chosen]
        axes.barh(rows, lengths, 0.8, starts, color=color, edgecolor="white", linewidth=0.5, label=kind)
        for event, start, length in zip(chosen, starts, lengths, strict=True):
            if length * width > 0.17 * span:  # inches: a number fits
                axes.text(start + length / 2, event.stage, str(event.micro_batch), ha="center", va="center", fontsize=7)
    axes.set_title(measured.title(), fontsize=11, wrap=True)
    axes.set(xlabel="milliseconds", xlim=(0, span))
    axes.set_yticks(range(measured.stages), [f"stage {stage}" for stage in range(measured.stages)])
    axes.invert_yaxis()
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    with writing("pipeline-picture", path) as unfinished:
        figure.savefig(unfinished, format="png")


def _starts_and_lengths(events: list[Event]) -> tuple[list[float], list[float]]:
    return [event.start for event in events], [event.end - event.start for event in events]
