"""What must hold of every backward, whatever it computes: checks that need no differences, or few."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.errors import MinillmError
from minillm.testing.audit import GradientError, WrongShape, float32_stays
from minillm.testing.diagnosis import explain_shape
from minillm.testing.measure import balanced, largest, projection_error
from minillm.testing.report import look_closer, report
from minillm.testing.subject import EPSILON, Buffered, Gradients, Graph, Skipped, Subject, nearly_equal, weights
from minillm.testing.variants import LAYOUTS, Variant, change_arrays, stretched, transposed

FLOAT32 = float(np.finfo(np.float32).eps)


class Base(NamedTuple):
    """The arguments as they were given, one graph there, and the gradients that came first."""

    subject: Subject
    graph: Graph
    gradients: Gradients


class Tried(NamedTuple):
    """Which variants were checked, and which were skipped, with the reason."""

    checked: list[str]
    skipped: list[str]


# --- calling again -------------------------------------------------------------------------------------------------


def check_repeats(subject: Subject) -> Base:
    """Three backwards through one graph and one through a second give the same; nothing else changes on the way."""
    graph = Graph(subject)
    if subject.name == "fn" and graph.outs[0].node is not None:
        subject.name = f"fn (ending in {graph.outs[0].node.op.name})"
    before = [np.array(x) if isinstance(x, np.ndarray) else x for x in subject.values]
    returned = graph.gradients(subject.cotangent)
    first = {i: None if g is None else g.copy() for i, g in returned.items()}
    base = Base(subject, graph, first)
    subject.usual.update({i: largest(g) for i, g in first.items() if g is not None})
    _check_unchanged(subject, before, "backward")
    for call in ("second", "third"):
        again = graph.gradients(subject.cotangent)
        _check_unchanged(subject, before, "backward")
        for i, gradient in again.items():
            _compare_again(base, i, gradient, f"a {call} backward through the same graph")
            _check_sharing(subject, i, again)
    for i, gradient in returned.items():
        if gradient is not None and not np.array_equal(gradient, first[i], equal_nan=True):
            raise GradientError(
                f"check_gradients: the gradient of {subject.describe(i)} changed after it was returned: a later "
                "backward writes into the same memory; return a new array"
            )
    try:
        totals = graph.gradients(subject.cotangent, add=True)
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise GradientError(
            f"check_gradients: a gradient of {subject.name} cannot be added to, because it shares memory with dout; "
            "copy it, or declare the Op with aliases=True"
        ) from error
    for i, total in totals.items():
        if total is not None:
            _compare_again(base, i, total - first[i], "a backward that adds to the gradient of the one before")
    for i, gradient in Graph(subject).gradients(subject.cotangent).items():
        _compare_again(base, i, gradient, "a second forward and backward")
    if any(op.writes_into for op in graph.ops):
        for i, gradient in Graph(subject, leaf=Buffered).gradients(subject.cotangent).items():
            _compare_again(base, i, gradient, "a backward into the memory that an optimiser keeps")
    return base


def _check_unchanged(subject: Subject, before: list, what: str) -> None:
    for i, kept in enumerate(before):
        if isinstance(kept, np.ndarray) and not np.array_equal(subject.values[i], kept):
            raise GradientError(f"check_gradients: {subject.describe(i)} was changed by the {what}")


def _compare_again(base: Base, position: int, gradient: Array | None, what: str) -> None:
    first, subject = base.gradients[position], base.subject
    if first is None or gradient is None or nearly_equal(first, gradient, subject.rounding(step=1)):
        return
    raise GradientError(
        f"check_gradients: {what} gave {subject.describe(position)} another gradient; {_reason(subject, what)}"
    )


def _reason(subject: Subject, what: str) -> str:
    """Whether the backward writes into what its forward saved; looked up in a graph of its own."""
    if "adds to" in what:
        return "where a gradient is there already (Into.add), the backward must add to it, once"
    if "memory" in what:
        return "where Into.add is false, the array holds nothing: the backward must overwrite all of it"
    graph = Graph(subject, strict=False)
    kept = [[array.copy() for array in arrays] for arrays in graph.saved()]
    graph.gradients(subject.cotangent)
    for old, new in zip(kept, graph.saved(), strict=True):
        if any(not np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(old, new, strict=True)):
            return "a backward writes into what its forward saved"
    return "the forward or the backward keeps state from call to call, or draws random numbers"


def _check_sharing(subject: Subject, position: int, gradients: Gradients) -> None:
    gradient = gradients[position]
    others = [(position, subject.values[position]), *((j, g) for j, g in gradients.items() if j != position)]
    for other, array in others:
        if gradient is not None and array is not None and np.shares_memory(gradient, array):
            raise GradientError(
                f"check_gradients: the gradient of {subject.describe(position)} shares memory with "
                + ("the argument itself" if other == position else f"the gradient of {subject.describe(other)}")
            )


def check_state(base: Base) -> None:
    """After many other calls, and with another forward in between, the gradient is still the first one."""
    subject = base.subject
    graph = Graph(subject, strict=False)
    with contextlib.suppress(Skipped):
        subject.at([np.asarray(x / 2) if i in subject.moved else x for i, x in enumerate(subject.values)])
    for i, gradient in graph.gradients(subject.cotangent).items():
        _compare_again(base, i, gradient, "a backward after a forward of other values")


def _raise_state(base: Base, position: int, variant: str) -> None:
    raise GradientError(
        f"check_gradients: {base.subject.describe(position)} gets another gradient when called again with {variant}; "
        "the forward or the backward keeps state from call to call, or draws random numbers"
    )


# --- what the result must be equal to ------------------------------------------------------------------------------


class Rule(NamedTuple):
    """What a backward must give at a variant, in words: where that comes from, and what is wrong if it does not."""

    variant: str
    source: str
    cause: str


def _run(base: Base, variant: str, graph: Graph, cotangent: Array, **options) -> Gradients:
    """A backward; an exception in it says which variant it was."""
    try:
        return graph.gradients(cotangent, **options)
    except WrongShape as error:
        raise explain_shape(graph.subject, error) from error
    except Exception as error:
        check_state(base)
        error.add_note(f"check_gradients: with {variant}; the function itself is defined there")
        raise


def _must_be(
    base: Base, place: Subject, expected: Gradients, run: Callable[[], Gradients], rule: Rule, scale: float = 1.0
) -> None:
    """Raise GradientError where what `run` gives differs from what it must be, and does so again."""
    noise = scale * (place.rounding(step=1) + place.least())
    received = run()
    for i, right in expected.items():
        shape = place.values[i].shape
        whole, got = (np.zeros(shape) if g is None else g for g in (right, received.get(i)))
        if nearly_equal(whole, got, noise):
            continue
        check_state(base)
        again = run().get(i)
        if again is not None and not np.allclose(again, got, 1e-9, noise, equal_nan=True):
            _raise_state(base, i, rule.variant)
        raise report(
            place,
            i,
            whole.reshape(-1),
            got.reshape(-1),
            np.arange(whole.size),
            variant=rule.variant,
            source=rule.source,
            cause=rule.cause,
        )


def _times(factor: float, gradients: Gradients) -> Gradients:
    return {i: None if g is None else factor * g for i, g in gradients.items()}


def _sum(parts: list[Gradients]) -> Gradients:
    """Argument by argument; None counts as nothing."""
    total: Gradients = {}
    for part in parts:
        for i, g in part.items():
            total[i] = g if total.get(i) is None else total[i] if g is None else total[i] + g
    return total


def check_cotangents(base: Base, tried: Tried) -> None:
    """The backward is linear in the cotangent, whatever the cotangent's size, zeros and layout."""
    subject, graph, u = base.subject, base.graph, base.subject.cotangent

    def run(variant: str, cotangent: Array, **options) -> Callable[[], Gradients]:
        return lambda: _run(base, variant, graph, cotangent, **options)

    cause = "the backward is not linear in the cotangent"
    for factor in (3.0, -1e-12, 1e12, 0.0):
        rule = Rule(f"the cotangent times {factor:g}", f"{factor:g} times the first gradient", cause)
        _must_be(base, subject, _times(factor, base.gradients), run(rule.variant, factor * u), rule, abs(factor))
    kept = subject.rng.random(u.shape) < 0.5
    rule = Rule(
        "zeros in the cotangent", "the first gradient; received: the sum for both halves of the cotangent", cause
    )
    halves = [run(rule.variant, np.where(mask, u, 0)) for mask in (kept, ~kept)]
    _must_be(base, subject, base.gradients, lambda: _sum([half() for half in halves]), rule)
    for name, layout in LAYOUTS.items():
        rule = Rule(f"the cotangent {name}", "the same cotangent in C order", "the layout of the cotangent in memory")
        _must_be(base, subject, base.gradients, run(rule.variant, u, arrange=layout), rule)
    for axis in (None, 0, -1):
        name = "a cotangent that repeats one number" if axis is None else f"a cotangent stretched along axis {axis}"
        rule = Rule(f"{name} (strides of 0)", "the same cotangent in C order", "the layout of the cotangent in memory")
        copied, repeated = (
            run(rule.variant, u, arrange=functools.partial(stretched, axis=axis, contiguous=flag))
            for flag in (True, False)
        )
        _must_be(base, subject, copied(), repeated, rule)
    if len(graph.outs) > 1:
        rule = Rule(
            "each output used alone (the cotangents of the others are None)",
            "the first gradient; received: the sum over the outputs",
            "the backward depends on which cotangents are None",
        )
        alone = [run(rule.variant, u, outputs=[k]) for k in range(len(graph.outs))]
        _must_be(base, subject, base.gradients, lambda: _sum([one() for one in alone]), rule)
    tried.checked.append("cotangents")


