"""Data parallel: every rank has the model and a part of the batch; gradients are summed over the ranks.

The loss of a batch is a sum over its tokens (divided by their number, that of the whole batch), so its gradient is the
sum of what the ranks get from their rows, however many each has. Parameters are the same on all ranks at the start,
gradients after the sum, so parameters stay the same, bit for bit.

**Units.** Parameters are laid out as the model is built: one unit for each block, and one, the root, for what comes
before and after them. A unit's parameters lie one after another in one row of memory, and so do their gradients: one
operation sends them, and the optimiser moves them as vectors. The sum of a unit starts as soon as its gradients are
complete, while the backward goes on below it:

    backward   block 3   block 2   block 1   block 0   embedding
    sums                 block 3   block 2   block 1   block 0    root

When is a unit complete? When the gradient of its input is: every path from a weight of the block to the loss has been
walked by then. So a block's input passes through an operation that does nothing, but whose backward says so
(`BOUNDARY`). Gradients of the root may come from both ends (a tied table), and are summed last.

**Bytes** a rank sends in a step, for P bytes of gradients on n ranks: 2 (n - 1) / n P, those of an all_reduce; with
micro-batches the same, because only the last of them is followed by sums (`synchronise`).
Source: Li et al. 2020, PyTorch Distributed, arXiv:2006.15704, section 3.2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Parameter, Tensor, is_grad_enabled
from minillm.backend import Array
from minillm.errors import DtypeError
from minillm.nn import Module
from minillm.optim import ALIGN
from minillm.parallel.communicator import Communicator


def step_bytes(gradients: int, ranks: int) -> dict[str, int]:
    """What a rank sends in a step, in bytes: 2 (n - 1) / n of its gradients, padding included; n divides them."""
    return {"gradients": 2 * (ranks - 1) * gradients // ranks}


def boundary_forward(x, *, passed):
    return x, passed


def boundary_backward(dout, passed):
    passed()
    return (dout,)


BOUNDARY = Op("boundary", boundary_forward, boundary_backward, aliases=True)


def boundary(x: Tensor, passed: Callable[[], None]) -> Tensor:
    """x itself; `passed` is called when the gradient of x is complete, before it goes further down."""
    return BOUNDARY(x, passed=passed)


class Part(NamedTuple):
    """What this rank keeps of a unit's parameters in one group of the optimiser."""

    group: int
    start: int  # in what is kept of the unit
    parameter: Parameter  # a vector, for the optimiser


