"""Gradients of a trace that the page can check: a few elements of each, with their central differences.

A page is offline and cannot run the model, so the differences are computed when it is written: for every gradient that
a backward returns and for every parameter's gradient, the largest element and a few that are drawn.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from minillm.backend import Array
from minillm.errors import InputError
from minillm.study.step.checks import LossChecker, NumberCheck, check_number
from minillm.study.step.records import StepTrace

PER_GRADIENT = 3  # elements of a gradient that one operation returns
LOSSES = 200  # elements of all parameters together: each takes two runs of the model
LARGEST_MODEL = 2_000_000  # weights; a larger model takes too long for hundreds of runs
LARGEST_ARRAY = 1 << 18  # elements of a gradient of one operation
OF_AN_OP = "The difference of <dy, f(x)>, where f is the forward of this operation alone, in float64."
OF_THE_LOSS = "The difference of the whole loss, computed again in float64."


def checked_samples(trace: StepTrace) -> dict[str, dict[str, Any]]:
    """The checked elements of each gradient: by "stop:name" for an operation, by its name for a parameter."""
    found = {}
    draw = np.random.default_rng(trace.seed)
    for stop in trace.of_kind("backward"):
        for value in stop.outputs:
            if value.array is None or value.array.size > LARGEST_ARRAY:
                continue
            checks = []
            for index in sample(value.array, PER_GRADIENT, draw):
                with contextlib.suppress(InputError):  # no difference: integers, an infinite number, what was left out
                    checks.append(check_number(trace, stop, value.name, index))
            call = f"check_number(trace, trace.stops[{stop.index}], {value.name!r}, index)"
            checks = [one for one in checks if np.isfinite(one.numeric)]
            if checks:
                found[f"{stop.index}:{value.name}"] = record(checks, call, OF_AN_OP)
    return found | _of_parameters(trace, draw)


def _of_parameters(trace: StepTrace, draw: np.random.Generator) -> dict[str, dict[str, Any]]:
    parameters = {name: stop.grad for name, stop in trace.parameters.items() if stop.grad is not None}
    weights = sum(gradient.size for gradient in parameters.values())
    if not parameters or weights > LARGEST_MODEL or trace.rerun is None:
        return {}
    checker = LossChecker(trace)
    count = max(1, min(PER_GRADIENT, LOSSES // len(parameters)))
    return {
        name: record(
            [checker.check(name, index) for index in sample(gradient, count, draw)],
            f"check_number(trace, trace.parameters[{name!r}], 'grad', index)",
            OF_THE_LOSS,
        )
        for name, gradient in parameters.items()
    }


def sample(array: Array, count: int, draw: np.random.Generator) -> list[tuple[int, ...]]:
    """The index of the largest element, and of others that are drawn among those that are not 0."""
    if not array.size:
        return []
    flat = np.abs(array.reshape(-1))
    others = np.flatnonzero(flat)
    chosen = {int(flat.argmax()), *map(int, draw.permutation(others)[: count - 1])}
    return [tuple(int(i) for i in np.unravel_index(one, array.shape)) for one in sorted(chosen)]


def record(checks: list[NumberCheck], call: str, about: str) -> dict[str, Any]:
    """The data of the page about the checked elements of one gradient."""
    elements = [
        {"index": one.place, "analytic": one.analytic, "numeric": one.numeric, "agrees": bool(one.agrees)}
        for one in checks
    ]
    return {"elements": elements, "call": call, "about": about}