def check_layouts(base: Base, tolerance: float, tried: Tried) -> None:
    """The gradient does not depend on how the arguments lie in memory."""
    subject = base.subject
    arrays = [i for i, x in enumerate(subject.values) if isinstance(x, np.ndarray)]
    for name, layout in {"in C order": np.array, **LAYOUTS}.items():
        alone = [(f"{subject.label(i)} {name}", change_arrays(subject.values, layout, [i])) for i in arrays]
        together = [(f"every array {name}", change_arrays(subject.values, layout))]
        one_by_one = len(arrays) > 1 and (layout is transposed)
        try:
            for variant, values in alone if one_by_one else together:
                _check_layout(base, subject, values, base.gradients, variant)
            for variant, values in together if one_by_one else ():
                _check_layout(base, subject, values, base.gradients, variant)
        except MinillmError:
            for variant, values in alone if len(arrays) > 1 and not one_by_one else ():  # which of them is it?
                _check_layout(base, subject, values, base.gradients, variant)
            raise
        tried.checked.append(name)
    for axis in (0, -1, None):
        where = "along all axes" if axis is None else f"along axis {axis}"
        copied, repeated = (
            change_arrays(subject.values, functools.partial(stretched, axis=axis, contiguous=flag))
            for flag in (True, False)
        )
        try:
            there, graph = subject.at(copied)
        except Skipped as reason:
            tried.skipped.append(f"stretched {where}: {reason}")
            continue
        gradients = _run(base, f"the first slice {where} everywhere", graph, there.cotangent)
        check_place(base, there, gradients, f"the first slice {where} everywhere", tolerance)
        _check_layout(base, there, repeated, gradients, f"every array stretched {where} (strides of 0)")
        tried.checked.append(f"stretched {where}")


