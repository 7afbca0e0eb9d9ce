"""The names of a function as they were when one of its lines had run, from what the trace kept."""

from __future__ import annotations

import ast
import sys
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
    for one in stop.lines:
        if one is line and not with_line:
            break
        if one.function == line.function and one.depth == line.depth:
            if one.text.startswith("def "):
                names.clear()
            for name, text in one.values.items():
                _bind(names, name, _constant(text))
            for name, array in one.made.items():
                _bind(names, name, array)
        if one is line:
            break
    module = sys.modules.get(line.function.rpartition(".")[0])
    return dict(vars(module)) if module else {"np": np}, {name: x for name, x in names.items() if x is not _MISSING}


_MISSING = object()


def _constant(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError):
        return _MISSING


def _bind(names: dict[str, Any], name: str, value: Any) -> None:
    """Bind a name; `saved.norm` becomes an attribute, and `parts[1]` an item."""
    if name.isidentifier():
        names[name] = value
        return
    holder, dot, field = name.partition(".")
    if dot and holder.isidentifier() and field.isidentifier():
        if not isinstance(names.get(holder), SimpleNamespace):
            names[holder] = SimpleNamespace()
        setattr(names[holder], field, value)
        return
    holder, bracket, number = name.partition("[")
    if bracket and holder.isidentifier() and number[:-1].isdigit():
        items = names.setdefault(holder, [])
        if isinstance(items, list):
            items[int(number[:-1]) :] = [value]
