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
(`BOUNDARY`); a block that was computed several times is complete when the last of these has been walked. Sums start in
the order of the blocks, also on a rank that has skipped one. Gradients of the root may come from both ends (a tied
table), and are summed last. A parameter that several blocks share, or that is used beside its block too, belongs to it.

A parameter that no rank has used in a step has no gradient, as in one process, and is neither moved nor decayed. With
the loss ranks send which of their parameters have got one (`finish`); a rank waits for that only where one of its own
has not.

**Bytes** a rank sends in a step, for P bytes of gradients on n ranks: 2 (n - 1) / n P, those of an all_reduce; with
micro-batches the same, because only the last of them is followed by sums (`synchronise`). And 8 bytes for the loss and
for each parameter, times 2 (n - 1) / n.
Source: Li et al. 2020, PyTorch Distributed, arXiv:2006.15704, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Parameter, Tensor, is_grad_enabled
from minillm.backend import Array
from minillm.device import to_host
from minillm.errors import DtypeError, GraphError
from minillm.nn import Module
from minillm.optim import ALIGN
from minillm.parallel.communicator import Communicator, agree_on_weights
from minillm.parallel.wrapper import Wrapper, replace


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
    """What this rank keeps of a unit's parameters in one group of the optimiser.

    start: in what is kept of the unit. data, grad: that part of the rows.
    pieces: of each parameter that reaches into it, by its number in the unit, a vector in `data`, for the optimiser.
    """

    group: int
    start: int
    data: Array
    grad: Array
    pieces: dict[int, Parameter]


class Unit:
    """Parameters that are sent together: one after another in one row, the groups of the optimiser one after another.

    data, grad: the row of the parameters and that of their gradients, (size,); None while there is none.
    kept_data, kept_grad: the part of each that this rank keeps, `mine` of the row; here all of it.
    parts: of each group, its part of what is kept, as the optimiser gets it.
    reached: of each parameter, whether it has got a gradient on this rank since the last step.
    calls: how often the unit's block was computed, and its backward not yet.
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
        ends = [start + parameter.numel() for start, parameter in zip(self.starts, self.parameters, strict=True)]
        pairs = zip(ends, [*self.starts[1:], self.size], strict=True)
        self.gaps = [slice(end, start) for end, start in pairs if end < start]
        self.mine = slice(0, self.size)
        self.work: Any = None  # what is under way with the gradients: a Work, or None
        self.summed = False  # whether it has been started since the last step
        self.reached = [False] * len(self.parameters)
        self.calls = 0
        self.has_sum = False  # whether what is kept of the gradients is of this step, and not of one before

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
        """The row of gradients, with zeros for a parameter that got none and in the gaps, which the norm may be of too.

        What comes later is not taken any more.
        """
        for gap in self.gaps:
            self.grad[gap] = 0
        for number, parameter in enumerate(self.parameters):
            buffer = parameter.grad_buffer
            assert buffer is not None
            if parameter.grad is None:
                buffer[...] = 0
            else:
                self.reached[number] = True
                if parameter.grad is not buffer:  # set by hand
                    buffer[...] = parameter.grad
            parameter.grad = parameter.grad_buffer = None
        return self.grad

    def check_nothing_came_late(self) -> None:
        """Raise GraphError for a gradient that came after, or before, the backward of the unit's block."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                raise GraphError(
                    f"DataParallel: {parameter.name or 'a parameter'} got a gradient outside of the backward of "
                    f"{self.name or 'the model'}, where it would not be summed over the ranks; use the weights of a "
                    "block in its forward alone, and call backward once for each forward"
                )

    def settle(self, reached: list[bool]) -> None:
        """Give gradients, now summed, to the parameters that any rank has reached, and make ready for the next step."""
        self.check_nothing_came_late()
        for part in self.parts:
            for number, piece in part.pieces.items():
                piece.grad = piece.grad_buffer if reached[number] else None
        if self.grad is not None:
            self.use_grad(self.grad)
            for parameter, is_reached in zip(self.parameters, reached, strict=True):
                parameter.grad = parameter.grad_buffer if is_reached else None
        self.start_anew()

    def start_anew(self) -> None:
        """Forget what happened since the last step."""
        self.summed, self.calls, self.has_sum, self.reached = False, 0, False, [False] * len(self.parameters)

    def keep(self, data: Array, grad: Array) -> None:
        """Settle what this rank keeps, and make the parameters of the optimiser from it."""
        self.kept_data, self.kept_grad, self.parts = data, grad, []
        for group, (first, stop) in enumerate(self.spans):
            start = max(first, self.mine.start) - self.mine.start
            stop = min(stop, self.mine.stop) - self.mine.start
            if start < stop:
                self.parts.append(Part(group, start, data[start:stop], grad[start:stop], self._pieces(start, stop)))

    def _pieces(self, start: int, stop: int) -> dict[int, Parameter]:
        """Of each parameter that reaches into a part of what is kept, that piece."""
        pieces = {}
        for number, (parameter, first) in enumerate(zip(self.parameters, self.starts, strict=True)):
            a = max(first - self.mine.start, start)
            b = min(first - self.mine.start + parameter.numel(), stop)
            if a < b:
                pieces[number] = Parameter(self.kept_data[a:b], parameter.name)
        return pieces


