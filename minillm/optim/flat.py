"""Flat buffers: an optimiser's parameters lie one after another in one array, and so do their gradients and moments.

`parameter.data` and `parameter.grad` become views of these arrays (see `_lay_out`): the arrays that a parameter had
before the optimiser was built are no longer its own. An update is then one pass over long arrays, however
many parameters there are, in chunks so small that their temporaries stay in cache.

Every parameter counts its own steps, because AdamW's bias correction depends on how many gradients a parameter has
had. Neighbours with equal counts are updated in one pass; usually that is the whole buffer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.backend import Array
from minillm.errors import GraphError, ShapeError

CHUNK = 65536  # elements that are updated at a time: four arrays of 256 KB
ALIGN = 16  # every parameter starts on a 64-byte cache line


class FlatGroup:
    """Parameters of one dtype and one set of options, laid out one after another in flat buffers.

    options: the group's entry in `Optimizer.param_groups`. The optimiser reads these options at each step.
    data, grad, masters, moments: the flat buffers, (size,) each, where size counts the padding too.
    flat: arrays in which data and gradients lie in this order already, as in parallel training; they are kept.
    steps: for each parameter, the number of updates that have moved it.
    counted: the slices of `grad` that enter the norm; None for all that have a gradient. In parallel training, several
        ranks may hold the same gradient, and one of them counts it.
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
        self.stops: list[int] = []  # end of each parameter, including its padding; the padding is 0
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
        self.masters = self.data
        accumulator = np.promote_types(first.dtype, np.float32)
        if accumulator != first.dtype:  # the first step copies the parameters into them
            self.masters = np.zeros_like(first, shape=self.data.size, dtype=accumulator, order="C")
        self.moments = {name: np.zeros_like(self.masters) for name in moments}
        self.views: list[Array] = []
        self.buffers: list[Array] = []
        for number, parameter in enumerate(parameters):
            self._lay_out(number, parameter)

    def _lay_out(self, number: int, parameter: Any) -> None:
        """Move a parameter and its gradient into the flat buffers, of which they are views from then on."""
        view, buffer = self.view(self.data, number), self.view(self.grad, number)
        view[...] = parameter.data
        parameter.data = view
        if hasattr(parameter, "grad_buffer"):  # a Parameter; the gradient of another leaf is copied at each step
            parameter.grad_buffer = buffer
        if parameter.grad is not None:
            buffer[...] = parameter.grad
            parameter.grad = buffer
        self.views.append(view)
        self.buffers.append(buffer)

    def view(self, flat: Array, number: int) -> Array:
        """The part of a flat buffer (size,) that belongs to parameter `number`, in the shape of the parameter."""
        parameter, start = self.parameters[number], self.starts[number]
        return flat[start : start + parameter.numel()].reshape(parameter.shape)

    def name(self, number: int) -> str:
        """The name of parameter `number` in errors."""
        return getattr(self.parameters[number], "name", "") or f"number {number} of its group, without a name,"

    def parts(self, part: slice) -> list[Array]:
        """A slice (n,) of data, grad, masters and each moment."""
        return [flat[part] for flat in (self.data, self.grad, self.masters, *self.moments.values())]

    def parts_of(self, number: int) -> list[Array]:
        """Data, grad, masters and each moment of parameter `number`, in its shape."""
        return [self.view(flat, number) for flat in (self.data, self.grad, self.masters, *self.moments.values())]

    def moving(self) -> list[tuple[int, int]]:
        """The number of each parameter that has a gradient, with the number of steps that it has made."""
        return [(i, self.steps[i]) for i, parameter in enumerate(self.parameters) if parameter.grad is not None]

    def spans(self) -> list[tuple[slice, int]]:
        """Slices of the buffers that have gradients, each with the number of steps that its parameters have made.

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
                self._copy_gradient(number, parameter)
            start, stop, steps = self.starts[number], self.stops[number], self.steps[number]
            if found and found[-1][1] == start and found[-1][2] == steps:
                found[-1][1] = stop
            else:
                found.append([start, stop, steps])
        return [(slice(start, stop), steps) for start, stop, steps in found]

    def _copy_gradient(self, number: int, parameter: Any) -> None:
        """Copy a gradient that was set by hand, and so lies elsewhere, into the buffer."""
        if np.shape(parameter.grad) != parameter.shape:
            raise ShapeError(
                f"step: the gradient of parameter {self.name(number)} has shape {np.shape(parameter.grad)}, but "
                f"the parameter has shape {parameter.shape}; give a gradient of that shape"
            )
        self.buffers[number][...] = parameter.grad
        parameter.grad = self.buffers[number]

    def count_step(self) -> None:
        """Count a step for every parameter with a gradient."""
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self.steps[number] += 1
                if hasattr(parameter, "version"):
                    parameter.version += 1

    def gradients_in_norm(self, whole: bool) -> list[Array]:
        """The gradients that enter the norm, in as few pieces as possible, or in chunks."""
        spans = [span for span, _ in self.spans()] if self.counted is None else self.counted
        return [self.grad[part] for span in spans for part in ([span] if whole else chunks(span))]


def chunks(span: slice) -> list[slice]:
    """The slice, cut into pieces of at most CHUNK elements."""
    return [slice(start, min(start + CHUNK, span.stop)) for start in range(span.start, span.stop, CHUNK)]
