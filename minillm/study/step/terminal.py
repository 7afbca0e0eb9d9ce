"""The walk in the terminal: a step that waits after every line for what a person wants to see.

    minillm step --terminal                          forward, loss, backward, update
    minillm.study.step(loss)                         in place of loss.backward()
    minillm.study.step(lambda: model.loss(x, y))     the forward too

The step is live: it runs on only when the walk does. A line is shown when it has run, with the arrays that it made.
What has been walked through stays, so `back` looks at earlier lines without undoing them; `pdb` opens Python's debugger
in the function that runs. At the end of the input, or after `quit`, the step runs on to its end without waiting.
"""

from __future__ import annotations

import linecache
import pdb
import sys
import types
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple, TextIO

import numpy as np

from minillm.autograd import Tensor
from minillm.errors import InputError, did_you_mean
from minillm.study.step.checks import check_number
from minillm.study.step.environment import names_at
from minillm.study.step.explain import explain
from minillm.study.step.records import Line, StepTrace, Stop
from minillm.study.step.text import array_lines, array_text, why_lines
from minillm.study.step.trace import trace_backward

HELP = """\
n, next         run the next line (also the empty line, which repeats the last command)
o, op           run to the next operation
u, until NAME   run to an operation, module, half or array whose name has NAME: until h.0.ln_2, until backward
c, continue     run to the next break, or to the end
break nan       stop after a line that makes a NaN; likewise: break inf
break CONDITION stop after a line where a Python expression of its names is true: break abs(dx).max() > 1
clear           remove all breaks
p, print EXPR   the value of a Python expression of the names in the function: p dy.shape
w, why          the consumers that this backward waited for, the gradient that each one sent, and their sum
e, explain EXPR where an element comes from: explain dweight[5, 3]
check EXPR      the same element of a gradient by differences, after its backward: op, back, check dweight[5, 3]
back            look at the line before
l, list         the source around the line
where           the operation, its module, and the line of the model that called it
pdb             Python's debugger, in the function that runs
q, quit         run to the end without stopping
h, help         this text"""
SHORT = {"": "", "n": "next", "o": "op", "u": "until", "c": "continue", "b": "break", "p": "print", "w": "why"}
SHORT |= {"e": "explain", "l": "list", "q": "quit", "h": "help"}
COMMANDS = "next op until continue break clear print why explain check back list where pdb quit help".split()
AROUND = 4  # lines of source before and behind the line at hand


class Position(NamedTuple):
    """A place in the walk: a line that has run, or a stop without lines."""

    stop: Stop
    line: Line | None
    number: int  # of the line among those of its stop


