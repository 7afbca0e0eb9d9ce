"""Two traces of a step beside each other: the first stop and the first line that differ, and by how much.

    compare_traces(trace, other).report()

Two engines, two models of one shape, or a backward against a mutation of it. Stops are paired in order, by half,
operation and module; lines by the arrays that they made. Engines other than the plain one have no lines, so the inputs
and outputs of their operations are compared.
"""

from __future__ import annotations

import difflib
import importlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.engine import ENGINES
from minillm.errors import InputError, MinillmError, did_you_mean
from minillm.resolver import find
from minillm.study.step.records import Line, ParameterStop, StepTrace, Stop
from minillm.study.step.setup import PreparedStep, prepare
from minillm.training.config import TrainConfig

ROUNDING = 1e-6  # a gradient below this share of the norm of all is rounding
BETWEEN_ENGINES = 1e-4  # difference over the largest number that rounding in another order explains


class Difference(NamedTuple):
    """An array that differs, or that only one of two traces has; `stops` and `lines` are those of the two traces."""

    stops: tuple[int | None, int | None]
    lines: tuple[Line | None, Line | None]
    name: str
    error: float  # the largest difference over the largest number; infinite for shapes and for NaN
    numbers: tuple[float, float] | None  # at the element with the largest difference
    place: tuple[int, ...]  # of this element


@dataclass
class Comparison:
    """Two traces, which stops belong together, and how much each pair differs."""

    a: StepTrace
    b: StepTrace
    titles: tuple[str, str]
    tolerance: float
    pairs: list[tuple[int | None, int | None]]
    errors: list[float]  # of each pair: the largest error of its arrays
    first: Difference | None  # the first that is larger than the tolerance

    def report(self) -> list[str]:
        """The comparison as text."""
        a, b = self.titles
        larger = sum(not error <= self.tolerance for error in self.errors)
        lines = [
            f"{a}: loss {self.a.loss:.7g}; {b}: loss {self.b.loss:.7g}",
            f"{larger} of {len(self.pairs)} stops differ by more than {self.tolerance:g} of their largest number",
        ]
        return lines + (self._first_lines() if self.first is not None else ["no stop differs"])

    def _first_lines(self) -> list[str]:
        first = self.first
        assert first is not None
        stop = self._stop(first)
        lines = [
            f"the first that differs is stop {stop.index}, {stop.title}" + (f", {stop.where}" if stop.where else "")
        ]
        for title, line in zip(self.titles, first.lines, strict=True):
            if line is not None:
                lines.append(f"    {title}: {line.file.rsplit('/', 1)[-1]}:{line.number}  {line.text}")
        if first.numbers is None:
            return [*lines, f"    {first.name} is in one of them alone, or its shapes differ"]
        place = f"{first.name}[{', '.join(map(str, first.place))}]"
        return [
            *lines,
            f"    {place} is {first.numbers[0]:.7g} and {first.numbers[1]:.7g}, an error of {first.error:.2g}",
        ]

    def _stop(self, difference: Difference) -> Stop:
        in_a, in_b = difference.stops
        return self.a.stops[in_a] if in_a is not None else self.b.stops[in_b or 0]

    def to_json(self) -> dict[str, Any]:
        """The comparison as a JSON object, for the page; an infinite error is null."""
        found: dict[str, Any] = {
            "titles": list(self.titles),
            "tolerance": self.tolerance,
            "losses": [self.a.loss, self.b.loss],
            "pairs": [list(pair) for pair in self.pairs],
            "errors": [error if np.isfinite(error) else None for error in self.errors],
            "first": None,
        }
        if self.first is not None:
            first = self.first
            numbers = None
            if first.numbers is not None:
                numbers = [number if np.isfinite(number) else str(number) for number in first.numbers]
            found["first"] = {
                "stops": list(first.stops),
                "lines": [None if line is None else [line.function, line.number, line.text] for line in first.lines],
                "name": first.name,
                "error": first.error if np.isfinite(first.error) else None,
                "numbers": numbers,
                "place": list(first.place),
            }
        return found


