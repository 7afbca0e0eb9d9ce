"""Check the gradients of every operation: `minillm gradcheck`.

`run_cases()` checks the rows of the gradient-check table (`minillm/study/cases/`) with
`minillm.testing.check_gradients`: the plain pair of every operation, and the fast pair of each that has one. Functions
made of operations, such as losses, are checked in both engines.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from minillm import ops, random
from minillm.autograd import Op
from minillm.engine import current_engine, engine
from minillm.errors import InputError, did_you_mean
from minillm.study.cases import CASES, Case
from minillm.testing import check_gradients

WITH_VARIANTS = 3  # functions of each operation that `run_cases` checks at variants of their arguments; tests check all


class Result(NamedTuple):
    """The outcome of a case; `report` says what is wrong, or is None."""

    op: str
    engine: str  # whose pair of functions ran
    case: str
    elements: int
    error: float
    seconds: float
    report: str | None
    variants: int = 0  # other arguments that were tried, made from these
    skipped: int = 0  # of them, where the operation is not defined

    @property
    def passed(self) -> bool:
        return self.report is None


def run_cases(names: Iterable[str] | None = None, variants_of: Iterable[str] | None = None) -> list[Result]:
    """Check the cases of the named operations, or of all, in the engine that is chosen; in "auto", in plain and fast.

    variants_of: the operations that are checked at variants of their arguments too; by default all of them.
    An operation without a row fails, and its report says what to write where.
    Raises: InputError for a name that no operation has.
    """
    rows, operations = {case.op for case in CASES}, {op.name: op for op in ops.OPS}
    known = rows | set(operations)
    without_underscores = {name.replace("_", ""): name for name in known}  # layer_norm is layernorm's function
    chosen = known if names is None else {without_underscores.get(name.replace("_", ""), name) for name in names}
    for name in sorted(chosen - known):
        raise InputError(f"gradcheck: there is no operation {name!r}{did_you_mean(name, sorted(known))}")
    place = random.default.state()  # the dropout cases restart the stream
    first = {(case.op, case.fn): case for case in reversed(CASES)}  # of each function; the others are variants of it
    with_variants = [
        case
        for op in chosen.intersection(chosen if variants_of is None else variants_of)
        for case in [case for case in CASES if case.op == op and first[op, case.fn] is case][:WITH_VARIANTS]
    ]
    asked = [case for case in CASES if case.op in chosen]
    results = []
    try:
        for name in ("plain", "fast") if current_engine() == "auto" else (current_engine(),):
            with engine(name):
                for case in asked:
                    composed = case.op not in operations  # its operations' pairs run
                    if name != "fast" or composed or operations[case.op].pair("fast"):
                        results.append(run_case(case, case in with_variants))
    finally:
        random.default.set_state(place)
    return results + [without_a_row(operations[name]) for name in sorted(chosen - rows)]


def without_a_row(op: Op) -> Result:
    """The result of an operation that is in no row: what to write, and in which file."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p.name for p in inspect.signature(op.forward).parameters.values() if p.kind in kinds]
    names, shapes = ", ".join(parameters) or "*xs", ", ".join(["(3, 4)"] * max(1, len(parameters)))
    report = (
        f"gradcheck: the table has no row for {op.name}; write one in the file of its kind in minillm/study/cases/ "
        "(arithmetic.py, reduce.py, shape.py, layers.py), in one of the functions that its CASES lists:\n"
        f'    yield Case("{op.name}", "matrix", lambda {names}: ops.{op.name}({names}), normal({shapes}))'
    )
    return Result(op.name, current_engine(), "no row", 0, float("inf"), 0.0, report)


def run_case(case: Case, variants: bool = True) -> Result:
    """Check one case, with `variants` also at variants of its arguments; an exception becomes the report."""
    start = time.perf_counter()
    try:
        check = check_gradients(case.fn, *case.make_arrays(np.random.default_rng(0)), variants=variants)
    except Exception as error:
        report = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
        return Result(case.op, current_engine(), case.name, 0, float("inf"), time.perf_counter() - start, report)
    seconds = time.perf_counter() - start
    tried = len(check.variants) + len(check.skipped)
    return Result(
        case.op, current_engine(), case.name, check.elements, check.error, seconds, None, tried, len(check.skipped)
    )
