"""The names of a function as they were when one of its lines had run, from what the trace kept."""

from __future__ import annotations

import ast
import contextlib
import re
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np

from minillm.study.step.records import Line, Stop


def names_at(stop: Stop, line: Line | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The globals of the function that a line belongs to, and its names after that line.

    A name whose value the trace only has as text is missing, unless the text is a constant.
    """
    if line is None:
        return {"np": np}, {value.name: value.array for value in stop.outputs}
    return _names(stop, line, with_line=True)


def names_before(stop: Stop, line: Line) -> tuple[dict[str, Any], dict[str, Any]]:
    """The globals of the function that a line belongs to, and its names before that line ran."""
    return _names(stop, line, with_line=False)


def _names(stop: Stop, line: Line, with_line: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    names: dict[str, Any] = {}
    settings = stop.call.settings if stop.call is not None and line.depth == 0 else {}
    for one in stop.lines:
        if one is line and not with_line:
            break
        if one.function == line.function and one.depth == line.depth:
            if one.text.startswith("def "):
                names.clear()
                names.update(settings)
            for name, text in one.values.items():
                if name not in settings or not one.text.startswith("def "):
                    _bind(names, name, _constant(text))
            for name, array in one.made.items():
                _bind(names, name, array)
        if one is line:
            break
    module = sys.modules.get(line.function.rpartition(".")[0])
    return dict(vars(module)) if module else {"np": np}, {name: x for name, x in names.items() if x is not _MISSING}


_MISSING = object()
KEY = {"slice": slice, "Ellipsis": Ellipsis}  # what the text of an index may hold beside numbers


def _constant(text: str) -> Any:
    if text in ("inf", "-inf", "nan"):  # which are no literals
        return float(text)
    if "slice(" in text and set(re.findall(r"[^\W\d]\w*", text)) <= {*KEY, "None"}:
        with contextlib.suppress(SyntaxError, TypeError):
            return eval(text, {"__builtins__": {}}, KEY)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError):
        return _MISSING


def _bind(names: dict[str, Any], name: str, value: Any) -> None:
    """Bind a name; `saved.norm` becomes an attribute, and `parts[1]` an item."""
    first, *steps = re.findall(r"^[^.\[]+|\.\w+|\[\d+\]", name)
    if not first.isidentifier():
        return
    if not steps:
        names[first] = value
        return
    holder = names[first] = _holder(names.get(first), steps[0])
    for step, following in pairwise(steps):
        inner = _holder(_item(holder, step), following)
        _set(holder, step, inner)
        holder = inner
    _set(holder, steps[-1], value)


def _holder(before: Any, step: str) -> Any:
    """The object that can hold an item or an attribute: the one that does already, or a new one."""
    kind = list if step.startswith("[") else SimpleNamespace
    return before if isinstance(before, kind) else kind()


def _item(holder: Any, step: str) -> Any:
    if isinstance(holder, list):
        number = int(step[1:-1])
        return holder[number] if number < len(holder) else None
    return getattr(holder, step[1:], None)


def _set(holder: Any, step: str, value: Any) -> None:
    if isinstance(holder, list):
        holder[int(step[1:-1]) :] = [value]
    else:
        holder.__dict__[step[1:]] = value
