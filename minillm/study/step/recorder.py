"""Records a step while it runs: a stop for each forward and each backward, with its lines and with all that it read.

The engine tells what runs (`autograd.observe`), the line watcher what each line made. A stop begins when the engine
announces a function and is complete when the engine has its results; `on_line` is called in between, which is where a
person can stop.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from minillm.autograd import Backward, Forward, Node, Op, Tensor, observe
from minillm.backend import Array
from minillm.grad_mode import state
from minillm.optim import Optimizer
from minillm.study.step.lines import Keeper, LineWatcher, is_array, short
from minillm.study.step.records import Call, Line, Sent, Stop, Value

OnLine = Callable[[Stop, Line | None, FrameType | None], Any]  # without a line for a stop that has none


class Recorder:
    """Makes the stops of what runs while `recording()` is entered."""

    def __init__(self, largest: int, on_line: OnLine | None = None, mutations: Mapping[str, Callable] | None = None):
        self.stops: list[Stop] = []
        self.keeper = Keeper(largest)
        self.on_line = on_line
        self.mutations = mutations or {}  # backwards that run in place of an operation's own
        self.watcher = LineWatcher(self.keeper, self._line)
        self.batch: dict[int, str] = {}  # name of each array of the batch, by the id of its copy
        self.received: dict[int, list[Sent]] = {}  # what each leaf was sent, by its id
        self._updates: Mapping[tuple, Stop] = {}
        self._running: list[Stop] = []  # begun and not complete; one inside another where a backward runs forwards
        self._made: dict[int, tuple[Any, int, int]] = {}  # id of an output -> the array, its forward stop, its number
        self._nodes: dict[Node, int] = {}  # forward stop of each node
        self._goes: list[tuple[Value, Node]] = []  # gradients, with the node that they go to
        self._backwards: dict[Node, int] = {}  # backward stop of each node
        self._arrived: dict[tuple[Node, int], list[Sent]] = {}

    @contextlib.contextmanager
    def recording(self, lines: bool) -> Iterator[None]:
        """Record what this thread runs until the block ends, with or without the lines."""
        watching = self.watcher.watching() if lines else contextlib.nullcontext()
        with (
            watching,
            observe(
                self._after_forward,
                self._after_backward,
                before_forward=self._before_forward,
                before_backward=self._before_backward,
            ),
        ):
            yield

    def begin(self, stop: Stop, function: Callable) -> None:
        """Begin a stop in which this function will run."""
        stop.index = len(self.stops)
        self.stops.append(stop)
        self._running.append(stop)
        code = getattr(inspect.unwrap(function), "__code__", None)
        if code is not None:
            self.watcher.expected[code] = stop.kind

    def complete(self) -> Stop:
        """The stop that began last and is complete now."""
        return self._running.pop()

    @contextlib.contextmanager
    def updating(self, optimizer: Optimizer, stops: Mapping[tuple, Stop]) -> Iterator[None]:
        """Record the lines of an optimiser's formula; `stops` has a stop for each place of weights in memory."""
        self._updates = stops
        self.watcher.expected[optimizer.update.__code__] = "update"
        with self.watcher.watching():
            yield
        self._running.clear()

    def _begin_update(self, weights: Array) -> None:
        """Make the stop of these weights the one whose lines come next."""
        stop = self._updates[place(weights)]
        if stop not in self._running:
            self._running[:] = [stop]
            stop.index = len(self.stops)
            self.stops.append(stop)

    def _line(self, line: Line, frame: FrameType) -> None:
        if line.half == "update" and line.depth == 0:
            self._begin_update(frame.f_locals[frame.f_code.co_varnames[0]])
        if self._running:
            stop = self._running[-1]
            stop.function = stop.function or line.function
            stop.lines.append(line)
            if self.on_line is not None:
                self.on_line(stop, line, frame)

    # --- forward -----------------------------------------------------------------------------------------------------

    def _before_forward(self, op: Op, inputs: list, settings: dict) -> None:
        self.begin(Stop(0, "forward", op.name, state.scope, ""), op.forward)

    def _after_forward(self, call: Forward) -> None:
        stop = self.complete()
        stop.where = call.node.location() if call.node else ""
        stop.seconds = call.seconds
        stop.settings = {name: short(value) for name, value in call.settings.items()}
        edges = call.node.edges if call.node else [None] * len(call.inputs)
        names = input_names(call.op.forward, len(call.inputs))
        stop.inputs = [self._input(*one) for one in zip(names, call.inputs, edges, strict=True)]
        outputs = output_names(stop, len(call.outputs))
        stop.outputs = [self._value(name, y) for name, y in zip(outputs, call.outputs, strict=True)]
        for number, y in enumerate(call.outputs):
            self._made[id(y)] = y, stop.index, number
        if call.node is not None:
            self._nodes[call.node] = stop.index
            if call.op.name in self.mutations:
                call.node.backward = self.mutations[call.op.name]
        backward = call.node.backward if call.node else call.op.backward
        copies = (value.array if is_array(x) else x for value, x in zip(stop.inputs, call.inputs, strict=True))
        stop.call = Call(call.op, tuple(copies), call.settings, backward)

    def _input(self, name: str, array: Any, edge: Any) -> Value:
        """An input with what made it."""
        value = self._value(name, array)
        if edge is not None and isinstance(edge[0], Node):
            value.stop, value.output = self._nodes.get(edge[0]), edge[1]
        elif edge is not None:
            value.parameter = leaf_name(edge[0])
        elif id(array) in self._made:
            _, value.stop, value.output = self._made[id(array)]
        else:
            value.data = self.batch.get(id(value.array), "")
        return value

    def _value(self, name: str, array: Any) -> Value:
        if not is_array(array):
            return Value(name, None, None, "" if array is None else short(array))
        return Value(name, self.keeper.keep(array), array.shape, str(array.dtype))

    # --- backward ----------------------------------------------------------------------------------------------------

    def _before_backward(self, node: Node, douts: list) -> None:
        partner = self._nodes.get(node)
        stop = Stop(0, "backward", node.op.name, node.scope, node.location(), partner=partner)
        names = [f"d{value.name}" for value in self.stops[partner].outputs] if partner is not None else []
        names = names or (["dy"] if len(douts) == 1 else [f"dy[{i}]" for i in range(len(douts))])
        stop.inputs = [self._value(name, dy) for name, dy in zip(names, douts, strict=True)]
        stop.waited = [self._arrived.pop((node, i), []) for i in range(len(douts))]
        for sent, value in zip(stop.waited, stop.inputs, strict=True):
            if not sent and value.shape is not None:
                sent.append(Sent(None, 0, value.name, value.array))
        self._backwards[node] = len(self.stops)
        self.begin(stop, node.backward)

    def _after_backward(self, call: Backward) -> None:
        stop = self.complete()
        stop.seconds = call.seconds
        stop.hooked = call.node.hooks is not None
        if stop.partner is not None:
            self.stops[stop.partner].partner = stop.index
            names = [f"d{value.name}" for value in self.stops[stop.partner].inputs]
        else:
            names = [f"d{name}" for name in input_names(call.op.forward, len(call.dinputs))]
        for i, (name, dx, edge) in enumerate(zip(names, call.dinputs, call.node.edges, strict=True)):
            value = self._value(name, dx)
            stop.outputs.append(value)
            if edge is None or dx is None:
                continue
            sent = Sent(stop.index, i, name, value.array)
            if isinstance(edge[0], Node):
                self._arrived.setdefault((edge[0], edge[1]), []).append(sent)
                value.output = edge[1]
                self._goes.append((value, edge[0]))
            else:
                self.received.setdefault(id(edge[0]), []).append(sent)
                value.parameter = leaf_name(edge[0])

    def link(self) -> None:
        """Let each gradient name the backward stop where it goes, which had not run when it was sent."""
        for value, node in self._goes:
            value.stop = self._backwards.get(node)

    def add(self, stop: Stop) -> None:
        """Add a stop without lines."""
        stop.index = len(self.stops)
        self.stops.append(stop)
        if self.on_line is not None:
            self.on_line(stop, None, None)

    def forward_of(self, tensor: Tensor) -> int | None:
        """The forward stop that made a tensor."""
        return None if tensor.node is None else self._nodes.get(tensor.node)


def place(array: Array) -> tuple:
    """The place of an array in memory, which two parameters never share."""
    return array.__array_interface__["data"][0], array.shape


def leaf_name(leaf: Any) -> str:
    """The name of a parameter, or what can be said of another leaf."""
    return getattr(leaf, "name", "") or f"a tensor {leaf.shape}"


def input_names(forward: Callable, count: int) -> list[str]:
    """The names of a forward's first arguments: x, weight, bias; or xs[0], xs[1] where it takes any number."""
    names: list[str] = []
    for parameter in inspect.signature(forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}[{i}]" for i in range(count - len(names))]
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            names.append(parameter.name)
    return names[:count]


def output_names(stop: Stop, count: int) -> list[str]:
    """The names of a forward's outputs: that which the plain function returns, or y."""
    own = [line for line in stop.lines if line.depth == 0]
    last = own[-1].text.removeprefix("return ") if own else ""
    first = last.partition(",")[0].strip()
    name = first if first.isidentifier() else "y"
    return [name] if count == 1 else [f"{name}[{i}]" for i in range(count)]