class DataParallel:
    """Sums the gradients of a model over the ranks of a communicator.

        parallel = DataParallel(model, communicator, decay_groups(model.parameters(), 0.1))
        optimizer = AdamW(parallel.groups, lr)
        ...
        parallel.begin()                        # of each micro-batch
        (model.loss(...) / tokens).backward()   # of this rank's rows; tokens are those of the whole batch
        ...
        loss = parallel.finish(loss)            # once, before optimizer.step()
        optimizer.step()
        parallel.sync_parameters()                      # after it

    groups: as an optimiser takes them; frozen parameters stay out of both. Set `synchronise` to False for all
    micro-batches but the last. The optimiser moves what this rank keeps of each parameter; see mesh.py for the state of
    whole ones.
    Raises: DtypeError for a unit of several dtypes; ParallelError where ranks begin with different weights.
    """

    synchronise = True

    def __init__(self, model: Module, communicator: Communicator, groups: Iterable[Mapping[str, Any]]):
        self.model, self.communicator = model, communicator
        agree_on_weights(communicator, "DataParallel", model.state_dict())
        given = [{**group, "params": list(group["params"])} for group in groups]
        group_of = {id(p): number for number, group in enumerate(given) for p in group["params"] if p.requires_grad}
        modules = model_blocks(model)
        unit_of = {key: owners.pop() for key, owners in parameter_owners(model, modules).items() if len(owners) == 1}
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
            for parameter in unit.parameters:
                parameter.grad = None
        self.groups: list[dict[str, Any]] = []
        for number, group in enumerate(given):
            options = {name: value for name, value in group.items() if name != "params"}
            parts = [part for unit in self.units.values() for part in unit.parts if part.group == number]
            self.groups += [
                {**options, "params": list(part.pieces.values()), "flat": (part.data, part.grad)} for part in parts
            ]
        for path, block in modules.items():
            if path in self.units:
                replace(model, path, BlockOfUnit(block, self, self.units[path]))

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
        for unit in self.units.values():
            unit.calls = 0  # of forwards that no backward has followed

    def sync_parameters(self) -> None:
        """The optimiser has moved what this rank keeps: let the others have it."""
        for unit in self.units.values():
            for parameter in unit.parameters:
                parameter.version += 1

    # --- a step ------------------------------------------------------------------------------------------------------

    def finish(self, number: Any = 0.0) -> Any:
        """Return when all gradients are summed, with the sum of a number over the ranks; the optimiser may step.

        number: such as the loss. On a GPU it is an array without dimensions, for which nobody waits.
        Raises: GraphError for a gradient that no sum has.
        """
        for unit in self.order():  # what no hook has reached: the root; blocks whose input needs no gradient
            self._sum(unit)
        for unit in self.order():
            if unit.work is not None:
                self.end_sum(unit)
        reached = [one for unit in self.order() for one in unit.reached]
        number, reached = self._known_to_all(number, reached)
        for unit in self.order():
            unit.settle([reached.pop(0) for _ in unit.parameters])
        return number

    def _known_to_all(self, number: Any, reached: list[bool]) -> tuple[Any, list[bool]]:
        """The sum of a number over the ranks, and for each parameter, whether any rank has reached it."""
        if self.communicator.size == 1:
            return number, reached
        numbers = self.communicator.host_array([0.0, *reached])
        numbers[0] = number
        self.communicator.all_reduce(numbers, what="numbers").wait()
        if not all(reached):
            found = to_host(numbers)
            self.communicator.check()  # where a rank has failed, these are no numbers
            reached = (found[1:] > 0).tolist()
        return numbers[0], reached

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for unit in self.units.values():
            unit.start_anew()
            if unit.grad is not None and unit.work is None:
                unit.use_grad(unit.grad)
            for parameter in [*unit.parameters, *(piece for part in unit.parts for piece in part.pieces.values())]:
                parameter.grad = None

    def _sum(self, unit: Unit) -> None:
        if not unit.summed:
            self.start_sum(unit)
            unit.summed = True

    def passed(self, unit: Unit) -> None:
        """The backward has come through a unit's block, once for each time that the block was computed."""
        unit.calls -= 1
        if self.synchronise:
            self._sum_complete()

    def _sum_complete(self) -> None:
        """Start the sums of blocks to which nothing more comes, in an order that is the same on all ranks.

        A block that this rank has not computed, as none of its rows needed it, is among them: others may have.
        """
        for unit in reversed(self.blocks):
            if unit.calls > 0:  # its backward is still to come
                return
            self._sum(unit)

    def whole_row(self, unit: Unit, kept: Array) -> Array:
        """The row of a unit of which each rank keeps a part, such as its parameters. All ranks call this together."""
        if kept.size == unit.size:
            return kept
        row = np.empty_like(kept, shape=unit.size, order="C")
        self.communicator.all_gather(kept, row, what="state").wait()
        return row

    def memory(self) -> dict[str, int]:
        """Bytes that this rank keeps from step to step: parameters and gradients; and `working`, rows used in turn."""
        units = self.units.values()
        return {
            "parameters": sum(unit.kept_data.nbytes for unit in units),
            "gradients": sum(unit.kept_grad.nbytes for unit in units),
            "working": 0,
        }