class Walk:
    """A walk: `on_line` waits for commands where it should; see `trace_step(on_line=)`."""

    def __init__(self, stdin: TextIO | None = None, stdout: TextIO | None = None):
        self.stdin, self.stdout = stdin or sys.stdin, stdout or sys.stdout
        self.positions: list[Position] = []
        self.at = -1  # the position that is looked at
        self.shown: Stop | None = None  # the stop whose title was printed last
        self.frame: FrameType | None = None  # of the last position
        self.wanted: Callable[[Position], bool] | None = lambda position: True  # None: never again
        self.breaks: list[str] = []
        self.last = "next"
        self.sought = ""  # the name that `until` waits for

    def on_line(self, stop: Stop, line: Line | None, frame: FrameType | None) -> None:
        """A line has run: wait for commands, if a person wants to stop here."""
        number = len(stop.lines) - 1
        self.positions.append(position := Position(stop, line, number))
        self.frame = frame
        self.at = len(self.positions) - 1
        if self.wanted is None:
            return
        hit = next((text for text in self.breaks if self._breaks(text, position)), None)
        if hit is not None:
            self._say(f"break: {hit}")
        if hit is not None or self.wanted(position):
            self.sought = ""
            self._show()
            self._interact()

    # --- commands ----------------------------------------------------------------------------------------------------

    def _interact(self) -> None:
        """Read and do commands until one lets the step run on."""
        while True:
            print("(step) ", end="", file=self.stdout, flush=True)
            text = self.stdin.readline()
            if not text:
                self._say("")
                self.wanted = None
                return
            words = text.strip() or self.last
            self.last = words
            word, _, rest = words.partition(" ")
            command = SHORT.get(word, word)
            if command not in COMMANDS:
                self._say(f"step: there is no command {word!r}{did_you_mean(word, COMMANDS)}")
            elif getattr(self, f"_{command}")(rest.strip()):
                return

    def _next(self, rest: str) -> bool:
        return self._forward(lambda position: True)

    def _op(self, rest: str) -> bool:
        here = self.positions[self.at].stop
        return self._forward(lambda position: position.stop is not here)

    def _until(self, rest: str) -> bool:
        if not rest:
            self._say("step: until needs a name, such as: until h.0.ln_2")
            return False
        gone_on = self._forward(lambda position: _is_called(position, rest))
        self.sought = rest if gone_on else ""
        return gone_on

    def _continue(self, rest: str) -> bool:
        return self._forward(lambda position: False)

    def _forward(self, wanted: Callable[[Position], bool]) -> bool:
        """Go to the next wanted position: among those that were walked through, or by letting the step run on."""
        for at in range(self.at + 1, len(self.positions)):
            position = self.positions[at]
            if wanted(position) or any(self._breaks(text, position) for text in self.breaks):
                self.at = at
                self._show()
                return False
        self.wanted = wanted
        return True

    def end(self) -> None:
        """The step has ended: say so where `until` still waits for its name."""
        if self.sought and self.wanted is not None:
            self._say(f"step: the walk ended before anything called {self.sought!r}")

    def _quit(self, rest: str) -> bool:
        self.wanted = None
        return True

    def _back(self, rest: str) -> bool:
        if self.at == 0:
            self._say("this is the first line")
        else:
            self.at -= 1
            self._show()
        return False

    def _break(self, rest: str) -> bool:
        if rest and self._is_expression("break", rest):
            self.breaks.append(rest)
        self._say("breaks: " + ("; ".join(self.breaks) or "none"))
        return False

    def _clear(self, rest: str) -> bool:
        self.breaks.clear()
        return False

    def _is_expression(self, command: str, text: str) -> bool:
        """True for a Python expression; a person hears what is wrong with another text."""
        try:
            compile(text, command, "eval")
        except (SyntaxError, ValueError) as error:
            example = {"print": "print dy.shape", "break": "break abs(dx).max() > 1"}[command]
            self._say(f"step: {command} needs a Python expression, such as: {example} ({error.args[0]})")
            return False
        return True

    def _print(self, rest: str) -> bool:
        if not self._is_expression("print", rest):
            return False
        try:
            value = eval(rest, *self._names(self.positions[self.at]))
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}")
            return False
        self._say("\n".join(array_lines(rest, value)) if hasattr(value, "shape") else repr(value))
        return False

    def _why(self, rest: str) -> bool:
        self._say("\n".join(why_lines(self.positions[self.at].stop, [one.stop for one in self.positions])))
        return False

    def _explain(self, rest: str) -> bool:
        stop, line, _ = self.positions[self.at]

        def explained(name: str, place: list[int]) -> list[str]:
            made_here = line if line is not None and name in line.made else None
            return explain(self._trace(), stop, name, place, made_here).lines()

        return self._about_element("explain", rest, explained)

    def _check(self, rest: str) -> bool:
        stop = self.positions[self.at].stop
        return self._about_element(
            "check", rest, lambda name, place: [str(check_number(self._trace(), stop, name, place))]
        )

    def _about_element(self, command: str, text: str, say: Callable[[str, list[int]], list[str]]) -> bool:
        """Print what a function says of an element that is written as dx[0, 3]."""
        name, _, numbers = text.rstrip("] ").partition("[")
        try:
            if not name:
                raise ValueError
            place = [int(number) for number in numbers.split(",") if number.strip()]
        except ValueError:
            self._say(f"step: {command} needs an element, such as: {command} dweight[5, 3]")
            return False
        try:
            self._say("\n".join(say(name, place)))
        except InputError as error:
            self._say(f"{command}: {str(error).partition(': ')[2]}")  # not the name of the function behind it
        return False

    def _trace(self) -> StepTrace:
        """The trace that was walked through."""
        return StepTrace(list(dict.fromkeys(one.stop for one in self.positions)), {}, [], {}, 0.0, "")

    def _where(self, rest: str) -> bool:
        stop = self.positions[self.at].stop
        place = f", called at {stop.where}" if stop.where else ""
        self._say(f"stop {stop.index}: {stop.title}{place}")
        return False

    def _list(self, rest: str) -> bool:
        line = self.positions[self.at].line
        text = linecache.getlines(line.file) if line is not None else []
        if line is None or not text:
            self._say("there is no source here")
            return False
        for number in range(max(1, line.number - AROUND), min(len(text), line.number + AROUND) + 1):
            mark = "->" if number == line.number else "  "
            self._say(f"{number:>5} {mark} {text[number - 1].rstrip()}")
        return False

    def _pdb(self, rest: str) -> bool:
        if self.frame is None or self.at < len(self.positions) - 1:
            self._say("step: the function that made this line has gone on; go forward with next, then pdb")
            return False
        given = {} if self.stdin is sys.stdin else {"stdin": self.stdin, "stdout": self.stdout}
        pdb.Pdb(**given).set_trace(self.frame)  # type: ignore[arg-type]  # the line watcher asks it from now on
        self.wanted = lambda position: False
        return True

    def _help(self, rest: str) -> bool:
        self._say(HELP)
        return False

    # --- what is shown -----------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        print(text, file=self.stdout)

    def _show(self) -> None:
        """The line at hand, and what it made."""
        stop, line, _ = self.positions[self.at]
        if stop is not self.shown:
            self.shown = stop
            self._say(f"\n[{stop.index}] {stop.title}" + (f"  {stop.where}" if stop.where else ""))
        if line is None:
            for value in stop.outputs:
                self._say(f"    {array_text(value.name, value.array)}")
            return
        self._say(f"{'  ' * line.depth}{line.file.rsplit('/', 1)[-1]}:{line.number}  {line.text}")
        for name, array in line.made.items():
            self._say(f"    {array_text(name, array)}")
        for name, text in line.values.items():
            if name not in line.made:
                self._say(f"    {name} = {text}")
        if line.error:
            self._say(f"    raised {line.error}")

    def _names(self, position: Position) -> tuple[dict[str, Any], dict[str, Any]]:
        """The globals and the names of the function at a position."""
        if self.frame is not None and position is self.positions[-1]:
            return self.frame.f_globals, {"np": np, **self.frame.f_locals}
        return names_at(position.stop, position.line)

    def _breaks(self, text: str, position: Position) -> bool:
        """True where a break holds."""
        line = position.line
        if line is None:
            return False
        if text in ("nan", "inf"):
            test = np.isnan if text == "nan" else np.isinf
            return any(x is not None and x.dtype.kind == "f" and test(x).any() for x in line.made.values())
        try:
            return bool(np.any(eval(text, *self._names(position))))
        except Exception:  # a name that this function does not have yet
            return False