class Unit:
    """Parameters that are sent together: one after another in one row, the groups of the optimiser one after another.

    data, grad: the row of the parameters and that of their gradients, (size,); None while there is none.
    kept_data, kept_grad: the part of each that this rank keeps, `mine` of the row; here all of it.
    parts: of each group, its part of what is kept, as the optimiser gets it.
    """

    data: Array = None
    grad: Array = None
    kept_data: Array
    kept_grad: Array
    parts: list[Part]

    def __init__(self, name: str, groups: list[list[Parameter]], ranks: int):
        self.name = name
        self.parameters = [parameter for group in groups for parameter in group]
        self.dtype = self.parameters[0].dtype
        if any(parameter.dtype != self.dtype for parameter in self.parameters):
            raise DtypeError(
                f"DataParallel: the parameters of {name or 'the model'} have several dtypes; convert to one"
            )
        self.starts: list[int] = []
        self.spans: list[tuple[int, int]] = []  # of each group
        self.size = 0
        for group in groups:
            first = self.size
            for parameter in group:
                self.starts.append(self.size)
                self.size += -(-parameter.numel() // ALIGN) * ALIGN
            self.spans.append((first, self.size))
        self.size = -(-self.size // (ranks * ALIGN)) * ranks * ALIGN
        self.mine = slice(0, self.size)
        self.work: Any = None  # what is under way with the gradients: a Work, or None
        self.summed = False  # whether it has been started since the last step

    def views(self, row: Array) -> list[Array]:
        """Of each parameter, its part of a row, in its shape."""
        return [
            row[start : start + parameter.numel()].reshape(parameter.shape)
            for parameter, start in zip(self.parameters, self.starts, strict=True)
        ]

    def row_of(self, arrays: Mapping[str, Array], like: Array) -> Array:
        """A row like another, with these arrays in it, by the names of the parameters."""
        row = np.zeros_like(like, shape=self.size)
        for parameter, view in zip(self.parameters, self.views(row), strict=True):
            view[...] = arrays[parameter.name]
        return row

    def arrays_of(self, row: Array) -> dict[str, Array]:
        """The inverse of row_of."""
        return {p.name: view for p, view in zip(self.parameters, self.views(row), strict=True)}

    def use_data(self, row: Array) -> None:
        """Have the parameters read from a row."""
        self.data = row[: self.size]
        for parameter, view in zip(self.parameters, self.views(self.data), strict=True):
            parameter.data = view

    def use_grad(self, row: Array) -> None:
        """Have gradients written to a row."""
        self.grad = row[: self.size]
        for parameter, view in zip(self.parameters, self.views(self.grad), strict=True):
            parameter.grad, parameter.grad_buffer = None, view

    def complete_gradients(self) -> Array:
        """The row of gradients, with zeros for a parameter that got none."""
        for parameter in self.parameters:
            assert parameter.grad_buffer is not None
            if parameter.grad is None:
                parameter.grad_buffer[...] = 0
            elif parameter.grad is not parameter.grad_buffer:  # set by hand
                parameter.grad_buffer[...] = parameter.grad
        return self.grad

    def keep(self, data: Array, grad: Array) -> None:
        """Settle what this rank keeps, and make the parameters of the optimiser from it."""
        self.kept_data, self.kept_grad, self.parts = data, grad, []
        for number, (first, stop) in enumerate(self.spans):
            start = max(first, self.mine.start) - self.mine.start
            stop = min(stop, self.mine.stop) - self.mine.start
            if start < stop:
                part = Parameter(data[start:stop], f"{self.name or 'root'}[{number}]")
                part.grad_buffer = grad[start:stop]
                self.parts.append(Part(number, start, part))


class DataParallel:
    """Sums the gradients of a model over the ranks of a communicator.

        parallel = DataParallel(model, communicator, decay_groups(model.parameters(), 0.1))
        optimizer = AdamW(parallel.groups, lr)
        ...
        parallel.begin()                        # of each micro-batch
        (model.loss(...) / tokens).backward()   # of this rank's rows; tokens are those of the whole batch
        ...
        parallel.finish()                       # once, before optimizer.step()
        optimizer.step()
        parallel.publish()                      # after it

    groups: as an optimiser takes them; frozen parameters stay out of both. Set `synchronise` to False for all
    micro-batches but the last. The optimiser's groups are rows, so its state has the names of units: see mesh.py
    for that by parameter.
    Raises: DtypeError for a unit of several dtypes.
    """

    synchronise = True

    def __init__(self, model: Module, communicator: Communicator, groups: Iterable[Mapping[str, Any]]):
        self.model, self.communicator = model, communicator
        given = [{**group, "params": list(group["params"])} for group in groups]
        group_of = {id(p): number for number, group in enumerate(given) for p in group["params"] if p.requires_grad}
        modules = model_blocks(model)
        unit_of = {id(p): path for path, block in modules.items() for p in block.parameters()}
        members: dict[str, list[list[Parameter]]] = {path: [[] for _ in given] for path in (*modules, "")}
        for parameter in model.parameters():
            if id(parameter) in group_of:
                members[unit_of.get(id(parameter), "")][group_of[id(parameter)]].append(parameter)
        self.units = {
            path: Unit(path, parameters, communicator.size) for path, parameters in members.items() if any(parameters)
        }
        self.blocks = [self.units[path] for path in modules if path in self.units]
        self.root = self.units.get("")
        for unit in self.units.values():
            self.lay_out(unit)
        self.groups: list[dict[str, Any]] = []
        for number, group in enumerate(given):
            options = {name: value for name, value in group.items() if name != "params"}
            parts = [part.parameter for unit in self.units.values() for part in unit.parts if part.group == number]
            self.groups += [{**options, "params": [part]} for part in parts]
        for path, block in modules.items():
            if path in self.units:
                vars(block)["forward"] = functools.partial(self._forward, self.units[path], block.forward)

    def order(self) -> list[Unit]:
        """The units in the order in which their gradients are summed, on every rank."""
        return [*reversed(self.blocks), *([self.root] if self.root else [])]

    # --- what a way of dividing the memory decides -------------------------------------------------------------------

    def lay_out(self, unit: Unit) -> None:
        """Give a unit its memory, and the parameters their values in it."""
        row = unit.row_of({p.name: p.data for p in unit.parameters}, unit.parameters[0].data)
        unit.use_data(row)
        unit.use_grad(np.zeros_like(row))
        unit.keep(row, unit.grad)

    def start_sum(self, unit: Unit) -> None:
        """Start to sum a unit's gradients, which are complete on this rank."""
        unit.work = self.communicator.all_reduce(unit.complete_gradients(), what="gradients")

    def end_sum(self, unit: Unit) -> None:
        """Have the sum in what is kept."""
        unit.work.wait()
        unit.work = None

    def before_forward(self, unit: Unit) -> None:
        """A block is about to be computed."""

    def before_backward(self, unit: Unit) -> None:
        """The backward is about to enter a block."""

    def begin(self) -> None:
        """A micro-batch begins."""

    def publish(self) -> None:
        """The optimiser has moved what this rank keeps: let the others have it."""
        for unit in self.units.values():
            for parameter in unit.parameters:
                parameter.version += 1

    # --- a step ------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Return when all gradients are summed; the optimiser may step."""
        for unit in self.order():  # what no hook has reached: the root; blocks whose input needs no gradient
            self._sum(unit)
        for unit in self.order():
            if unit.work is not None:
                self.end_sum(unit)
            unit.summed = False
            for part in unit.parts:
                part.parameter.grad = part.parameter.grad_buffer

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for unit in self.units.values():
            for parameter in [*unit.parameters, *(part.parameter for part in unit.parts)]:
                parameter.grad = None

    def _sum(self, unit: Unit) -> None:
        if not unit.summed:
            unit.summed = True
            self.start_sum(unit)

    def _forward(self, unit: Unit, forward: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A block's forward, between two boundaries."""
        self.before_forward(unit)
        if not is_grad_enabled():
            return forward(x, *args, **kwargs)
        y = forward(boundary(x, functools.partial(self._passed, unit)), *args, **kwargs)
        return boundary(y, functools.partial(self.before_backward, unit))

    def _passed(self, unit: Unit) -> None:
        if self.synchronise:
            self._sum(unit)

    def memory(self) -> dict[str, int]:
        """Bytes that this rank keeps from step to step: parameters and gradients; and `working`, rows used in turn."""
        units = self.units.values()
        return {
            "parameters": sum(unit.kept_data.nbytes for unit in units),
            "gradients": sum(unit.kept_grad.nbytes for unit in units),
            "working": 0,
        }


def model_blocks(model: Module) -> dict[str, Module]:
    """The blocks of a model by path: the modules in its lists, but not those within them."""
    found: dict[str, Module] = {}
    for path, module in model.named_modules():
        if path.rpartition(".")[2].isdigit() and not any(path.startswith(f"{other}.") for other in found):
            found[path] = module
    return found
