"""Try an answer on the cases of its exercise, and say what is wrong with it: which known mistake, or which number."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from minillm.errors import MinillmError
from minillm.exercises.compare import described, difference, same
from minillm.exercises.exercise import Exercise, Inputs, Mistake, Outcome, WrongResult


class Finding(NamedTuple):
    """The answer to a check."""

    passed: bool
    case: int = 0  # the number of the case that is wrong, from 1; 0 if the file did not get so far
    lines: tuple[str, ...] = ()  # what is wrong, for a person
    mistake: str = ""  # the name of the mistake that was recognised
    hint: str = ""


def examine(exercise: Exercise, path: Path, loaded: Callable[[], Any] = lambda: None) -> Finding:
    """Load a learner's file and grade its function; `loaded` is called in between."""
    try:
        function = exercise.load(path)
    except (Exception, SystemExit) as error:
        return Finding(False, 0, (f"{path.name} cannot be loaded", *error_lines(error, path)))
    loaded()
    return grade(exercise, function, path)


def grade(exercise: Exercise, function: Callable[..., Any], path: Path | None = None) -> Finding:
    """Try a function on the cases in their order; the first one that it gets wrong makes the finding."""
    cases = exercise.all_cases()
    observed: list[Outcome] = []
    for number, inputs in enumerate(cases, 1):
        expected = exercise.outcome(exercise.right, inputs)
        observed.append(exercise.outcome(function, inputs))
        if is_right(exercise, observed[-1], expected):
            continue
        place = f"case {number} of {len(cases)}: {described(inputs)}"
        lines = (place, *fault_lines(exercise, observed[-1], expected, path))
        wrong = wrong_outputs(exercise, observed[-1], expected)
        mistake = recognised(exercise, function, cases, observed, wrong[0]) if wrong else None
        return Finding(False, number, lines, *((mistake.name, mistake.hint) if mistake else ()))
    return Finding(True)


def is_right(exercise: Exercise, observed: Outcome, expected: Outcome) -> bool:
    """True if a call ended, changed none of its arguments, and returned what was expected."""
    return observed.error is None and not observed.changed and not wrong_outputs(exercise, observed, expected)


def wrong_outputs(exercise: Exercise, observed: Outcome, expected: Outcome) -> list[str]:
    """The names of the results that differ from the right ones."""
    right = expected.outputs
    return [name for name in right if not same(observed.outputs.get(name), right[name], exercise.tolerance)]


def fault_lines(exercise: Exercise, observed: Outcome, expected: Outcome, path: Path | None) -> list[str]:
    """Say what is wrong in a case, without a cause."""
    if observed.error is not None:
        return error_lines(observed.error, path)
    wrong = wrong_outputs(exercise, observed, expected)
    lines = [difference(name, observed.outputs[name], expected.outputs[name], exercise.tolerance) for name in wrong[:1]]
    others = [name for name in expected.outputs if name not in wrong]
    if wrong and others:
        lines.append(f"{' and '.join(others)} {'is' if len(others) == 1 else 'are'} right in this case")
    if wrong[1:]:
        lines.append(f"{' and '.join(wrong[1:])} {'is' if len(wrong) == 2 else 'are'} wrong too")
    if observed.changed and not wrong:
        names = " and ".join(observed.changed)
        lines.append(f"the results are right, but the call changed {names}, which others still need; make a new array")
    return lines


def error_lines(error: BaseException, path: Path | None) -> list[str]:
    """An exception and the learner's line that led to it, in place of a whole traceback."""
    if isinstance(error, WrongResult):
        return [str(error)]
    if isinstance(error, SyntaxError) and error.lineno:
        return [f"line {error.lineno}: {(error.text or '').strip()}", f"SyntaxError: {error.msg}"]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if path and Path(frame.filename) == path]
    where = [f"line {frames[-1].lineno}: {frames[-1].line}"] if frames else []
    if isinstance(error, NotImplementedError):
        return [*where, "this line is still to be replaced by your own"]
    if isinstance(error, MinillmError):
        return [*where, str(error).replace(str(path), path.name) if path else str(error)]
    told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        told += "; the exercises need NumPy alone"
    return [*where, told]


def agree(exercise: Exercise, name: str, a: Outcome, b: Outcome) -> bool:
    """True if two calls gave the same result of this name, or ended with the same kind of exception."""
    if a.error is not None or b.error is not None:
        return type(a.error) is type(b.error)
    return same(a.outputs[name], b.outputs[name], exercise.tolerance)


def recognised(
    exercise: Exercise, function: Callable[..., Any], cases: list[Inputs], observed: list[Outcome], name: str
) -> Mistake | None:
    """The mistake whose result of this name is the learner's in the last case so far, which is wrong.

    The other results do not count, so that two mistakes in two results are told one after the other. An exception says
    less than a number does: its mistake must be right in the cases before, as the learner is. If several mistakes fit,
    the one that fits best in all cases and results is meant.
    """
    if isinstance(observed[-1].error, (WrongResult, NotImplementedError, NameError, AttributeError)):
        return None  # the message says it all

    tried = list(zip(cases, observed, strict=False))
    names = exercise.returns.split()
    # the cases and results in which a mistake must fit
    compared, wanted = (tried[-1:], [name]) if observed[-1].error is None else (tried, names)

    def agreements(mistake: Mistake, pairs: list[tuple[Inputs, Outcome]], wanted: list[str]) -> list[bool]:
        made = [(exercise.outcome(mistake.function, inputs), outcome) for inputs, outcome in pairs]
        return [agree(exercise, one, a, b) for one in wanted for a, b in made]

    found = [mistake for mistake in exercise.mistakes if all(agreements(mistake, compared, wanted))]
    if len(found) < 2:
        return found[0] if found else None
    whole = [(inputs, exercise.outcome(function, inputs)) for inputs in cases]
    return max(found, key=lambda mistake: sum(agreements(mistake, whole, names)))