def compare_traces(
    a: StepTrace, b: StepTrace, tolerance: float | None = None, titles: Sequence[str] = ()
) -> Comparison:
    """Compare two traces.

    tolerance: the largest error that counts as equal, relative to the largest number of an array; by default 0 where
    both ran in one engine, and otherwise 1e-4.
    """
    if tolerance is None:
        tolerance = 0.0 if a.engine == b.engine else BETWEEN_ENGINES
    names = tuple(titles) or (f"{a.model} {a.engine}", f"{b.model} {b.engine}")
    pairs = list(_paired(a, b))
    errors, first = [], None
    for in_a, in_b in pairs:
        differences = list(_differences(a, b, in_a, in_b))
        errors.append(max((one.error for one in differences), default=0.0))
        large = next((one for one in differences if not one.error <= tolerance), None)
        first = first or large
    return Comparison(a, b, (names[0], names[1]), tolerance, pairs, errors, first)


def _paired(a: StepTrace, b: StepTrace) -> Iterator[tuple[int | None, int | None]]:
    """The stops of both traces in order, those that are alike side by side."""
    keys = [[(stop.kind, stop.op, stop.scope) for stop in trace.stops] for trace in (a, b)]
    matcher = difflib.SequenceMatcher(None, keys[0], keys[1], autojunk=False)
    for tag, a_first, a_stop, b_first, b_stop in matcher.get_opcodes():
        if tag == "equal":
            yield from zip(range(a_first, a_stop), range(b_first, b_stop), strict=True)
        else:
            yield from ((i, None) for i in range(a_first, a_stop))
            yield from ((None, i) for i in range(b_first, b_stop))


def _differences(a: StepTrace, b: StepTrace, in_a: int | None, in_b: int | None):
    """The differences in a pair of stops: inputs, then lines, then outputs."""
    if in_a is None or in_b is None:
        yield Difference((in_a, in_b), (None, None), "the operation", np.inf, None, ())
        return
    one, other = a.stops[in_a], b.stops[in_b]
    stops = (in_a, in_b)
    for ours, theirs in zip(one.inputs, other.inputs, strict=False):
        yield from _difference(stops, (None, None), ours.name, ours.array, theirs.array)
    if one.lines and other.lines:
        yield from _differing_lines(stops, one, other)
    if len(one.outputs) != len(other.outputs):
        yield Difference(stops, (None, None), "the outputs", np.inf, None, ())
    between = a.engine != b.engine
    for ours, theirs in zip(one.outputs, other.outputs, strict=False):
        x, y = ours.array, theirs.array
        if isinstance(one, ParameterStop) and isinstance(other, ParameterStop) and between:
            x, y = _without_rounding(a, one, x), _without_rounding(a, one, y)
        yield from _difference(stops, (_last(one), _last(other)), ours.name, x, y)


def _last(stop: Stop) -> Line | None:
    """The line that returned."""
    return stop.lines[-1] if stop.lines else None


def _without_rounding(trace: StepTrace, stop: ParameterStop, w: Array | None) -> Array | None:
    """New weights without those whose gradient is nothing but rounding, such as that of a bias of keys.

    Adam divides a gradient by its own size, so that it makes a whole step of rounding.
    """
    if w is None or stop.grad is None or trace.grad_norm is None:
        return w
    return np.where(np.abs(stop.grad) > ROUNDING * trace.grad_norm, w, 0)


def _differing_lines(stops: tuple[int | None, int | None], one: Stop, other: Stop):
    """The lines of a pair of stops, matched by the arrays that they made: the n-th making of a name by its n-th."""
    theirs = [(line, name, array) for line in other.lines for name, array in line.made.items()]
    taken: dict[tuple[str, int], int] = {}
    for line in one.lines:
        for name, array in line.made.items():
            same = [entry for entry in theirs if entry[1] == name and entry[0].depth == line.depth]
            number = taken.get((name, line.depth), 0)
            taken[name, line.depth] = number + 1
            if number < len(same):
                yield from _difference(stops, (line, same[number][0]), name, array, same[number][2])
            elif one.function == other.function:  # a mutation may have other names
                yield Difference(stops, (line, None), name, np.inf, None, ())


