"""The origin of a number: the numbers that the line of its array read, and what was added up to it.

    explain(trace, trace.find("linear backward in h.0.mlp.fc"), "dweight", (5, 3))
        dweight[5, 3] = 0.00123, by dweight = matmul(dy_rows.T, x_rows)
        the sum of 24 terms: dy_rows[0, 5] x_rows[0, 3] = 0.0003 0.51 = ...

The line of the source is evaluated again for the one element, from the arrays that the trace kept. An operation between
arrays takes the elements at the same place (after broadcasting), a matrix product a row and a column, a sum all
elements along its axes. What only moves numbers (a transpose, a slice, a reshape, a cut into a list of arrays) is
followed by moving their places in the same way. A gradient that arrived is the sum of what its consumers sent. A part
that cannot be followed, such as a random number, is <so>.
"""

from __future__ import annotations

import ast
import contextlib
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.counted import counted
from minillm.errors import InputError
from minillm.study.step.environment import names_before
from minillm.study.step.expressions import PLACES, Unknown, fitted, is_move, item_of, operands, replaced, statement_of
from minillm.study.step.records import Line, ParameterStop, Sent, StepTrace, Stop
from minillm.study.step.text import sender

OPERATORS: dict[type, str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
ELEMENTWISE = "exp expm1 log log1p log2 log10 sqrt tanh sin cos abs sign floor ceil maximum minimum clip add subtract "
ELEMENTWISE += "multiply divide negative square power erf"
UNCHANGED = ("astype", "copy", "asarray", "ascontiguousarray")
REDUCTIONS = ("sum", "mean", "max", "min")
FILLED = {"zeros": 0.0, "zeros_like": 0.0, "ones": 1.0, "ones_like": 1.0}
SHOWN = 12  # terms of a sum that are printed


class Read(NamedTuple):
    """An element that was read."""

    name: str
    place: tuple[int, ...]
    value: float


class Term(NamedTuple):
    """A term of a sum: the elements that it is made of, in words and with their numbers."""

    text: str  # dy_rows[0, 5] * x_rows[0, 3]
    numbers: str  # 0.0003 * 0.51
    value: float

    def __str__(self) -> str:
        product = f" = {self.numbers}" if " " in self.numbers else ""
        return f"{self.text}{product} = {self.value:.6g}"


class Explanation(NamedTuple):
    """A number and its origin."""

    name: str
    place: tuple[int, ...]
    value: float
    source: str  # the line, or what was added
    text: str  # the right-hand side with the element's own names: p[0, 1] * (dp[0, 1] - delta[0, 0])
    numbers: str  # the same with numbers: 0.2 * (0.1 - 0.03)
    terms: list[Term]  # of a sum or a product of matrices
    reads: list[Read]

    def lines(self) -> list[str]:
        """The explanation as text."""
        shown = [f"{element(self.name, self.place)} = {self.value:.6g}, by {self.source}"]
        if self.text and self.text != self.numbers and not self.terms:
            shown += [f"    = {self.text}", f"    = {self.numbers}"]
        if self.terms:
            shown.append(f"    the sum of {counted(len(self.terms), 'term')}:")
            shown += [f"    {term}" for term in self.terms[:SHOWN]]
            if len(self.terms) > SHOWN:
                rest = sum(term.value for term in self.terms[SHOWN:])
                shown.append(f"    ... and {len(self.terms) - SHOWN} more, together {rest:.6g}")
        return shown


def explain(trace: StepTrace, stop: Stop, name: str, index: Sequence[int], line: Line | None = None) -> Explanation:
    """The origin of one number of a stop.

    name: an array that a line of the stop made (the last such line counts, or give the line), or a gradient that
    arrived, such as dy, or `grad` of a parameter.
    Raises: InputError for an array that is not there, and an index outside of it.
    """
    arrived = {value.name: sent for value, sent in zip(stop.inputs, stop.waited, strict=False)}
    if line is None and name in arrived and stop.kind in ("backward", "update"):
        return _sum_of(trace, stop, name, tuple(index), arrived[name])
    if line is None:
        line = next((one for one in reversed(stop.lines) if name in one.made and one.depth == 0), None)
        line = line or next((one for one in reversed(stop.lines) if name in one.made), None)
    if line is None or name not in line.made:
        made = sorted({name for one in stop.lines for name in one.made})
        raise InputError(f"explain: no line of {stop.title} made {name!r}; they made {', '.join(made) or 'nothing'}")
    array = line.made[name]
    place = _checked(name, index, array)
    assert array is not None
    try:
        part = _Evaluation(stop, line).of(name, place)
        if part.text.startswith("<"):  # what was called may have lines of its own
            part = _unpacked(stop, line, array, place, part)
    except Unknown:
        part = _unpacked(stop, line, array, place, _Part(float(array[place]), "", "", [], []))
    return Explanation(name, place, float(array[place]), line.text, part.text, part.numbers, part.terms, part.reads)


def element(name: str, index: tuple[int, ...]) -> str:
    """An element as it is written: dx[0, 3]."""
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def _checked(name: str, index: Sequence[int], array: Array | None) -> tuple[int, ...]:
    if array is None:
        raise InputError(f"explain: {name} was left out of the trace; trace with a larger `largest`")
    place = tuple(int(i) for i in index)
    if len(place) != array.ndim or not all(-size <= i < size for i, size in zip(place, array.shape, strict=True)):
        raise InputError(f"explain: {name} has shape {array.shape}; {list(place)} is no index of it")
    return tuple(i % size for i, size in zip(place, array.shape, strict=True))


def _sum_of(trace: StepTrace, stop: Stop, name: str, index: tuple[int, ...], sent: list[Sent]) -> Explanation:
    """The explanation of a gradient that arrived: a sum over its consumers."""
    array = stop.grad if isinstance(stop, ParameterStop) else stop.value(name).array
    place = _checked(name, index, array)
    assert array is not None
    terms, reads = [], []
    for one in sent:
        if one.array is not None:
            number = float(one.array[place])
            terms.append(Term(f"{element(one.name, place)} from {sender(one, trace.stops)}", f"{number:.6g}", number))
            reads.append(Read(f"stop {one.stop}: {one.name}", place, number))
    text = " + ".join(term.numbers for term in terms)
    return Explanation(name, place, float(array[place]), "what its consumers sent", text, text, terms, reads)


def _unpacked(stop: Stop, line: Line, array: Array, place: tuple[int, ...], otherwise: _Part) -> _Part:
    """The part for a line that gives an array another name: `norm, rstd = saved`, or `h, saved_gate = silu(gate)`."""
    number = float(array[place])
    for before in reversed(stop.lines[: stop.lines.index(line)]):
        for name, made in before.made.items():
            if made is not array or (before.text.startswith("def ") and before.function != line.function):
                continue
            if before.function == line.function:
                return _Part(number, element(name, place), _short(number), [], [Read(name, place, number)])
            with contextlib.suppress(Unknown):
                return _Evaluation(stop, before).of(name, place)
    return otherwise


class _Part(NamedTuple):
    """A part of an expression at one element."""

    value: float
    text: str
    numbers: str
    terms: list[Term]
    reads: list[Read]
    tight: bool = True  # needs no parentheses


class _Evaluation:
    """Evaluates the right-hand side of a line at one element."""

    def __init__(self, stop: Stop, line: Line):
        self.stop, self.line = stop, line
        self.globals, self.names = names_before(stop, line)
        self.arrays: dict[int, Any] = {}  # whole values of parts of the expression

    def of(self, name: str, index: tuple[int, ...]) -> _Part:
        """The part that a name was bound to."""
        if self.line.text.startswith("add_at("):
            return self._scattered(index)
        stored = self._stored(name, index)
        return self.at(self._expression(name), index) if stored is None else stored

    def _stored(self, name: str, index: tuple[int, ...]) -> _Part | None:
        """An element after `name[key] = value`: one of the value, or what was there; None for another line."""
        match statement_of(self.line.text):
            case ast.Assign([ast.Subscript(ast.Name(target)) as place], value) if target == name:
                before = self.whole(place.value)
            case _:
                return None
        places = np.arange(before.size).reshape(before.shape)
        taken = self._evaluated(replaced(place, place.value), places)
        found = np.argwhere(np.asarray(taken) == places[index]).tolist()
        if found:
            return self.at(value, tuple(found[-1]))
        number = float(before[index])
        return _Part(number, element(name, index), _short(number), [], [Read(name, index, number)])

    def _scattered(self, index: tuple[int, ...]) -> _Part:
        """An element of a sum of rows by their places: `add_at(into, where, rows)`, and `into` was 0."""
        [statement] = ast.parse(self.line.text).body
        into, where, rows = statement.value.args  # type: ignore[attr-defined]
        shape = np.shape(self.whole(into))
        places = np.arange(math.prod(shape)).reshape(shape)
        terms, reads = [], []
        for place in np.argwhere(places[self.whole(where)] == places[index]).tolist():
            part = self.at(rows, tuple(place))
            terms.append(Term(part.text, part.numbers, part.value))
            reads += part.reads
        total = sum(term.value for term in terms)
        return _Part(total, _sum_text(terms, "text"), _sum_text(terms, "numbers"), terms, reads, tight=False)

    def _expression(self, name: str) -> ast.expr:
        statement = statement_of(self.line.text)
        if isinstance(statement, ast.AugAssign):
            target = ast.parse(ast.unparse(statement.target), mode="eval").body
            return ast.fix_missing_locations(ast.BinOp(target, statement.op, statement.value))
        if isinstance(statement, ast.Return):
            return ast.parse(name, mode="eval").body
        if isinstance(statement, ast.Assign):
            value = statement.value
            first, _, item = name.partition("[")  # pieces[1] is an item of what is bound to pieces
            for target in statement.targets:
                if isinstance(target, ast.Name) and target.id == first:
                    return ast.parse(f"({ast.unparse(value)})[{item}" if item else ast.unparse(value), mode="eval").body
                if isinstance(target, ast.Tuple):
                    for number, one in enumerate(target.elts):
                        if isinstance(one, ast.Name) and one.id == name:
                            values = value.elts if isinstance(value, ast.Tuple) else []
                            return values[number] if number < len(values) else item_of(value, number)
        raise Unknown

    def whole(self, node: ast.expr) -> Any:
        """The value of a part of the expression."""
        if id(node) not in self.arrays:
            try:
                with np.errstate(all="ignore"):
                    code = compile(ast.Expression(node), self.line.function, "eval")
                    self.arrays[id(node)] = eval(code, self.globals, self.names)
            except Exception:
                raise Unknown from None
        return self.arrays[id(node)]

    def at(self, node: ast.expr, index: tuple[int, ...]) -> _Part:
        """A part of the expression at an element of what the whole of it is broadcast to."""
        value = self.whole(node)
        place = fitted(index, np.shape(value))
        if isinstance(node, (ast.Name, ast.Attribute)) and hasattr(value, "shape") and not is_move(node):
            number = float(value[place]) if place else float(value)
            return _Part(
                number, element(ast.unparse(node), place), _short(number), [], [Read(ast.unparse(node), place, number)]
            )
        if np.ndim(value) == 0 and isinstance(node, (ast.Name, ast.Attribute, ast.Constant)):
            return _Part(float(value), ast.unparse(node), _short(float(value)), [], [])
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return self._joined(
                OPERATORS[type(node.op)], self.at(node.left, place), self.at(node.right, place), _number(value, place)
            )
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inner = self.at(node.operand, place)
            return inner._replace(
                value=-inner.value,
                text=f"-{_bracketed(inner, 'text')}",
                numbers=f"-{_bracketed(inner, 'numbers')}",
                terms=[],
            )
        if isinstance(node, ast.IfExp):
            return self.at(node.body if self.whole(node.test) else node.orelse, place)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            return self._product(node.left, node.right, place, _number(value, place))
        if isinstance(node, ast.Call):
            return self._call(node, place, value)
        return self._moved(node, place, value)

    def _joined(self, sign: str, a: _Part, b: _Part, value: float) -> _Part:
        text = f"{_bracketed(a, 'text')} {sign} {_bracketed(b, 'text')}"
        numbers = f"{_bracketed(a, 'numbers')} {sign} {_bracketed(b, 'numbers')}"
        return _Part(value, text, numbers, [], [*a.reads, *b.reads], tight=False)

    def _call(self, node: ast.Call, place: tuple[int, ...], value: Any) -> _Part:
        function = ast.unparse(node.func)
        name = function.rpartition(".")[2]
        arguments = list(node.args)
        if isinstance(node.func, ast.Attribute) and not isinstance(self.whole(node.func.value), ModuleType):
            arguments = [node.func.value, *arguments]  # x.sum() is np.sum(x)
        if name == "matmul":
            return self._product(arguments[0], arguments[1], place, _number(value, place))
        if name in UNCHANGED:
            return self.at(arguments[0], place)
        if name in FILLED:
            return _Part(FILLED[name], _short(FILLED[name]), _short(FILLED[name]), [], [])
        if name in REDUCTIONS and np.ndim(self.whole(arguments[0])):
            return self._reduced(name, node, arguments, place, value)
        if name == "where" and len(arguments) == 3:
            chosen = np.broadcast_to(self.whole(arguments[0]), np.shape(value))[place]
            return self.at(arguments[1 if chosen else 2], place)
        if name in ELEMENTWISE.split():
            parts = [self.at(one, place) for one in arguments]
            text, numbers = (", ".join(getattr(part, kind) for part in parts) for kind in ("text", "numbers"))
            reads = [read for part in parts for read in part.reads]
            return _Part(_number(value, place), f"{name}({text})", f"{name}({numbers})", [], reads)
        return self._moved(node, place, value)

    def _product(self, left: ast.expr, right: ast.expr, place: tuple[int, ...], value: float) -> _Part:
        """An element of a matrix product: a row times a column."""
        a, b = self.whole(left), self.whole(right)
        if np.ndim(a) < 2 or np.ndim(b) < 2:
            raise Unknown
        *batch, i, j = place
        terms, reads = [], []
        for k in range(a.shape[-1]):
            x, y = self.at(left, (*batch, i, k)), self.at(right, (*batch, k, j))
            terms.append(Term(f"{x.text} * {y.text}", f"{x.numbers} * {y.numbers}", x.value * y.value))
            reads += [*x.reads, *y.reads]
        return _Part(value, _sum_text(terms, "text"), _sum_text(terms, "numbers"), terms, reads, tight=False)

    def _reduced(
        self, name: str, node: ast.Call, arguments: list[ast.expr], place: tuple[int, ...], value: Any
    ) -> _Part:
        """An element of a sum or a mean: all elements along its axes. Of a largest or smallest: that element."""
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        axis = (
            self.whole(given["axis"]) if "axis" in given else self.whole(arguments[1]) if len(arguments) > 1 else None
        )
        keepdims = bool(self.whole(given["keepdims"])) if "keepdims" in given else False
        shape = np.shape(self.whole(arguments[0]))
        axes = tuple(range(len(shape))) if axis is None else tuple(int(i) % len(shape) for i in np.atleast_1d(axis))
        rest = iter(() if keepdims else place)
        fixed = [place[i] if keepdims else None if i in axes else next(rest) for i in range(len(shape))]
        terms, reads, number = [], [], _number(value, place)
        for along in np.ndindex(*(shape[i] for i in axes)):
            moved = list(fixed)
            for i, at in zip(axes, along, strict=True):
                moved[i] = at
            part = self.at(arguments[0], tuple(int(i or 0) for i in moved))
            if name in ("sum", "mean"):
                terms.append(Term(part.text, part.numbers, part.value))
                reads += part.reads
            elif part.value == number:
                return part
        return _Part(number, element(ast.unparse(node), place), _short(number), terms, reads)

    def _moved(self, node: ast.expr, place: tuple[int, ...], value: Any) -> _Part:
        """An element that was only moved: its place is found by moving the places of all elements likewise."""
        number = _number(value, place)
        for inner in operands(node):
            whole = self.whole(inner)
            arrays = whole if isinstance(whole, (list, tuple)) else [whole]
            if all(one is None for one in arrays) or not all(isinstance(one, np.ndarray | None) for one in arrays):
                continue
            starts = np.cumsum([0, *(0 if one is None else one.size for one in arrays)])
            places = [
                None if x is None else start + np.arange(x.size).reshape(x.shape)
                for start, x in zip(starts[:-1], arrays, strict=True)
            ]
            try:
                moved = self._evaluated(replaced(node, inner), places if whole is arrays else places[0])
                flat = int(np.broadcast_to(moved, np.shape(value))[place])
                which = int(np.searchsorted(starts, flat, side="right")) - 1
                found = tuple(int(i) for i in np.unravel_index(flat - starts[which], arrays[which].shape))
            except (Unknown, ValueError, TypeError, IndexError):  # it computes something
                continue
            if arrays[which][found] == number:
                if whole is not arrays:
                    return self.at(inner, found)
                name = f"{ast.unparse(inner)}[{which}]"
                return _Part(number, element(name, found), _short(number), [], [Read(name, found, number)])
        call = node.value if isinstance(node, ast.Subscript) else node
        if isinstance(call, ast.Call) and (followed := self._followed(call, place, value)) is not None:
            return followed
        return _Part(number, element(f"<{ast.unparse(node)}>", place), _short(number), [], [])

    def _evaluated(self, node: ast.expr, places: Any) -> Any:
        """The value of an expression in which the name PLACES stands for these."""
        try:
            code = compile(ast.Expression(node), "", "eval")
            return eval(code, self.globals | self.names | {PLACES: places})
        except Exception:  # a name that the trace has no value of, or something that computes
            raise Unknown from None

    def _followed(self, node: ast.Call, place: tuple[int, ...], value: Any) -> _Part | None:
        """The element by the last line of the function that was called, in its names, if the trace has its lines."""
        lines = self.stop.lines[: self.stop.lines.index(self.line)]
        returned = [
            line
            for line in lines
            if line.depth == self.line.depth + 1
            and line.name == ast.unparse(node.func)
            and line.text.startswith("return")
        ]
        for line in reversed(returned):
            for name, array in line.made.items():
                if (
                    array is not None
                    and array.shape == np.shape(value)
                    and np.array_equal(array, value, equal_nan=True)
                ):
                    return _Evaluation(self.stop, line).of(name, place)
        return None


def _number(value: Any, place: tuple[int, ...]) -> float:
    return float(np.asarray(value)[place])


def _sum_text(terms: list[Term], kind: str) -> str:
    return " + ".join(getattr(term, kind) for term in terms) or "0"


def _short(number: float) -> str:
    return f"{number:.5g}"


def _bracketed(part: _Part, kind: str) -> str:
    text = getattr(part, kind)
    return text if part.tight else f"({text})"
