"""The parts of a traced step: stops, the lines within them, and where every array came from and went to.

    StepTrace
      stops     Stop 0 "tokens", then one for each forward, one for the loss, one for each backward, one per parameter
        lines   the lines of the plain function that ran, each with the arrays that it made
      sources   the text of each function that ran, with the derivation at the top of its file

All arrays are copies that nobody can write to, and equal arrays are one object. An array with more elements than
`trace_step(largest=)` allows is left out: its place holds None, and its shape and dtype are still there.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from minillm.backend import Array
from minillm.errors import InputError, did_you_mean

KINDS = ("tokens", "forward", "loss", "backward", "update")


@dataclass(frozen=True)
class Source:
    """The text of a function, and the derivation at the top of its file."""

    file: str  # the whole path
    first: int  # number of its first line in the file
    lines: tuple[str, ...]
    derivation: str  # the docstring of the module


@dataclass(eq=False)
class Line:
    """A line that ran (a statement of several lines is one), and what it made.

    `function` is a key of StepTrace.sources, such as "minillm.ops.layernorm.layernorm_backward". The first line of a
    function is its "def", which makes its arguments. `made` has every array that a name was bound to or that was
    written into; the fields of a Saved are "saved.norm". `values` shows what else was bound: numbers, shapes, None.
    """

    function: str
    half: str  # "forward", "backward" or "update": which part of the step runs
    number: int  # in the file
    text: str
    made: dict[str, Array | None]
    values: dict[str, str]
    depth: int = 0  # 1 in a function that the plain function calls, such as attention's softmax
    error: str = ""  # of a line that raised
    file: str = ""  # the whole path

    @property
    def name(self) -> str:
        """The name of the function alone."""
        return self.function.rpartition(".")[2]


@dataclass(eq=False)
class Value:
    """An array at the edge of an op: an input, an output, or a gradient of one of these.

    An input names what made it: `stop` and `output` of the forward that did, or a `parameter`, or `data`, the name of
    an array of the batch; an input without any of these is a constant. A gradient names where it goes: `stop`, the
    backward whose output's gradient it is a part of, or the `parameter` that it is added to.
    """

    name: str  # x, weight, dx, ...
    array: Array | None
    shape: tuple[int, ...] | None  # None where there is no array: an input None, or a Python number
    dtype: str
    stop: int | None = None
    output: int = 0
    parameter: str = ""
    data: str = ""


@dataclass(eq=False)
class Sent:
    """A gradient that arrived: the backward stop that sent it, and the input of that op that it is the gradient of.

    `stop` is None for the gradient that the walk began with: dL/dL = 1.
    """

    stop: int | None
    input: int
    name: str  # of the gradient in the function that sent it, such as dx
    array: Array | None


@dataclass(frozen=True, eq=False)
class Call:
    """The call of a forward: the operation, copies of its inputs, and its settings."""

    op: Any  # an autograd.Op
    inputs: tuple[Any, ...]
    settings: dict[str, Any]
    backward: Callable  # the function that computed the gradients, which may be a mutation


@dataclass(eq=False)
class Stop:
    """A place in the step where one can stop: the tokens, an op's forward or backward, the loss, an update.

    A forward has `inputs`, `settings` and `outputs`. A backward has in `inputs` the gradients of the op's outputs (dy),
    and in `outputs` the gradients of its inputs. For each of its inputs, `waited` lists the gradients that were added
    up to it, in the order of addition: all the consumers that the walk had to wait for. `call` can run a forward again.
    """

    index: int
    kind: str  # one of KINDS
    op: str
    scope: str  # the module that ran, such as h.0.ln_2
    where: str  # the line of the model, such as gpt2.py:76
    inputs: list[Value] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    outputs: list[Value] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    partner: int | None = None  # index of the op's other half
    seconds: float = 0.0  # watched, so slower than without
    function: str = ""  # key in sources of the plain function that ran
    waited: list[list[Sent]] = field(default_factory=list)
    call: Call | None = None
    hooked: bool = False  # a hook changed the sum of `waited` before the backward read it

    @property
    def title(self) -> str:
        """The stop in a few words: `layernorm backward in h.0.ln_2`."""
        half = f" {self.kind}" if self.kind in ("forward", "backward", "update") else ""
        return f"{self.op}{half}" + (f" in {self.scope}" if self.scope and self.scope != self.op else "")

    def value(self, name: str) -> Value:
        """The input or output of this name.

        Raises: InputError for another name.
        """
        found = {one.name: one for one in (*self.inputs, *self.outputs)}
        if name not in found:
            raise InputError(f"step: {self.title} has no array {name!r}{did_you_mean(name, found)}")
        return found[name]


@dataclass(eq=False)
class ParameterStop(Stop):
    """The update of one parameter: its `op` is "AdamW", its `scope` the parameter's name.

    `waited` has one list: the gradients that were added up to `grad`. `grad` is the gradient before clipping; the lines
    of the optimiser's formula begin with the clipped one, g = grad clip_factor.
    """

    before: Array | None = None
    grad: Array | None = None
    moments_before: dict[str, Array | None] = field(default_factory=dict)
    moments_after: dict[str, Array | None] = field(default_factory=dict)
    update: Array | None = None  # after - before
    after: Array | None = None


@dataclass(frozen=True)
class ModuleEntry:
    """A module of the model: its path, its class, and the names of the parameters that are its own."""

    path: str
    kind: str
    parameters: tuple[str, ...]


@dataclass(eq=False)
class StepTrace:
    """A training step, with every number that it made."""

    stops: list[Stop]
    sources: dict[str, Source]
    modules: list[ModuleEntry]  # parents before children
    tokens: dict[str, list[list[str]]]  # for each array of ids in the batch, row by row, the text of each token
    loss: float
    engine: str
    seed: int = 0  # of the random numbers for dropout
    model: str = ""  # class of the model
    grad_norm: float | None = None  # of all gradients together, before clipping
    clip_factor: float = 1.0
    notes: list[str] = field(default_factory=list)  # what a reader must know: what is rounded or left out
    readings: list[Any] = field(default_factory=list)  # gradients of MLPs in words; see lens.py
    vocabulary: list[str] = field(default_factory=list)  # the text of each id
    rerun: Any = None  # the model and its loss, to compute the loss again; see checks.py

    def of_kind(self, kind: str) -> list[Stop]:
        """All stops of a kind, in order."""
        return [stop for stop in self.stops if stop.kind == kind]

    @property
    def parameters(self) -> dict[str, ParameterStop]:
        """The update of each parameter, by its name."""
        return {stop.scope: stop for stop in self.stops if isinstance(stop, ParameterStop)}

    def find(self, text: str) -> Stop:
        """The stop with this index or this title, or the first whose title has this text.

        Raises: InputError where there is none.
        """
        if text.isdigit() and int(text) < len(self.stops):
            return self.stops[int(text)]
        for fits in (lambda title: title == text, lambda title: text in title):
            for stop in self.stops:
                if fits(stop.title):
                    return stop
        last = len(self.stops) - 1
        if text.lstrip("-").isdigit():
            raise InputError(f"step: there is no stop {text}; the stops are 0 to {last}")
        near = difflib.get_close_matches(text, [stop.title for stop in self.stops], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give a number from 0 to {last}, or a part of a title:"
        raise InputError(f"step: no stop is called {text!r}; {hint}{'' if near else self._operations()}")

    def _operations(self) -> str:
        """The beginnings of the titles, each once."""
        return " " + ", ".join(dict.fromkeys(stop.title.partition(" in ")[0] for stop in self.stops))