def _is_called(position: Position, name: str) -> bool:
    stop, line, _ = position
    return name in stop.title or (line is not None and (name in line.made or name == line.name))


def step(
    loss: Tensor | Callable[[], Tensor], gradient: Any = None, *, stdin: TextIO | None = None, stdout: Any = None
) -> StepTrace:
    """Walk through the backward of a loss in the terminal, in place of `loss.backward(gradient)`.

    loss: a tensor, whose forward has run, or a function that computes it: then the forward is walked through too, in
    the plain engine. The lines of a loss that was computed before are those of the pair of functions that ran; for the
    derivations compute it within `minillm.engine("plain")`. stdin, stdout: where the commands come from and the
    text goes.
    Returns: the trace of what ran; the gradients are in the leaves' `grad`, as after a backward.
    Raises: as `backward`.
    """
    walk = Walk(stdin, stdout)
    trace = trace_backward(loss, gradient, on_line=walk.on_line)
    walk.end()
    return trace


def module_is_callable(name: str) -> None:
    """Let `minillm.study.step(loss)` call `step`, although `minillm.study.step` is the package that it is in."""

    class Package(types.ModuleType):
        def __call__(self, *args: Any, **settings: Any) -> StepTrace:
            return step(*args, **settings)

    sys.modules[name].__class__ = Package
