"""Plain functions watched line by line: after each line, the arrays that it made or changed.

`LineWatcher.watching()` sets a trace function (sys.settrace) for the thread. Python calls it for every function that
is entered; only those that were asked for get a trace function of their own, so that nothing else gets slower. A "line"
event comes before a line runs, so what a line made is seen at the event after it, by comparing the names: a name that
is bound to another object was assigned to. Only a statement that may write into an array (`x += 1`, `x[i] = 1`,
`add_at(x, ...)`, `out=x`) has the arrays that it names compared number by number.

A debugger or a coverage tool that had a trace function before is asked first at every event, so it goes on as before.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.device import is_on_gpu, to_host
from minillm.study.step.records import Line, Source

MOST_ITEMS = 64  # of a tuple or list, whose arrays are shown one by one
UPDATE_SHARE = 8  # an optimiser's lines make ten arrays of each parameter's size: only smaller ones are kept
LONGEST_VALUE = 80  # letters
COMPREHENSIONS = ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>", "<lambda>")


def is_array(value: Any) -> bool:
    """True for arrays and NumPy's numbers, which are results without dimensions."""
    return isinstance(value, (np.ndarray, np.generic)) or is_on_gpu(value)


def short(value: Any) -> str:
    """A value as text, which ends where it gets long."""
    text = f"array {value.shape} {value.dtype}" if is_array(value) else repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


class Keeper:
    """Copies of arrays, one for all that are equal; an array with more than `largest` elements is not kept.

    A copy has its axes in memory in the order of the original, so that what reads it takes the same road.
    """

    def __init__(self, largest: int):
        self.largest = largest
        self.left_out = 0
        self._kept: dict[tuple, Array] = {}

    def keep(self, array: Any, share: int = 1) -> Array | None:
        """A copy that nobody can write to, or None for an array that is larger than a share of `largest`."""
        array = np.asarray(to_host(array) if is_on_gpu(array) else array)
        if array.size > self.largest // share:
            self.left_out += 1
            return None
        key = (array.dtype.str, array.shape, order_of_axes(array), digest(array))
        if key not in self._kept:
            self._kept[key] = array.copy(order="K")
            self._kept[key].flags.writeable = False
        return self._kept[key]


def order_of_axes(array: Array) -> tuple[int, ...]:
    """The axes from the one with the largest steps in memory to that with the smallest; of size 1, as they stand."""
    long = [axis for axis, size in enumerate(array.shape) if size > 1 and array.strides[axis]]
    by_step = iter(sorted(long, key=lambda axis: -abs(array.strides[axis])))
    return tuple(next(by_step) if axis in long else axis for axis in range(array.ndim))


def digest(array: Array) -> bytes:
    """A checksum of the numbers; arrays with unequal numbers have unequal ones."""
    return hashlib.blake2b(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, digest_size=16).digest()


class Statement(NamedTuple):
    """A statement of a function: the line that it begins on, its text, and the names that it may write into."""

    first: int
    text: str
    written: tuple[str, ...]
    returned: tuple[str, ...]  # the expressions behind `return`, one for each value


