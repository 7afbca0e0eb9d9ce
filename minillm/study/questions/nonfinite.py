"""`nonfinite()`: stop at the first operation, forward or backward, that makes a NaN or an infinity, and say where.

    with minillm.study.nonfinite():
        loss = model.loss(ids, targets)
        loss.backward()

MINILLM_CHECK=finite does so for a whole program, such as `MINILLM_CHECK=finite minillm train --resume runs/mine`, in
every thread. While neither is there, nothing is checked and nothing costs time; the check reads each array once.

An operation *makes* what its inputs do not have: NaN where no input has one, an infinity where none is infinite. So a
mask of -inf passes through additions, while a softmax of a row that is nothing but -inf is found. A NaN that was there
before (a weight after a step that was too large, a number in the data) is found at the first operation that reads it.

Then the operation's plain forward or backward runs once more, line by line, and the first line that makes one is
shown. What a fast pair or a kernel kept for its backward is not what the plain backward reads; there the error names
the operation, and MINILLM_ENGINE=plain gives the line.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minillm import random
from minillm.autograd import Backward, Forward, Node, Parameter, enable_grad, observe
from minillm.backend import is_abstract
from minillm.device import is_on_gpu, to_host
from minillm.engine import current_engine
from minillm.errors import MinillmError
from minillm.finite import Kinds, kinds_of, made
from minillm.grad_mode import Observer, observe_in_all_threads
from minillm.study.describe.abstract_step import arrays_of
from minillm.study.questions.remedies import remedy
from minillm.study.questions.statistics import Statistics
from minillm.study.questions.walk import name_of, source_of
from minillm.study.step.lines import Keeper, LineWatcher
from minillm.study.step.records import Line


class NonFiniteError(MinillmError, FloatingPointError):
    """An operation made a NaN or an infinity; the text is a report."""


@contextlib.contextmanager
def nonfinite() -> Iterator[None]:
    """Raise NonFiniteError at the first operation of this thread that makes a NaN or an infinity, until the block ends.

    The error names the operation, its layer, the line that called it, the line of its formula, the statistics of its
    inputs, and a remedy.
    """
    with observe(check_forward, check_backward):
        yield


def check_always() -> None:
    """Check every operation of the program, in all threads: MINILLM_CHECK=finite."""
    observe_in_all_threads(Observer(check_forward, check_backward))


# --- what is made --------------------------------------------------------------------------------------------------


def check_forward(call: Forward) -> None:
    """Raise NonFiniteError for a forward that made a NaN or an infinity, or that reads one from a leaf."""
    if is_abstract():
        return
    with np.errstate(all="ignore"):
        before, after = kinds_of([*call.inputs, *call.settings.values()]), kinds_of(call.outputs)
        if call.node is not None and (before.nan or before.infinite):
            _check_leaves(call, call.node)
        if not (after.nan or after.infinite):
            return
        new = made(before, after)
        if new:
            lines = _lines(call.op.forward, *call.inputs, **call.settings)
            hint = f"the plain formula gives finite numbers here: the pair of engine {current_engine()!r} makes others"
            raise _error(f"the forward of {call.op.name} made {new}", call, lines or [hint])
        if after.nan:
            number = next(i for i, x in enumerate(call.inputs) if kinds_of([x]).nan)
            told = f"input {number} of {call.op.name} holds NaN, and no operation that was checked made it"
            raise _error(told, call, [], "look at where this array comes from: data, or what ran before the check")


def _check_leaves(call: Forward, node: Node) -> None:
    """Raise NonFiniteError for a leaf that is not finite and gets a gradient."""
    for edge in node.edges:
        if edge is not None and not isinstance(edge[0], Node) and any(kinds_of([edge[0].data])):
            leaf = edge[0]
            cause = "a step of the optimiser made it so, or the file that it was loaded from"
            advice = f"{cause}: lower the learning rate, clip gradients, or look at the file"
            what = "parameter" if isinstance(leaf, Parameter) else "leaf"
            raise _error(f"the {what} {name_of(leaf)} is not finite before {call.op.name} reads it", call, [], advice)


def check_backward(call: Backward) -> None:
    """Raise NonFiniteError for a backward that made a NaN or an infinity."""
    if is_abstract():
        return
    node = call.node
    with np.errstate(all="ignore"):
        asked = [dx for dx, edge in zip(call.dinputs, node.edges, strict=True) if edge is not None]
        before, after = kinds_of(call.douts), kinds_of(asked)
        if not (after.nan or after.infinite):
            return
        new = made(before, after)
        if new:
            raise _error(f"the backward of {call.op.name} made {new}", call, _lines_of_backward(call))
        if after.nan:
            told = f"the gradient that reached the backward of {call.op.name} holds NaN"
            raise _error(told, call, [], "look at the gradient that was given to backward(), and at hooks")


# --- the line ------------------------------------------------------------------------------------------------------


class Suspects(Keeper):
    """Keeps the arrays that are not finite, and none of the others."""

    def __init__(self) -> None:
        super().__init__(0)

    def keep(self, array: Any, share: int = 1) -> Any:
        """The array itself if it is not finite, otherwise None."""
        array = np.asarray(to_host(array) if is_on_gpu(array) else array)
        return array if any(kinds_of([array])) else None


def _lines(function: Callable, *arguments: Any, **settings: Any) -> list[str]:
    """Run a plain function once more; the first line that makes what is not finite, and the first that makes NaN."""
    found: list[tuple[Line, str, Kinds, str]] = []
    given = {id(x) for _, x in arrays_of(arguments)}

    def look(line: Line, frame: Any) -> None:
        if line.number == frame.f_code.co_firstlineno or line.text.startswith("def "):
            return
        for name, array in line.made.items():
            if array is not None and id(array) not in given:
                found.append((line, name, kinds_of([array]), frame.f_code.co_filename))

    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return [f"{function!r} has no lines of Python to watch"]
    watcher = LineWatcher(Suspects(), look)
    watcher.expected[code] = "forward"
    place = random.default.state()
    try:
        with (
            watcher.watching(),
            contextlib.suppress(ArithmeticError, LookupError, TypeError, ValueError),
            enable_grad(),
        ):
            function(*arguments, **settings)
    finally:
        random.default.set_state(place)
    first = found[:1] + [one for one in found if one[2].nan][:1]
    texts = [
        f"{'/'.join(path.split('/')[-2:])}:{line.number}  {line.text}\n              "
        f"{name if name.replace('.', '_').isidentifier() else 'the result'} {_elements(line.made[name])}"
        for line, name, _, path in first
    ]
    return list(dict.fromkeys(texts))


def _lines_of_backward(call: Backward) -> list[str]:
    node = call.node
    if node.backward is not call.op.backward or is_on_gpu(next(x for x in call.douts if x is not None)):
        return [
            f"engine {current_engine()!r} ran a pair of its own; MINILLM_ENGINE=plain gives the line of the formula"
        ]
    dout = tuple(call.douts) if node.multiple_outputs else call.douts[0]
    into = ((None,) * len(node.edges),) if node.writes_into else ()
    return _lines(node.backward, dout, node.saved, *into)


def _elements(array: Any) -> str:
    """`(2, 3): 1 of 6 elements is NaN, the first at (0, 2)`."""
    array = np.asarray(array, np.float64)
    bad = ~np.isfinite(array)
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    count = int(bad.sum())
    value = array[first]
    what = "NaN" if np.isnan(value) else f"{value}"
    return f"{array.shape}: {count} of {array.size} not finite, the first is {what}" + (f" at {first}" if first else "")


# --- the report ----------------------------------------------------------------------------------------------------


def _error(told: str, call: Forward | Backward, lines: list[str], advice: str = "") -> NonFiniteError:
    half = "forward" if isinstance(call, Forward) else "backward"
    arrays = _named_arrays(call)
    text = [f"nonfinite: {told}", f"  where       {_place(call)}"]
    text += [f"  line        {line}" for line in lines]
    text += [f"  {name:<11} {Statistics.of(array)}" for name, array in arrays]
    text.append(f"  remedy      {advice or remedy(call.op.name, half)}")
    return NonFiniteError("\n".join(text))


def _named_arrays(call: Forward | Backward) -> list[tuple[str, Any]]:
    if isinstance(call, Forward):
        named = [*((f"input {i}", x) for i, x in enumerate(call.inputs)), *(("output", y) for y in call.outputs)]
    else:
        kept = [(f"saved.{name}" if name else "saved", x) for name, x in arrays_of(call.node.saved)]
        results = [(f"gradient {i}", x) for i, x in enumerate(call.dinputs)]
        named = [*(("dout", x) for x in call.douts), *kept, *results]
    return [(name, x) for name, x in named if hasattr(x, "dtype") and x.dtype.kind in "fV"]


def _place(call: Forward | Backward) -> str:
    layer = f"{call.scope}, " if call.scope else ""
    if call.node is not None:
        return f"{layer}called at {call.node.location()}: {source_of(call.node)}"
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        ("minillm.study", "minillm.autograd", "minillm.ops")
    ):
        frame = frame.f_back
    return f"{layer}called at {frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"