def _check_layout(base: Base, place: Subject, values: list, expected: Gradients, variant: str) -> None:
    """The same values in another layout give the same outputs, and the same gradients."""
    try:
        there, graph = place.at(values)
    except Skipped as reason:
        check_state(base)
        raise GradientError(
            f"check_gradients: {place.name} fails with {variant} ({reason}), but not with the same values in C order"
        ) from reason
    rounding = 1e-13 * sum(float(abs(there.values[i]).sum()) for i in there.moved)
    if not nearly_equal(place.out, there.out, rounding):
        check_state(base)
        raise GradientError(
            f"check_gradients: {place.name} gives other values with {variant} than in C order: its forward depends on "
            "the layout in memory"
        )
    rule = Rule(variant, "the same values in C order", "the layout in memory: all else is the same")
    _must_be(base, place, expected, lambda: _run(base, variant, graph, place.cotangent), rule)


def check_arguments(base: Base) -> None:
    """One argument alone that wants a gradient gets the same; and one tensor in two places gets the sum."""
    subject = base.subject
    for i in subject.moved if len(subject.moved) > 1 else []:
        graph = Graph(subject, wanted=[i], strict=False)
        rule = Rule(
            f"{subject.label(i)} alone in need of a gradient",
            "where all arguments need one",
            "the gradient depends on which arguments need one",
        )
        run = functools.partial(_run, base, rule.variant, graph, subject.cotangent)
        _must_be(base, subject, {i: base.gradients[i]}, run, rule)
    for i, j in zip(subject.moved, subject.moved[1:], strict=False):
        if subject.values[i].shape != subject.values[j].shape:
            continue
        equal = [np.array(subject.values[i]) if k == j else x for k, x in enumerate(subject.values)]
        try:
            there, graph = subject.at(equal)
        except Skipped:
            continue
        variant = f"one tensor as arguments {i} and {j}"
        rule = Rule(
            variant, "the sum for two equal tensors", "the gradient depends on whether two arguments are one tensor"
        )
        apart = _run(base, variant, graph, there.cotangent)
        shared = Graph(there, strict=False, shared={i: j})
        run = functools.partial(_run, base, variant, shared, there.cotangent)
        _must_be(base, there, {i: _sum([{i: apart[i]}, {i: apart[j]}])[i]}, run, rule)


