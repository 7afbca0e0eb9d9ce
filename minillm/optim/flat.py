"""Flat buffers: the parameters of an optimiser one after another in memory, and so their gradients and moments.

`parameter.data` and `parameter.grad` become views into one long array each. An update is then one pass over long
arrays, in chunks that stay in cache, whatever the number of parameters; a chunk's temporaries never reach memory.

Every parameter counts its own steps, because AdamW's bias correction depends on how many gradients a parameter has
had. Neighbours with equal counts are updated in one pass; in the usual case that is the whole buffer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.backend import Array
from minillm.errors import GraphError, ShapeError

CHUNK = 65536  # elements updated at a time: four arrays of 256 KB
ALIGN = 16  # every parameter starts on a 64-byte cache line


class FlatGroup:
    """Parameters of one dtype and one set of options, laid out one after another in flat buffers.

    options: the group's entry in `Optimizer.param_groups`, read anew at each step.
    flat: the arrays in which data and gradients lie so already, as in parallel training; they stay where they are.
    steps: of each parameter, how many updates have moved it.
    counted: the slices of `grad` that the norm is of; None: those with a gradient. In parallel training another rank
    may count what is here too.
    """

    counted: list[slice] | None = None

    def __init__(
        self,
        parameters: list[Any],
        options: dict[str, Any],
        moments: tuple[str, ...],
        flat: tuple[Array, Array] | None = None,
    ):
        self.parameters = parameters
        self.options = options
        self.steps = [0] * len(parameters)
        self.starts: list[int] = []
        self.stops: list[int] = []  # with the gap that follows, in which all numbers are 0
        size = 0
        for parameter in parameters:
            self.starts.append(size)
            size += -(-parameter.numel() // ALIGN) * ALIGN
            self.stops.append(size)
        first = parameters[0].data
        if flat is not None:
            self.data, self.grad = flat
        else:
            self.data, self.grad = (np.zeros_like(first, shape=size, order="C") for _ in range(2))
        self.masters = self.data  # for fewer bits than float32 apart, and taken from the parameters at the first step
        accumulator = np.promote_types(first.dtype, np.float32)
        if accumulator != first.dtype:
            self.masters = np.zeros_like(first, shape=self.data.size, dtype=accumulator, order="C")
        self.moments = {name: np.zeros_like(self.masters) for name in moments}
        self.views: list[Array] = []
        self.buffers: list[Array] = []
        for number, parameter in enumerate(parameters):
            self._lay_out(number, parameter)

    def _lay_out(self, number: int, parameter: Any) -> None:
        view, buffer = self.view(self.data, number), self.view(self.grad, number)
        view[...] = parameter.data
        parameter.data = view
        if hasattr(parameter, "grad_buffer"):  # a Parameter; of another leaf the gradient is copied at each step
            parameter.grad_buffer = buffer
        if parameter.grad is not None:
            buffer[...] = parameter.grad
            parameter.grad = buffer
        self.views.append(view)
        self.buffers.append(buffer)

    def view(self, flat: Array, number: int) -> Array:
        """The part of a flat buffer that belongs to parameter `number`, in its shape."""
        parameter, start = self.parameters[number], self.starts[number]
        return flat[start : start + parameter.numel()].reshape(parameter.shape)

    def name(self, number: int) -> str:
        """Of parameter `number`, for errors."""
        return getattr(self.parameters[number], "name", "") or f"number {number} of its group, without a name,"

    def parts(self, part: slice) -> list[Array]:
        """That part of data, grad, masters and each moment."""
        return [flat[part] for flat in (self.data, self.grad, self.masters, *self.moments.values())]

    def spans(self) -> list[tuple[slice, int]]:
        """What has a gradient, as slices of the buffers, each with the number of steps that all in it have made.

        Raises: GraphError for a parameter whose array was replaced; ShapeError for a gradient of another shape.
        """
        found: list[list[int]] = []  # first, one past the last, steps
        for number, parameter in enumerate(self.parameters):
            if parameter.data is not self.views[number]:
                raise GraphError(
                    f"step: the array of parameter {self.name(number)} was replaced after the optimiser was built; "
                    "write into parameter.data[...], or build the optimiser after model.to()"
                )
            if parameter.grad is None:
                continue
            if parameter.grad is not self.buffers[number]:
                self._take(number, parameter)
            start, stop, steps = self.starts[number], self.stops[number], self.steps[number]
            if found and found[-1][1] == start and found[-1][2] == steps:
                found[-1][1] = stop
            else:
                found.append([start, stop, steps])
        return [(slice(start, stop), steps) for start, stop, steps in found]

    def _take(self, number: int, parameter: Any) -> None:
        """Copy a gradient that was set by hand, or lies elsewhere, into the buffer."""
        if np.shape(parameter.grad) != parameter.shape:
            raise ShapeError(
                f"step: the gradient of parameter {self.name(number)} has shape {np.shape(parameter.grad)}, but "
                f"the parameter has shape {parameter.shape}; give a gradient of that shape"
            )
        self.buffers[number][...] = parameter.grad
        parameter.grad = self.buffers[number]

    def count_step(self) -> None:
        """Note that every parameter with a gradient has been moved once more."""
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self.steps[number] += 1
                if hasattr(parameter, "version"):
                    parameter.version += 1

    def counted_gradients(self, whole: bool = False) -> list[Array]:
        """The gradients that the norm is of, in chunks or in as few pieces as can be."""
        spans = [span for span, _ in self.spans()] if self.counted is None else self.counted
        return [self.grad[part] for span in spans for part in ([span] if whole else chunks(span))]


def chunks(span: slice) -> list[slice]:
    """A slice, cut into pieces of at most CHUNK."""
    return [slice(start, min(start + CHUNK, span.stop)) for start in range(span.start, span.stop, CHUNK)]
