"""Data parallel: every rank has the model and a part of the batch; gradients are summed over the ranks.

The loss of a batch is a sum over its tokens (divided by their number, that of the whole batch), so its gradient is the
sum of what the ranks get from their rows, however many each has. Parameters are the same on all ranks at the start,
gradients after the sum, so parameters stay the same, bit for bit.

**Units.** Parameters are laid out as the model is built: one unit for each block, and one, the root, for what comes
before and after them. A unit's parameters lie one after another in one row of memory, and so do their gradients: one
operation sends them, and the optimiser updates them as vectors. The sum of a unit starts as soon as its gradients are
complete, while the backward goes on below it:

    backward   block 3   block 2   block 1   block 0   embedding
    sums                 block 3   block 2   block 1   block 0    root

A unit is complete when the gradient of its input is: every path from a weight of the block to the loss has been walked
by then. So a block's input passes through an operation that does nothing forward and whose backward says that it was
reached (`BOUNDARY`). A block with several inputs, such as one that also reads an encoder's output, has one such
operation for all of them. A block that was computed several times is complete after as many backwards. Sums start in
the order of the blocks, also on a rank that has skipped one. Gradients of the root may come from both ends (a tied
table), and are summed last. A parameter that several blocks share, or that is also used outside of its block, is in the
root.

A parameter that no rank has used in a step has no gradient, as in one process, and is neither updated nor decayed.
Beside the loss, ranks send which of their parameters got a gradient (`finish`); a rank waits for that only if one of
its own parameters got none.

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
from minillm.ops.join import concat
from minillm.optim import ALIGN
from minillm.parallel.communicator import Communicator, agree_on_weights
from minillm.parallel.wrapper import Wrapper, replace


def step_bytes(gradients: int, ranks: int) -> dict[str, int]:
    """Bytes that a rank sends in a step: 2 (n - 1) / n of its gradients, padding included; n must divide them."""
    return {"gradients": 2 * (ranks - 1) * gradients // ranks}


def boundary_forward(x, *, passed):
    return x, passed


def boundary_backward(dout, passed):
    passed()
    return (dout,)


BOUNDARY = Op("boundary", boundary_forward, boundary_backward, aliases=True)


def boundary(x: Tensor, passed: Callable[[], None]) -> Tensor:
    """x itself; the backward calls `passed` when the gradient of x is complete, before it goes further down."""
    return BOUNDARY(x, passed=passed)


class Part(NamedTuple):
    """The part of a unit's parameters that this rank keeps for one group of the optimiser.

    start: where the part begins in what this rank keeps of the unit. data, grad: the part of the two rows.
    pieces: vectors in `data` for the optimiser, one for each parameter in the part, by its number in the unit.
    """

    group: int
    start: int
    data: Array
    grad: Array
    pieces: dict[int, Parameter]


class Unit:
    """Parameters that are sent together: they lie one after another in one row, ordered by the optimiser's groups.

    data, grad: the rows of the parameters and of their gradients, (size,); None while there is none.
    kept_data, kept_grad: the part of each row that this rank keeps, `mine` of it; in DataParallel the whole row.
    parts: the part of each of the optimiser's groups in what is kept.
    reached: for each parameter, whether it got a gradient on this rank since the last step.
    calls: forwards of the unit's block that no backward has followed yet.
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
        """The part of a row that belongs to each parameter, in the parameter's shape."""
        return [
            row[start : start + parameter.numel()].reshape(parameter.shape)
            for parameter, start in zip(self.parameters, self.starts, strict=True)
        ]

    def row_of(self, arrays: Mapping[str, Array], like: Array) -> Array:
        """A new row like another that holds these arrays, which have the names of the parameters."""
        row = np.zeros_like(like, shape=self.size)
        for parameter, view in zip(self.parameters, self.views(row), strict=True):
            view[...] = arrays[parameter.name]
        return row

    def arrays_of(self, row: Array) -> dict[str, Array]:
        """The inverse of row_of."""
        return {p.name: view for p, view in zip(self.parameters, self.views(row), strict=True)}

    def use_data(self, row: Array) -> None:
        """Make the parameters views of a row."""
        self.data = row[: self.size]
        for parameter, view in zip(self.parameters, self.views(self.data), strict=True):
            parameter.data = view

    def use_grad(self, row: Array) -> None:
        """Make the gradients views of a row, into which the next backward writes."""
        self.grad = row[: self.size]
        for parameter, view in zip(self.parameters, self.views(self.grad), strict=True):
            parameter.grad, parameter.grad_buffer = None, view

    def complete_gradients(self) -> Array:
        """The row of gradients, with zeros for parameters that got none and in the gaps, which a norm may include.

        No later gradient goes into it.
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
        """Raise GraphError if a gradient came before or after the backward of the unit's block."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                raise GraphError(
                    f"DataParallel: {parameter.name or 'a parameter'} got a gradient outside of the backward of "
                    f"{self.name or 'the model'}, where it would not be summed over the ranks; use the weights of a "
                    "block in its forward alone, and call backward once for each forward"
                )

    def settle(self, reached: list[bool]) -> None:
        """Give the summed gradients to the parameters that any rank has reached, and prepare the next step."""
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
        """Reset what was noted since the last step."""
        self.summed, self.calls, self.has_sum, self.reached = False, 0, False, [False] * len(self.parameters)

    def keep(self, data: Array, grad: Array) -> None:
        """Set what this rank keeps, and make the optimiser's parameters of it."""
        self.kept_data, self.kept_grad, self.parts = data, grad, []
        for group, (first, stop) in enumerate(self.spans):
            start = max(first, self.mine.start) - self.mine.start
            stop = min(stop, self.mine.stop) - self.mine.start
            if start < stop:
                self.parts.append(Part(group, start, data[start:stop], grad[start:stop], self._pieces(start, stop)))

    def _pieces(self, start: int, stop: int) -> dict[int, Parameter]:
        """The piece of each parameter that lies from `start` to `stop` of what is kept."""
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
        parallel.begin()                        # before each micro-batch
        (model.loss(...) / tokens).backward()   # of this rank's rows; tokens are those of the whole batch
        ...
        loss = parallel.finish(loss)            # once, before optimizer.step()
        optimizer.step()
        parallel.sync_parameters()                      # after it

    groups: parameter groups as an optimiser takes them; frozen parameters are left out. Set `synchronise` to False for
    all micro-batches but the last. The optimiser updates what this rank keeps of each parameter; mesh.py brings whole
    parameters together.
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

    # --- what ZeRO does in another way -------------------------------------------------------------------

    def lay_out(self, unit: Unit) -> None:
        """Allocate the rows of a unit, and move its parameters into them."""
        row = unit.row_of({p.name: p.data for p in unit.parameters}, unit.parameters[0].data)
        unit.use_data(row)
        unit.use_grad(np.zeros_like(row))
        unit.keep(row, unit.grad)

    def start_sum(self, unit: Unit) -> None:
        """Start the sum of a unit's gradients, which are complete on this rank."""
        unit.work = self.communicator.all_reduce(unit.complete_gradients(), what="gradients")

    def end_sum(self, unit: Unit) -> None:
        """Wait for the sum; afterwards it is in `kept_grad`."""
        unit.work.wait()
        unit.work = None

    def before_forward(self, unit: Unit) -> None:
        """Called before a block is computed."""

    def before_backward(self, unit: Unit) -> None:
        """Called before the backward enters a block."""

    def begin(self) -> None:
        """Prepare a micro-batch."""
        for unit in self.units.values():
            unit.calls = 0  # of forwards that no backward has followed

    def sync_parameters(self) -> None:
        """After the optimiser's step: give the other ranks what this rank has updated, and get what they have."""
        for unit in self.units.values():
            for parameter in unit.parameters:
                parameter.version += 1

    # --- a step ------------------------------------------------------------------------------------------------------

    def finish(self, number: Any = 0.0) -> Any:
        """Wait until all gradients are summed; returns the sum of a number, such as the loss, over the ranks.

        The optimiser may step after this. On a GPU the sum is an array without dimensions, for which nobody waits.
        Raises: GraphError for a gradient that came too late to be summed.
        """
        for unit in self.order():  # those without a boundary: the root, and blocks whose input needs no gradient
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
        """The sum of a number over the ranks, and whether any rank has reached each parameter."""
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
        """Drop all gradients."""
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
        """Start the sums of the blocks whose gradients are complete, in an order that is equal on all ranks.

        A block that this rank has not computed, because no row needed it, is among them: other ranks may have.
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
        """Bytes that this rank keeps from step to step: parameters, gradients, and `working`, shared rows."""
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

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        parallel, unit = self.parallel, self.unit
        parallel.before_forward(unit)
        if not is_grad_enabled():
            return self.module(x, *args, **kwargs)
        unit.calls += 1
        given = bounded([x, *args], lambda: parallel.passed(unit))
        y = self.module(*given, **kwargs)
        if isinstance(y, tuple):
            return tuple(bounded(y, lambda: parallel.before_backward(unit)))
        return boundary(y, lambda: parallel.before_backward(unit))


def bounded(values: Iterable[Any], passed: Callable[[], None]) -> list[Any]:
    """The values, of which all tensors with a gradient pass one boundary together, as one row that is cut again."""
    found = list(values)
    places = [i for i, value in enumerate(found) if isinstance(value, Tensor) and value.requires_grad]
    if len(places) == 1:
        found[places[0]] = boundary(found[places[0]], passed)
    elif places:
        row = boundary(concat([found[i].reshape(-1) for i in places]), passed)
        start = 0
        for i in places:
            stop = start + found[i].numel()
            found[i] = row[start:stop].reshape(found[i].shape)
            start = stop
    return found


def model_blocks(model: Module) -> dict[str, Module]:
    """The blocks of a model by path: the modules in its lists, but not the modules within those."""
    found: dict[str, Module] = {}
    for path, module in model.named_modules():
        if path.rpartition(".")[2].isdigit() and not any(path.startswith(f"{other}.") for other in found):
            found.setdefault(path, module)  # the outermost, if it is wrapped
    return found


def parameter_owners(model: Module, blocks: Mapping[str, Module]) -> dict[int, set[str]]:
    """The paths of the blocks that have each parameter, by the parameter's id; "" stands for outside of all blocks."""
    found: dict[int, set[str]] = {}
    for path, module in model.named_modules():
        owner = next((block for block in blocks if path == block or path.startswith(f"{block}.")), "")
        for _, child in module.named_children():
            if isinstance(child, Parameter):
                found.setdefault(id(child), set()).add(owner)
    return found