def _difference(stops: Any, lines: Any, name: str, x: Array | None, y: Array | None):
    """The difference of two arrays, if there is one."""
    if x is None or y is None:
        if (x is None) != (y is None):
            yield Difference(stops, lines, name, np.inf, None, ())
        return
    if x is y or (x.shape == y.shape and np.array_equal(x, y, equal_nan=x.dtype.kind in "fc")):
        return
    if x.shape != y.shape or x.dtype.kind not in "fiub":
        yield Difference(stops, lines, name, np.inf, None, ())
        return
    u, v = x.astype(np.float64), y.astype(np.float64)
    with np.errstate(all="ignore"):
        apart = np.where(u == v, 0.0, np.abs(u - v))
    apart = np.where(np.isnan(u) & np.isnan(v), 0.0, np.where(np.isnan(apart), np.inf, apart))
    place = tuple(int(i) for i in np.unravel_index(int(apart.argmax()), x.shape))
    scale = max(_largest(u), _largest(v))
    error = float(apart[place] / scale) if scale else float("inf")
    yield Difference(stops, lines, name, error, (float(u[place]), float(v[place])), place)


def _largest(x: Array) -> float:
    finite = np.abs(x[np.isfinite(x)])
    return float(finite.max(initial=0))


# --- what --compare names ------------------------------------------------------------------------------------------


def traces_of(
    words: Sequence[str], settings: Callable[[str | None], TrainConfig], text: str | None, **options: Any
) -> tuple[StepTrace, StepTrace]:
    """The traces that `--compare A,B` names: each word an engine, a mutation OP=MODULE:FUNCTION, or a model.

    settings: the settings of a step for a model, or for none. One word is compared with the plain engine. options: of
    `trace_step`, for both.
    Raises: InputError for other words.
    """
    if len(words) == 1:
        words = ("plain", *words)
    if len(words) != 2:
        raise InputError(f"step: --compare names {len(words)} steps; give two, such as plain,fast")
    a, b = (_way(word) for word in words)  # both are understood before the first runs
    one, other = (
        _traced(word, prepare(settings(model), text), **options, **way)
        for word, (model, way) in zip(words, (a, b), strict=True)
    )
    return one, other


def _traced(word: str, step: PreparedStep, mutations: dict[str, Callable] | None = None, **options: Any) -> StepTrace:
    """The trace of a step, in which every backward that was to be replaced has run: else nothing was compared."""
    if mutations is None:
        return step.trace(**options)
    try:
        trace = step.trace(mutations=mutations, **options)
    except MinillmError as error:
        raise InputError(f"step: --compare {word}: {error}") from error
    except Exception as error:  # the function is a person's own, or gave the engine what is no gradient
        raise InputError(f"step: --compare {word}: {_raised(error, mutations)}") from error
    ran = dict.fromkeys(stop.op for stop in trace.of_kind("backward"))
    for op in mutations:
        if op not in ran:
            raise InputError(f"step: --compare {word}: no backward of {op!r} ran{did_you_mean(op, ran)}")
    return trace


def _raised(error: Exception, mutations: dict[str, Callable]) -> str:
    """The text of an exception, with the last line of a person's own file that led to it."""
    codes = [getattr(function, "__code__", None) for function in mutations.values()]
    files = {code.co_filename for code in codes if code is not None}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    where = [f"{Path(frame.filename).name}:{frame.lineno}  {frame.line}" for frame in frames[-1:]]
    return ", ".join([f"{type(error).__name__}: {error}", *where, *getattr(error, "__notes__", ())])


def _way(word: str) -> tuple[str | None, dict[str, Any]]:
    """The model that a word names, or none, and the options of `trace_step` that it stands for."""
    if word in ENGINES:
        return None, {"engine": word}
    if "=" in word:
        return None, {"mutations": _mutation(word)}
    find(word, "step")
    return word, {}


def _mutation(word: str) -> dict[str, Callable]:
    """The backward that OP=MODULE:FUNCTION names, by its operation."""
    op, _, place = word.partition("=")
    module, colon, name = place.partition(":")
    if not (op and module and colon and name):
        raise InputError(f"step: --compare {word} is no mutation; write OP=MODULE:FUNCTION, such as gelu=mine:backward")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"step: --compare {word}: {error}; run where {module}.py is, or set PYTHONPATH") from None
    except Exception as error:
        raise InputError(
            f"step: --compare {word}: {module} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        raise InputError(f"step: --compare {word}: {name} is {function!r:.40}, and no function")
    return {op: function}