class BlockOfUnit(Wrapper):
    """A block between two boundaries, which say when the backward enters it, and when it has come through."""

    def __init__(self, block: Module, parallel: DataParallel, unit: Unit):
        super().__init__(block)
        self.parallel, self.unit = parallel, unit

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        parallel, unit = self.parallel, self.unit
        parallel.before_forward(unit)
        if not is_grad_enabled():
            return self.module(x, *args, **kwargs)
        unit.calls += 1
        y = self.module(boundary(x, lambda: parallel.passed(unit)), *args, **kwargs)
        return boundary(y, lambda: parallel.before_backward(unit))


def model_blocks(model: Module) -> dict[str, Module]:
    """The blocks of a model by path: the modules in its lists, but not the modules within those."""
    found: dict[str, Module] = {}
    for path, module in model.named_modules():
        if path.rpartition(".")[2].isdigit() and not any(path.startswith(f"{other}.") for other in found):
            found.setdefault(path, module)  # the outermost, if it is wrapped
    return found


def parameter_owners(model: Module, blocks: Mapping[str, Module]) -> dict[int, set[str]]:
    """Of each parameter, by its id, the paths of the blocks that have it; "" for what is in none."""
    found: dict[int, set[str]] = {}
    for path, module in model.named_modules():
        owner = next((block for block in blocks if path == block or path.startswith(f"{block}.")), "")
        for _, child in module.named_children():
            if isinstance(child, Parameter):
                found.setdefault(id(child), set()).add(owner)
    return found