# --- other places --------------------------------------------------------------------------------------------------


def check_place(base: Base, there: Subject, gradients: Gradients, variant: str, tolerance: float) -> None:
    """The gradient elsewhere is that of the function there: one direction through all arguments; more if it fails."""
    finite = all(g is None or np.isfinite(g).all() for g in gradients.values())
    if finite and projection_error(there, gradients, balanced(there, gradients), tolerance) <= tolerance:
        return
    check_state(base)
    look_closer(there, gradients, tolerance, variant)


def check_variants(base: Base, found, tolerance: float, tried: Tried) -> None:
    """The gradient is right at each of the variants where the function is defined."""
    for variant in found:
        _check_variant(base, variant, tolerance, tried)


def _check_variant(base: Base, variant: Variant, tolerance: float, tried: Tried) -> None:
    try:
        there, graph = base.subject.at(variant.values)
    except Skipped as reason:
        tried.skipped.append(f"{variant.name}: {reason}")
        for other in variant.otherwise:
            _check_variant(base, other, tolerance, tried)
        return
    gradients = _run(base, variant.name, graph, there.cotangent)
    if graph.overflows():
        tried.skipped.append(f"{variant.name}: overflow on the way")
        return
    check_place(base, there, gradients, variant.name, tolerance)
    tried.checked.append(variant.name)


# --- precision -----------------------------------------------------------------------------------------------------