class Reader:
    """The statements of functions by line, read once for each code object."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self._statements: dict[CodeType, tuple[str, dict[int, Statement]]] = {}

    def read(self, frame: FrameType) -> tuple[str, dict[int, Statement]]:
        """The key of a frame's function in `sources`, and its statement of each line number."""
        code = frame.f_code
        if code not in self._statements:
            key = f"{frame.f_globals.get('__name__', '?')}.{code.co_qualname}"
            self._statements[code] = key, self._read(key, code, frame.f_globals.get("__doc__") or "")
        return self._statements[code]

    def _read(self, key: str, code: CodeType, derivation: str) -> dict[int, Statement]:
        try:
            lines, first = inspect.getsourcelines(code)
        except OSError:  # made by exec, or typed into a REPL
            lines, first = [], code.co_firstlineno
        text = "".join(lines)
        self.sources[key] = Source(code.co_filename, first, tuple(text.splitlines()), derivation)
        try:
            tree = ast.parse(textwrap.dedent(text))
        except SyntaxError:  # a lambda within a call
            return {}
        found: dict[int, Statement] = {}
        for node in ast.walk(tree):  # outer statements first, so that inner ones overwrite their lines
            if isinstance(node, ast.stmt):
                self._add(found, node, lines, first - 1)
        return found

    @staticmethod
    def _add(found: dict[int, Statement], node: ast.stmt, lines: list[str], before: int) -> None:
        head = node
        last = node.end_lineno or node.lineno
        if isinstance(getattr(node, "body", None), list):  # of a compound statement, its head alone
            last = max(node.lineno, node.body[0].lineno - 1)  # type: ignore[attr-defined]
        text = " ".join(line.strip() for line in lines[node.lineno - 1 : last] if line.strip())
        returned: tuple[str, ...] = ()
        if isinstance(node, ast.Return) and node.value is not None:
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            returned = tuple(ast.unparse(value) for value in values)
        statement = Statement(before + node.lineno, text, _written_names(head), returned)
        for number in range(node.lineno, last + 1):
            found[before + number] = statement


def _written_names(node: ast.stmt) -> tuple[str, ...]:
    """The names whose arrays a statement may write into."""
    if hasattr(node, "body"):
        return ()
    in_place = isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    for part in ast.walk(node):
        stored = isinstance(part, ast.Subscript) and isinstance(part.ctx, ast.Store)
        in_place = in_place or stored or (isinstance(part, ast.keyword) and part.arg == "out")
    return tuple(sorted({part.id for part in ast.walk(node) if isinstance(part, ast.Name)})) if in_place else ()


class Call:
    """A watched function that runs: what its names are bound to, and the statement that is at work."""

    def __init__(self, frame: FrameType, half: str, depth: int, reader: Reader):
        self.frame, self.half, self.depth = frame, half, depth
        self.function, self.statements = reader.read(frame)
        self.seen: dict[str, Any] = {}
        self.statement: Statement | None = None
        self.sums: dict[str, bytes] = {}  # checksums of the arrays that the statement may write into
        self.error = ""

    def begin(self, number: int) -> None:
        """A statement is about to run."""
        self.error = ""
        self.seen = dict(self.frame.f_locals)
        self.statement = self.statements.get(number) or Statement(number, "", (), ())
        self.sums = {name: digest(self.seen[name]) for name in self.statement.written if _is_host(self.seen.get(name))}

    def end(self) -> None:
        """Let go of the frame, which would keep its arrays alive, as it holds the trace function that holds this."""
        self.frame, self.seen = None, {}  # type: ignore[assignment]

    def changed(self) -> dict[str, Any]:
        """The arrays that the statement bound or wrote into, by name."""
        now = self.frame.f_locals
        return {
            name: value
            for name, value in now.items()
            if name not in self.seen
            or self.seen[name] is not value
            or (name in self.sums and self.sums[name] != digest(value))
        }


def _is_host(value: Any) -> bool:
    return isinstance(value, np.ndarray)


