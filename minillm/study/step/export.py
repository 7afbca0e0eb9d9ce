"""A stop of a trace as a program: a .py, and its arrays as .npz, which repeats the numbers and asserts them.

    minillm step --export "layernorm backward in h.0.ln_2"
    python layernorm_backward_h_0_ln_2.py

The program imports the plain functions, so that it can be stepped through, and the functions can be changed.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minillm.backend import Array
from minillm.errors import InputError
from minillm.files import writing
from minillm.study.step.environment import names_at
from minillm.study.step.lines import order_of_axes
from minillm.study.step.records import ParameterStop, StepTrace, Stop, Value

HEAD = '''"""{title} of a traced step ({model}), alone: `python {name}.py` repeats its numbers and asserts them.

{where}
"""

from pathlib import Path

import numpy as np

{imports}

data = np.load(Path(__file__).with_suffix(".npz"))
'''


class _Writer:
    """Collects the lines of a program, the names that it imports, and its arrays."""

    def __init__(self, stop: Stop):
        self.stop = stop
        self.lines: list[str] = []
        self.imports: set[tuple[str, str]] = set()
        self.arrays: dict[str, Array] = {}

    def function(self, function: Callable) -> str:
        """The name of a function, which the program imports."""
        module, name = function.__module__, function.__qualname__
        if module == "__main__" or getattr(sys.modules.get(module), name, None) is not function:
            raise InputError(f"export: {name} of {module} cannot be imported; put it into a file of its own")
        self.imports.add((module, name))
        return name

    def array(self, name: str, array: Array) -> str:
        """The text that loads an array, with the order that its axes have in memory."""
        order = order_of_axes(array)
        self.arrays[name] = np.array(array.transpose(order), order="C")
        if order == tuple(range(array.ndim)):
            return f'data["{name}"]'
        return f'data["{name}"].transpose{tuple(int(i) for i in np.argsort(order))}'

    def value(self, name: str, value: Any) -> str:
        """The text of a value; an array goes into the .npz under this name."""
        if isinstance(value, np.ndarray):
            return self.array(name, value)
        if isinstance(value, float) and not math.isfinite(value):
            return f'float("{value}")'
        if value is None or value is Ellipsis or type(value) in (bool, int, float, str):
            return repr(value)
        if isinstance(value, np.generic):
            return f"np.{type(value).__name__}({value.item()!r})"
        if isinstance(value, np.dtype):
            return f'np.dtype("{value}")'
        if isinstance(value, slice):
            return f"slice({', '.join(self.value(name, one) for one in (value.start, value.stop, value.step))})"
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            items = [self.value(f"{name}_{field}", one) for field, one in zip(value._fields, value, strict=True)]
            return f"{self.function(type(value))}({', '.join(items)})"
        if isinstance(value, (tuple, list)):
            items = [self.value(f"{name}_{i}", one) for i, one in enumerate(value)]
            text = ", ".join(items) + ("," if isinstance(value, tuple) and len(items) == 1 else "")
            return f"({text})" if isinstance(value, tuple) else f"[{text}]"
        if isinstance(value, type) and issubclass(value, np.generic):
            return f"np.{value.__name__}"
        raise InputError(f"export: {self.stop.title} has {name} = {value!r}, which cannot be written into a program")

    def expect(self, name: str, value: Value) -> None:
        """Assert that a name equals an array of the trace."""
        if value.array is not None:
            text = self.array(f"expected_{_word(value.name)}", value.array)
            self.lines.append(f"np.testing.assert_array_equal({name}, {text})")


def export(trace: StepTrace, stop: Stop, folder: Path) -> list[Path]:
    """Write a forward, a backward or an update as a program; returns the paths of the .py and the .npz.

    Raises: InputError for a stop that runs no function, for one whose arrays were left out or that cannot be imported,
        and where the files cannot be written.
    """
    writer = _Writer(stop)
    if isinstance(stop, ParameterStop):
        _write_update(writer, stop)
    elif stop.kind in ("forward", "backward"):
        _write_op(writer, trace, stop)
    else:
        raise InputError(f"export: {stop.title} runs no function; give a forward, a backward or an update")
    name = re.sub(r"\W+", "_", f"{stop.op}_{stop.kind}_{stop.scope}").strip("_").lower()
    imports = sorted(writer.imports)
    head = HEAD.format(
        title=stop.title,
        model=trace.model or "one of your own",
        name=name,
        where=f"The model called it at {stop.where}." if stop.where else "It comes from the end of the step.",
        imports="\n".join(f"from {module} import {imported}" for module, imported in imports),
    )
    source, arrays = folder / f"{name}.py", folder / f"{name}.npz"
    with writing("export", source) as unfinished:
        last = f'print("{stop.title}: the same numbers")'
        unfinished.write_text(head + "\n".join(["", *writer.lines, last, ""]), "utf-8")
    with writing("export", arrays) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **writer.arrays)  # type: ignore[arg-type]
    return [source, arrays]


def _write_op(writer: _Writer, trace: StepTrace, stop: Stop) -> None:
    """The forward of an op; for a backward, the backward behind it."""
    forward = stop if stop.kind == "forward" else trace.stops[stop.partner] if stop.partner is not None else None
    call = None if forward is None else forward.call
    if forward is None or call is None:
        raise InputError(f"export: the forward of {stop.title} was not traced; trace the whole step")
    arguments = []
    for value, given in zip(forward.inputs, call.inputs, strict=True):
        if given is None and value.shape is not None:
            raise InputError(f"export: {value.name} of {stop.title} was left out; trace with a larger `largest`")
        name = _word(value.name)
        writer.lines.append(f"{name} = {writer.value(name, given)}")
        arguments.append(name)
    for key, setting in call.settings.items():
        arguments.append(f"{key}={writer.value(f'setting_{key}', setting)}")
    writer.lines.append(f"y, saved = {writer.function(call.op.forward)}({', '.join(arguments)})")
    many = len(forward.outputs) > 1
    for i, value in enumerate(forward.outputs):
        writer.expect(f"y[{i}]" if many else "y", value)
    if stop.kind == "backward":
        douts = []
        for i, value in enumerate(stop.inputs):
            name = f"dy_{i}" if many else "dy"
            if value.shape is not None and value.array is None:
                raise InputError(f"export: {value.name} of {stop.title} was left out; trace with a larger `largest`")
            writer.lines.append(f"{name} = {writer.value(name, value.array)}")
            douts.append(name)
        dy = f"({', '.join(douts)})" if many else douts[0]
        writer.lines.append(f"gradients = {writer.function(call.backward)}({dy}, saved)")
        for i, value in enumerate(stop.outputs):
            writer.expect(f"gradients[{i}]", value)


def _write_update(writer: _Writer, stop: ParameterStop) -> None:
    """The formula of the optimiser for one parameter."""
    if not stop.lines or stop.before is None or stop.after is None:
        raise InputError(f"export: the lines of {stop.title} were not traced, or its arrays were left out")
    module, names = names_at(stop, stop.lines[0])
    function = module[stop.lines[0].name]
    code = function.__code__
    arguments = []
    for i, name in enumerate(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]):
        writer.lines.append(f"{name} = {writer.value(name, names[name])}")
        arguments.append(name if i < code.co_argcount else f"{name}={name}")
    writer.lines.append(f"new, *moments = {writer.function(function)}({', '.join(arguments)})")
    writer.expect("new", stop.outputs[0])
    for i, (name, moment) in enumerate(stop.moments_after.items()):
        writer.expect(f"moments[{i}]", Value(name, moment, None, ""))


def _word(name: str) -> str:
    """A name of the trace as a name in Python: xs[0] becomes xs_0."""
    return re.sub(r"\W+", "_", name).strip("_")
