"""Claims about gradients: those of every operation, and that of the whole model, against differences."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import numpy as np

from minillm.autograd import observe
from minillm.engine import engine
from minillm.study.gradcheck import Result, run_cases
from minillm.study.ledger.claim import Measured
from minillm.study.ledger.subject import Subject
from minillm.testing import check_gradients

TOLERANCE: float = inspect.signature(check_gradients).parameters["tolerance"].default


def every_op(subject: Subject) -> Measured:
    """The gradient-check table: operations that a step of this model runs at variants of their inputs too.

    A central difference is off by about 1e-10 (see minillm.testing), and rows with steep functions by 1e-7; a wrong
    backward is off by much more than the bound, the tolerance of `check_gradients`.
    """
    used = {name for run in ("plain", "fast") for name in operations_of(subject, run)}
    results = run_cases(variants_of=used)
    worst: Result = max(results, key=lambda result: result.error)
    where = f"{worst.op}, {worst.engine} pair, {worst.case}"
    if worst.passed:
        return Measured(worst.error, TOLERANCE, where)
    return Measured(
        worst.error, TOLERANCE, f"{where}, which `minillm gradcheck {worst.op}` shows alone: {worst.report}"
    )


def operations_of(subject: Subject, run: str) -> set[str]:
    """The names of the operations of a step, in one engine."""
    names: set[str] = set()
    model = subject.model("float32")
    with engine(run), observe(on_forward=lambda call: names.add(call.op.name)):
        subject.start.loss(model)
    return names


def whole_model(subject: Subject) -> Measured:
    """The gradient of the loss along random directions, one for each kind of parameter, through all blocks at once.

    With v of length |w|, the central difference (L(w + h v) - L(w - h v)) / 2h is off by h^2 L''' / 6, which is a third
    of what it changes by when h is doubled, and by the rounding r of a loss over h. The two are of equal order at
    h = r^(1/3), about r^(2/3). Errors are relative to the largest of the products g v, of any kind.
    """
    model = subject.model()
    subject.start.loss(model).backward()
    rounding = subject.bound
    step = rounding ** (1 / 3)
    rng, kinds = np.random.default_rng(0), kinds_of(model)
    found = []
    for kind, parameters in kinds.items():
        directions = [rng.standard_normal(parameter.shape) * size_of(parameter.data) for parameter in parameters]
        terms = [g * v for (g, v) in zip(map(gradient, parameters), directions, strict=True)]
        received = sum(float(term.sum()) for term in terms)
        length = math.sqrt(sum(float((term**2).sum()) for term in terms))
        near, loss = difference(subject, model, parameters, directions, step)
        far, _ = difference(subject, model, parameters, directions, 2 * step)
        found.append(
            (abs(near - received), abs(far - near) + rounding * abs(loss) / step, max(abs(near), length), kind)
        )
    scale = max(size for *_, size, _ in found)
    error, bound, _, kind = max(found, key=lambda one: one[0] / one[1])
    return Measured(error / scale, bound / scale, kind)


def kinds_of(model: Any) -> dict[str, list[Any]]:
    """The parameters that are trained, by their names without the numbers of blocks."""
    kinds: dict[str, list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kinds.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(parameter)
    return kinds


def size_of(array: Any) -> float:
    """The usual size of an element; 1 where all are 0."""
    return float(np.sqrt((array**2).mean())) or 1.0


def gradient(parameter: Any) -> Any:
    """The gradient, zeros where there is none."""
    return np.zeros(parameter.shape) if parameter.grad is None else parameter.grad


def difference(
    subject: Subject, model: Any, parameters: list[Any], directions: list[Any], step: float
) -> tuple[float, float]:
    """The central difference of the loss along directions, and the loss there."""
    before = [parameter.data for parameter in parameters]
    losses = []
    for sign in (1, -1):
        for parameter, data, direction in zip(parameters, before, directions, strict=True):
            parameter.data = data + sign * step * direction
        losses.append(subject.start.loss(model).item())
    for parameter, data in zip(parameters, before, strict=True):
        parameter.data = data
    return (losses[0] - losses[1]) / (2 * step), losses[0]