class LineWatcher:
    """Watches the functions that are asked for, and gives every line that ran to `on_line(line, frame)`.

    expected: the code objects of functions to watch, each with the half of the step that it is. What such a function
    calls in its own package of operations, or in its own file, is watched too.
    """

    def __init__(self, keeper: Keeper, on_line: Callable[[Line, FrameType], Any]):
        self.keeper, self.on_line = keeper, on_line
        self.expected: dict[CodeType, str] = {}
        self.reader = Reader()
        self.calls: list[Call] = []
        self._before: Any = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch this thread until the block ends."""
        self._before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(self._before)
            self.calls.clear()

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        """The trace function of the thread: called for every function that is entered."""
        other = self._ask(self._before, frame, event, argument)
        caller = self.calls[-1] if self.calls else None
        if caller is not None and caller.frame is frame.f_back:
            if not _is_helper(frame, frame.f_back):
                return other
            half, depth = caller.half, caller.depth + 1
        elif frame.f_code in self.expected:
            half, depth = self.expected[frame.f_code], 0
        else:
            return other
        call = Call(frame, half, depth, self.reader)
        self.calls.append(call)
        self._emit(call, frame.f_code.co_firstlineno, dict(frame.f_locals))
        return self._local(call, other)

    def _local(self, call: Call, other: Any) -> Callable:
        """The trace function of a watched call; `other` is what a debugger wants to be called."""

        def step(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal other
            other = self._ask(other, frame, event, argument)
            if event == "exception":
                call.error = f"{argument[0].__name__}: {argument[1]}"
            elif event == "line":
                self._line(call, frame.f_lineno)
            elif event == "return":
                self._finish(call, argument)
                if self.calls and self.calls[-1] is call:
                    self.calls.pop()
                call.end()
            if frame.f_trace is not None and frame.f_trace is not step:  # `on_line` has opened a debugger
                other = self._before = frame.f_trace
                sys.settrace(self._enter)
            return step

        return step

    def _ask(self, other: Any, frame: FrameType, event: str, argument: Any) -> Any:
        """Tell a debugger or a coverage tool of an event; returns whom it wants to be told next."""
        if other is None:
            return None
        wanted = other(frame, event, argument)
        now = sys.gettrace()
        if now is None:  # a debugger that was told to go on takes no further part
            self._before = wanted = None
        if now != self._enter:  # coverage tools put themselves in place
            sys.settrace(self._enter)
        return wanted

    def _line(self, call: Call, number: int) -> None:
        statement = call.statements.get(number)
        if call.statement is not None and statement is call.statement:
            return  # another line of one statement
        self._finish(call, None)
        call.begin(number)

    def _finish(self, call: Call, returned: Any) -> None:
        """Give away the statement that has run."""
        if call.statement is None:
            return
        changed = call.changed()
        if returned is not None and call.statement.returned:
            known = {id(value) for value in call.frame.f_locals.values()}
            values = returned if isinstance(returned, tuple) and len(call.statement.returned) > 1 else (returned,)
            if isinstance(returned, tuple) and len(call.statement.returned) == len(returned) == 1:
                values = returned
            for text, value in zip(call.statement.returned, values, strict=False):
                if id(value) not in known and is_array(value):
                    changed[text] = value
        self._emit(call, call.statement.first, changed, call.statement.text)
        call.statement = None

    def _emit(self, call: Call, number: int, changed: dict[str, Any], text: str | None = None) -> None:
        made: dict[str, Array | None] = {}
        values: dict[str, str] = {}
        for name, value in changed.items():
            self._show(name, value, made, values, UPDATE_SHARE if call.half == "update" else 1)
        if text is None:
            text = call.statements[number].text if number in call.statements else call.frame.f_code.co_name
        line = Line(call.function, call.half, number, text, made, values, call.depth, call.error)
        line.file = call.frame.f_code.co_filename
        self.on_line(line, call.frame)

    def _show(self, name: str, value: Any, made: dict[str, Array | None], values: dict[str, str], share: int) -> None:
        """Add the arrays of a value, and the text of what is none."""
        if is_array(value):
            made[name] = self.keeper.keep(value, share)
            if made[name] is None:
                values[name] = f"{value.shape} {value.dtype}, left out because it is large"
        elif isinstance(value, (tuple, list)) and len(value) <= MOST_ITEMS and _is_shown_by_item(value):
            fields = getattr(value, "_fields", None)
            for i, item in enumerate(value):
                self._show(f"{name}.{fields[i]}" if fields else f"{name}[{i}]", item, made, values, share)
        else:
            values[name] = short(value)


def _is_shown_by_item(value: Any) -> bool:
    return hasattr(value, "_fields") or any(map(_has_arrays, value))


def _has_arrays(value: Any) -> bool:
    return is_array(value) or (isinstance(value, (tuple, list)) and any(map(_has_arrays, value)))


def _is_helper(frame: FrameType, caller: FrameType) -> bool:
    """True for a function of the operations, or of the caller's own file."""
    if frame.f_code.co_name in COMPREHENSIONS:
        return False
    home, own = frame.f_globals.get("__name__", ""), caller.f_globals.get("__name__", "")
    return home == own or home.startswith("minillm.ops.")
