"""Properties that every backward must have: checks that need no differences, or few."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.errors import MinillmError
from minillm.testing.audit import GradientError, WrongShape
from minillm.testing.calls import Base, Tried, check_state, raise_state, run_backward
from minillm.testing.measure import balanced, projection_error
from minillm.testing.report import look_closer, report
from minillm.testing.subject import Gradients, Graph, Skipped, Subject, nearly_equal
from minillm.testing.variants import LAYOUTS, Variant, change_arrays, stretched, transposed

# --- what the result must be equal to ------------------------------------------------------------------------------


class Rule(NamedTuple):
    """The requirement on a backward at a variant, in words: its source, and the cause if it is violated."""

    variant: str
    source: str
    cause: str


def _must_be(
    base: Base, place: Subject, expected: Gradients, run: Callable[[], Gradients], rule: Rule, scale: float = 1.0
) -> None:
    """Raise GradientError if the result of `run` differs from the required one, twice."""
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
            raise_state(place, i, rule.variant)
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
    """Each gradient times a factor; None stays."""
    return {i: None if g is None else factor * g for i, g in gradients.items()}


def _sum(parts: list[Gradients]) -> Gradients:
    """Add gradients argument by argument; None counts as zero."""
    total: Gradients = {}
    for part in parts:
        for i, g in part.items():
            total[i] = g if total.get(i) is None else total[i] if g is None else total[i] + g
    return total


def check_cotangents(base: Base, tried: Tried) -> None:
    """Check that the backward is linear in the cotangent, for any size, zeros and layout of it."""
    subject, graph, u = base.subject, base.graph, base.subject.cotangent

    def run(variant: str, cotangent: Array, **options) -> Callable[[], Gradients]:
        return lambda: run_backward(base, variant, graph, cotangent, **options)

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
    """Check that the gradient does not depend on the memory layout of the arguments."""
    subject = base.subject
    arrays = [i for i, x in enumerate(subject.values) if isinstance(x, np.ndarray)]
    layouts: dict[str, Callable] = {"in C order": np.array, **LAYOUTS}
    for name, layout in layouts.items():
        together = [(f"every array {name}", change_arrays(subject.values, layout))]
        alone = [(f"{subject.label(i)} {name}", change_arrays(subject.values, layout, [i])) for i in arrays]
        try:
            for variant, values in together + (alone if layout is transposed and len(arrays) > 1 else []):
                _check_layout(base, subject, values, base.gradients, variant)
        except MinillmError:
            for variant, values in alone if len(arrays) > 1 else ():  # find the one that matters
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
            gradients = run_backward(base, f"the first slice {where} everywhere", graph, there.cotangent)
        except Skipped as reason:
            tried.skipped.append(f"stretched {where}: {reason}")
            continue
        check_place(base, there, gradients, f"the first slice {where} everywhere", tolerance)
        if all(g is None or np.isfinite(g).all() for g in gradients.values()):
            _check_layout(base, there, repeated, gradients, f"every array stretched {where} (strides of 0)")
        tried.checked.append(f"stretched {where}")


def _check_layout(base: Base, place: Subject, values: list, expected: Gradients, variant: str) -> None:
    """Check that equal values in another layout give equal outputs and gradients."""
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
    _must_be(base, place, expected, lambda: run_backward(base, variant, graph, place.cotangent), rule)


def check_arguments(base: Base) -> None:
    """Check that an argument alone gets the same gradient, and that one tensor as two arguments gets the sum."""
    subject = base.subject
    for i in subject.moved if len(subject.moved) > 1 else []:
        graph = Graph(subject, wanted=[i], strict=False)
        rule = Rule(
            f"{subject.label(i)} alone in need of a gradient",
            "where all arguments need one",
            "the gradient depends on which arguments need one",
        )
        run = functools.partial(run_backward, base, rule.variant, graph, subject.cotangent)
        _must_be(base, subject, {i: base.gradients[i]}, run, rule)
    for i, j in zip(subject.moved, subject.moved[1:], strict=False):
        if subject.values[i].shape != subject.values[j].shape:
            continue
        equal = [np.array(subject.values[i]) if k == j else x for k, x in enumerate(subject.values)]
        variant = f"one tensor as arguments {i} and {j}"
        try:
            there, graph = subject.at(equal)
            apart = run_backward(base, variant, graph, there.cotangent)
        except Skipped:
            continue
        rule = Rule(
            variant, "the sum for two equal tensors", "the gradient depends on whether two arguments are one tensor"
        )
        shared = Graph(there, strict=False, shared={i: j})
        run = functools.partial(run_backward, base, variant, shared, there.cotangent)
        _must_be(base, there, {i: _sum([{i: apart[i]}, {i: apart[j]}])[i]}, run, rule)


# --- other places --------------------------------------------------------------------------------------------------


def check_place(base: Base, there: Subject, gradients: Gradients, variant: str, tolerance: float) -> None:
    """Check the gradient at another place: along one direction through all arguments; more closely if that fails."""
    finite = all(g is None or np.isfinite(g).all() for g in gradients.values())
    if finite and projection_error(there, gradients, balanced(there, gradients), tolerance) <= tolerance:
        return
    check_state(base)
    look_closer(there, gradients, tolerance, variant)


def check_variants(base: Base, found: Iterable[Variant], tolerance: float, tried: Tried) -> None:
    """Check the gradient at each of the variants where the function is defined."""
    for variant in found:
        _check_variant(base, variant, tolerance, tried)


def _check_variant(base: Base, variant: Variant, tolerance: float, tried: Tried) -> None:
    """Check the gradient at one variant; where the function is not defined there, at the variants in its place."""
    try:
        there, graph = base.subject.at(variant.values)
    except Skipped as reason:
        tried.skipped.append(f"{variant.name}: {reason}")
        for other in variant.otherwise:
            _check_variant(base, other, tolerance, tried)
        return
    try:
        gradients = run_backward(base, variant.name, graph, there.cotangent)
    except Skipped as reason:
        tried.skipped.append(f"{variant.name}: {reason}")
        return
    except WrongShape as error:
        given = [x.shape for x in base.subject.values if isinstance(x, np.ndarray)]
        if error.gradients[error.position].shape not in given:
            raise
        tried.skipped.append(f"{variant.name}: the backward is made for the given sizes alone")
        return
    finite = all(g is None or np.isfinite(g).all() for g in gradients.values())
    if not finite and there.overflows():
        tried.skipped.append(f"{variant.name}: overflow on the way")
        return
    check_place(base, there, gradients, variant.name, tolerance)
    tried.checked.append(variant.name)