def check_smoothness(base: Base) -> None:
    """Where an argument barely moves, so does the gradient; what is computed in float32 on the way jumps.

    g(x + d) - 2 g(x) + g(x - d) is about d^2 in float64, and the rounding of float32 where that takes part. What
    still shrinks with d, or is as rough under a change in the last digits of x, is the function's own.
    """
    subject = base.subject
    directions = {i: weights(subject.rng, subject.values[i].shape) for i in subject.moved}

    def moved(distance: float) -> Gradients | None:
        values = [
            np.asarray(x * (1 + distance * directions[i])) if i in directions else x
            for i, x in enumerate(subject.values)
        ]
        try:
            there, graph = subject.at(values)
        except Skipped:
            return None
        there.cotangent = subject.cotangent
        return graph.gradients(there.cotangent)

    def roughness(distance: float) -> dict[int, float]:
        above, below = moved(distance), moved(-distance)
        if above is None or below is None:
            return {}
        found = {}
        for i, g in base.gradients.items():
            size = 0.0 if g is None else largest(g)
            if g is not None and size and above[i] is not None and below[i] is not None:
                found[i] = float(abs(above[i] - 2 * g + below[i]).max()) / size
        return found

    first = roughness(1e-6)
    for i, rough in first.items():
        if rough <= 1e-9 + (subject.rounding(1) + subject.least()) / largest(base.gradients[i]):
            continue
        again = roughness(1e-6).get(i, rough)
        if not math.isclose(again, rough, rel_tol=1e-2):
            check_state(base)
            _raise_state(base, i, "arguments moved by 1e-6 of themselves")
        if rough > 1e-2:
            continue
        finer, last_digits = roughness(1.3e-7).get(i, 0.0), roughness(4 * EPSILON).get(i, 1.0)
        if finer < rough / 8 or last_digits > rough / 10:
            continue
        check_state(base)
        kind = "float16" if rough > 1e-5 else "float32"
        raise GradientError(
            f"check_gradients: the gradient of {subject.describe(i)} jumps by {rough:.1e} of its size where the "
            f"arguments move by 1e-6 of theirs, while the function is float64\n"
            f"  likely cause: {kind} arithmetic on the way: an array or a saved value of less than float64"
        )


def check_float32(base: Base, tried: Tried) -> None:
    """One run in float32, at the given size and at very large and small ones, against the same in float64."""
    subject = base.subject
    for power, what in ((0, ""), (66, " times 2^66"), (-66, " times 2^-66")):
        name = f"in float32{what}"
        single = [
            np.array(x * 2.0**power, np.float32) if i in subject.moved else x for i, x in enumerate(subject.values)
        ]
        double = [x.astype(np.float64) if i in subject.moved else x for i, x in enumerate(single)]
        if not all(np.isfinite(single[i]).all() for i in subject.moved):
            continue
        try:
            exact, exact_graph = subject.at(double)
            with float32_stays():
                rounded, graph = subject.at(single)
        except Skipped as reason:
            tried.skipped.append(f"{name}: {reason}")
            continue
        if graph.overflows() or abs(rounded.out - exact.out).max(initial=0) > 1e-3 * largest(exact.out):
            tried.skipped.append(f"{name}: the forward itself overflows or loses its digits")
            continue
        expected = _run(base, name, exact_graph, exact.cotangent.astype(np.float32).astype(np.float64))
        received = _run(base, name, graph, exact.cotangent)
        _compare_float32(base, exact, expected, received, name)
        tried.checked.append(name)


def _compare_float32(base: Base, exact: Subject, expected: Gradients, received: Gradients, name: str) -> None:
    for i, right in expected.items():
        got = received.get(i)
        if right is None or got is None or not right.size or not np.isfinite(right).all():
            continue
        size = largest(right)
        if size > 1e36 or (0 < size < 1e-30):
            continue  # float32 has no such numbers
        distance = abs(got - right)
        wrong = ~(distance <= 1e-3 * size)
        usual = max(exact.usual.get(i, 0.0), largest(exact.cotangent))
        left_over = largest(got) > 10 * size and (distance <= 16 * FLOAT32 * usual).all()  # of terms that cancel
        if not wrong.any() or left_over or _sensitive(exact, i, right, 1e-3 * size):
            continue
        check_state(base)
        elements = np.arange(right.size)
        raise report(
            exact,
            i,
            right.reshape(-1),
            got.reshape(-1).astype(np.float64),
            elements,
            variant=name,
            source="the same in float64",
            allowed="1e-03",
            cause="float32 arithmetic in the backward: it overflows, underflows, or loses its digits",
        )


def _sensitive(exact: Subject, position: int, right: Array, allowed: float) -> bool:
    """Whether rounding the arguments to float32 alone moves the true gradient that far: then nothing can be said."""
    moved = [
        np.asarray(x * (1 + 16 * FLOAT32 * weights(exact.rng, x.shape))) if i in exact.moved else x
        for i, x in enumerate(exact.values)
    ]
    try:
        _, graph = exact.at(moved)
    except Skipped:
        return True
    gradient = graph.gradients(exact.cotangent)[position]
    return gradient is None or not abs(gradient - right).max() <= allowed / 4
