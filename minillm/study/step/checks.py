"""A number of a trace beside its central difference: a gradient of one op, or of the whole loss.

    check_number(trace, trace.find("layernorm backward in h.0.ln_2"), "dx", (0, 3, 5))
    check_number(trace, trace.parameters["h.0.ln_2.weight"], "grad", (5,))

For an op, f is its forward and dy the gradient that reached it: the difference is <dy, f(x + h) - f(x - h)> / 2h. An
element of f that stays as it is counts 0, also where it is minus infinity, such as a score that is masked. For a
parameter it is that of the loss, computed again from the weights before the update. Both are computed in float64, while
the number in the trace has the precision of the step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minillm import random as drawing
from minillm.autograd import no_grad
from minillm.backend import Array
from minillm.engine import engine
from minillm.errors import InputError
from minillm.study.step.records import ParameterStop, StepTrace, Stop
from minillm.testing.subject import difference_step

TOLERANCE = 1e-3  # of the largest gradient in the array: float32 and the curve of f


class NumberCheck(NamedTuple):
    """A number of a trace and its central difference."""

    name: str
    place: tuple[int, ...]
    analytic: float
    numeric: float
    largest: float  # the largest absolute value in the array that the number is from

    @property
    def agrees(self) -> bool:
        """True if the two differ by less than a thousandth of the largest number of the array."""
        return abs(self.analytic - self.numeric) <= TOLERANCE * self.largest + 1e-9

    def __str__(self) -> str:
        place = f"{self.name}[{', '.join(map(str, self.place))}]"
        verdict = "they agree" if self.agrees else "THEY DIFFER"
        return f"{place} = {self.analytic:.7g} by the backward, {self.numeric:.7g} by differences: {verdict}"


def check_number(trace: StepTrace, stop: Stop, name: str, index: Sequence[int]) -> NumberCheck:
    """Compare one number of a backward's gradients, or of a parameter's gradient, with its central difference.

    name: of a gradient that the backward returned, such as dx; for a parameter `grad`.
    Raises: InputError for what has no difference: an input without a gradient, an array that was left out.
    """
    if isinstance(stop, ParameterStop):
        if name != "grad":
            raise InputError(f"check_number: {name!r} of {stop.title} is no gradient; give grad")
        return LossChecker(trace).check(stop.scope, index)
    return _check_op(trace, stop, name, tuple(index))


class LossChecker:
    """Checks gradients of parameters against differences of the loss, with one copy of the model for all of them."""

    def __init__(self, trace: StepTrace):
        if trace.rerun is None:
            raise InputError("check_number: the loss cannot be computed again; make the trace with trace_step")
        model, self.compute_loss = trace.rerun
        self.trace = trace
        self.model = copy.deepcopy(model).to("float64")
        self.parameters = dict(self.model.named_parameters())
        for name, stop in trace.parameters.items():
            if stop.before is None:
                raise InputError(f"check_number: {name} was left out of the trace; trace with a larger `largest`")
            self.parameters[name].data[...] = stop.before

    def check(self, parameter: str, index: Sequence[int]) -> NumberCheck:
        """Compare one number of a parameter's gradient with the difference of the loss."""
        stop = self.trace.parameters.get(parameter)
        if stop is None or stop.grad is None:
            raise InputError(f"check_number: the trace has no gradient of {parameter!r}")
        index = _checked("grad", index, stop.grad)
        data = self.parameters[parameter].data
        numeric = _difference(data, index, lambda: [self._loss()], [np.ones(())])
        return NumberCheck(parameter, index, float(stop.grad[index]), numeric, _largest(stop.grad))

    def _loss(self) -> Array:
        with no_grad(), engine("fast"), drawing.using(drawing.Generator(self.trace.seed)):
            return np.asarray(self.compute_loss(self.model).item())


def _check_op(trace: StepTrace, stop: Stop, name: str, index: tuple[int, ...]) -> NumberCheck:
    names = [value.name for value in stop.outputs]
    if stop.kind == "backward" and not names:
        raise InputError(f"check_number: {stop.title} has not returned yet; go on to the next operation first")
    if stop.kind == "backward" and stop.partner is None:
        raise InputError(f"check_number: the forward of {stop.title} was not traced; trace the whole step")
    if stop.kind != "backward" or name not in names or stop.partner is None:
        raise InputError(f"check_number: {stop.title} returned no gradient {name!r}; it has {', '.join(names)}")
    call, position = trace.stops[stop.partner].call, names.index(name)
    gradient, x = stop.outputs[position].array, call.inputs[position] if call else None
    if call is None or gradient is None or any(dy.shape is not None and dy.array is None for dy in stop.inputs):
        raise InputError(f"check_number: {name} of {stop.title} is not there, or an array that it needs was left out")
    if not isinstance(x, np.ndarray):
        raise InputError(f"check_number: {name} of {stop.title} is the gradient of {x}, which is no array")
    index = _checked(name, index, gradient)
    inputs = [
        np.array(one, np.float64) if getattr(one, "dtype", np.dtype(int)).kind == "f" else one for one in call.inputs
    ]

    if not np.isfinite(inputs[position][index]):
        place = f"{value_name(name)}[{', '.join(map(str, index))}]"
        raise InputError(f"check_number: {place} is {inputs[position][index]}, and a difference needs a finite number")

    def outputs() -> list[Array]:
        with np.errstate(all="ignore"):
            y, _ = call.op.forward(*inputs, **call.settings)
        return [np.asarray(one) for one in (y if isinstance(y, tuple) else (y,))]

    numeric = _difference(inputs[position], index, outputs, [dy.array for dy in stop.inputs])
    return NumberCheck(name, index, float(gradient[index]), numeric, _largest(gradient))


def value_name(gradient: str) -> str:
    """The name of the input whose gradient has this name: x of dx."""
    return gradient.removeprefix("d")


def _difference(
    x: Array, index: tuple[int, ...], function: Callable[[], list[Array]], douts: Sequence[Array | None]
) -> float:
    """The central difference of the outputs of a function of `x` along one of its elements, times their gradients."""
    before, step = x[index], difference_step(np.asarray(x[index]))
    try:
        x[index] = before + step
        above = [y.copy() for y in function()]
        x[index] = before - step
        below = [y.copy() for y in function()]
    finally:
        x[index] = before
    found = 0.0
    with np.errstate(all="ignore"):
        for dy, high, low in zip(douts, above, below, strict=True):
            if dy is not None:
                found += float(np.where(high == low, 0.0, np.asarray(dy, np.float64) * (high - low)).sum())
    return found / (2 * step)


def _checked(name: str, index: Any, array: Array) -> tuple[int, ...]:
    index = tuple(int(i) for i in index)
    if len(index) != array.ndim or not all(-size <= i < size for i, size in zip(index, array.shape, strict=True)):
        raise InputError(f"check_number: {name} has shape {array.shape}; {list(index)} is no index of it")
    return index


def _largest(array: Array) -> float:
    return float(np.abs(array).max(initial=0))
