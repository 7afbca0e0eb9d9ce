"""What must hold of every backward, whatever it computes: checks that need no differences, or few."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.errors import MinillmError
from minillm.testing import variants
from minillm.testing.audit import GradientError, WrongShape, float32_stays
from minillm.testing.measure import balanced, largest, projection_error
from minillm.testing.report import look_closer, report
from minillm.testing.subject import EPSILON, Buffered, Gradients, Graph, Skipped, Subject, nearly_equal, weights
from minillm.testing.variants import Variant

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
    for i, total in graph.gradients(subject.cotangent, add=True).items():
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
    try:
        subject.at([x / 2 if i in subject.moved else x for i, x in enumerate(subject.values)])
    except Skipped:
        pass
    for i, gradient in graph.gradients(subject.cotangent).items():
        if base.gradients[i] is not None:
            what = "a backward after a forward of other values"
            _compare_again(base, i, gradient, what)


# --- what the result must be equal to ------------------------------------------------------------------------------


def _must_equal(
    base: Base, expected: Gradients, received: Gradients, noise: float, variant: str, source: str, cause: str
) -> None:
    """Raise GradientError where a gradient differs from what it must be; state that a backward keeps comes first."""
    for i, right in expected.items():
        got = received.get(i)
        if right is None and got is None:
            continue
        shape = base.subject.values[i].shape
        right = np.zeros(shape) if right is None else right
        got = np.zeros(shape) if got is None else got
        if nearly_equal(right, got, noise):
            continue
        check_state(base)
        elements = np.arange(right.size)
        error = report(
            base.subject, i, right.reshape(-1), got.reshape(-1), elements, variant=variant, source=source, cause=cause
        )
        raise error


def _run(base: Base, variant: str, graph: Graph, cotangent: Array, **options) -> Gradients:
    """A backward; an exception in it says which variant it was."""
    try:
        return graph.gradients(cotangent, **options)
    except Exception as error:
        check_state(base)
        error.add_note(f"check_gradients: with {variant}; the function itself is defined there")
        raise


def check_cotangents(base: Base, tried: Tried) -> None:
    """The backward is linear in the cotangent, whatever the cotangent's size, zeros and layout."""
    subject, u, gradients = base.subject, base.subject.cotangent, base.gradients
    noise = subject.rounding(step=1)
    cause = "the backward is not linear in the cotangent"
    for factor in (3.0, -1e-12, 1e12):
        expected = {i: None if g is None else factor * g for i, g in gradients.items()}
        variant = f"the cotangent times {factor:g}"
        received = _run(base, variant, base.graph, factor * u)
        _must_equal(base, expected, received, abs(factor) * noise, variant, f"{factor:g} times the first gradient", cause)
    zero = {i: None if g is None else np.zeros_like(g) for i, g in gradients.items()}
    received = _run(base, "a cotangent of zeros", base.graph, 0 * u)
    _must_equal(base, zero, received, 0.0, "a cotangent of zeros", "zero", cause)
    kept = subject.rng.random(u.shape) < 0.5
    variant = "zeros in the cotangent"
    one, other = (_run(base, variant, base.graph, np.where(mask, u, 0)) for mask in (kept, ~kept))
    summed = {i: g if one[i] is None or other[i] is None else one[i] + other[i] for i, g in gradients.items()}
    source = "the first gradient; received: the sum for both halves of the cotangent"
    _must_equal(base, gradients, summed, noise, variant, source, cause)
    for name, layout in variants.LAYOUTS.items():
        variant = f"the cotangent {name}"
        received = _run(base, variant, base.graph, u, arrange=layout)
        _must_equal(base, gradients, received, noise, variant, "the cotangent in C order", f"the layout of {variant}")
    tried.checked.append("cotangents")
    _check_outputs(base, noise)
    if u.size:
        whole = {}
        for stretch in (False, True):
            arrange = (lambda v: np.broadcast_to(v.reshape(-1)[:1].reshape(()), v.shape)) if stretch else _first_everywhere
            whole[stretch] = _run(base, "a stretched cotangent", base.graph, u, arrange=arrange)
        source = "the same cotangent in C order"
        cause = "the layout of the cotangent: strides of 0"
        _must_equal(base, whole[False], whole[True], noise, "a cotangent that repeats one number", source, cause)


def _first_everywhere(v: Array) -> Array:
    return np.full_like(v, v.reshape(-1)[0]) if v.size else v


def _check_outputs(base: Base, noise: float) -> None:
    """Where only one of several outputs is used, its share of the gradient comes, and all shares make the whole."""
    if len(base.graph.outs) < 2:
        return
    total: Gradients = {i: None if g is None else np.zeros_like(g) for i, g in base.gradients.items()}
    for k in range(len(base.graph.outs)):
        part = _run(base, f"output {k} used alone", base.graph, base.subject.cotangent, outputs=[k])
        for i, g in part.items():
            total[i] = g if total[i] is None else total[i] if g is None else total[i] + g
    source = "the first gradient; received: the sum over the outputs, each used alone"
    cause = "the backward depends on which cotangents are None"
    _must_equal(base, base.gradients, total, noise, "each output used alone", source, cause)


def check_layouts(base: Base, tried: Tried) -> None:
    """The gradient does not depend on how the arguments lie in memory."""
    subject, noise = base.subject, base.subject.rounding(step=1)
    arrays = [i for i, x in enumerate(subject.values) if isinstance(x, np.ndarray)]
    for name, layout in {"in C order": np.array, **variants.LAYOUTS}.items():
        values = variants.change_arrays(subject.values, layout)
        try:
            _compare_layout(base, values, base.gradients, base.subject.out, f"every array {name}", noise)
        except MinillmError:
            for i in arrays if len(arrays) > 1 else []:  # which of them?
                values = variants.change_arrays(subject.values, layout, [i])
                _compare_layout(base, values, base.gradients, base.subject.out, f"{subject.label(i)} {name}", noise)
            raise
        tried.checked.append(name)
    for axis in (0, -1):
        try:
            there, graph = subject.at(variants.stretched(subject.values, axis, contiguous=True))
        except Skipped as reason:
            tried.skipped.append(f"stretched along axis {axis}: {reason}")
            continue
        variant = f"every array stretched along axis {axis} (strides of 0)"
        gradients = _run(base, f"the first slice along axis {axis} everywhere", graph, there.cotangent)
        check_place(base, there, gradients, f"the first slice along axis {axis} everywhere", 1e-6)
        values = variants.stretched(subject.values, axis, contiguous=False)
        _compare_layout(Base(there, graph, gradients), values, gradients, there.out, variant, noise, base)
        tried.checked.append(variant)


def _compare_layout(
    place: Base, values: list, expected: Gradients, out: Array, variant: str, noise: float, base: Base | None = None
) -> None:
    base = base or place
    try:
        there, graph = place.subject.at(values)
    except Skipped as reason:
        check_state(base)
        raise GradientError(
            f"check_gradients: {place.subject.name} fails with {variant} ({reason}), but not with the same values in "
            "C order"
        ) from reason
    if not nearly_equal(out, there.out, 0):
        check_state(base)
        raise GradientError(
            f"check_gradients: {place.subject.name} gives other values with {variant} than in C order: its forward "
            "depends on the layout in memory"
        )
    received = _run(base, variant, graph, place.subject.cotangent)
    cause = "the layout in memory: the same values in C order give what is expected"
    _must_equal(base._replace(subject=place.subject), expected, received, noise, variant, "the same values in C order", cause)


def check_arguments(base: Base) -> None:
    """One argument alone that wants a gradient gets the same; and one tensor in two places gets the sum."""
    subject, noise = base.subject, base.subject.rounding(step=1)
    if len(subject.moved) > 1:
        for i in subject.moved:
            variant = f"{subject.label(i)} alone in need of a gradient"
            received = _run(base, variant, Graph(subject, wanted=[i], strict=False), subject.cotangent)
            cause = "the backward depends on which arguments need a gradient"
            _must_equal(base, {i: base.gradients[i]}, received, noise, variant, "where all need one", cause)
    for i, j in zip(subject.moved, subject.moved[1:], strict=False):
        if subject.values[i].shape != subject.values[j].shape:
            continue
        equal = [np.array(subject.values[i]) if k == j else x for k, x in enumerate(subject.values)]
        try:
            there, graph = subject.at(equal)
        except Skipped:
            continue
        variant = f"one tensor as arguments {i} and {j}"
        apart = _run(base, variant, graph, there.cotangent)
        together = _run(base, variant, Graph(there, strict=False, shared={i: j}), there.cotangent)
        parts = [g for g in (apart[i], apart[j]) if g is not None]
        whole = {i: sum(parts) if parts else None}
        cause = "the backward depends on whether two arguments are one tensor"
        _must_equal(base, whole, together, noise, variant, "the sum for two equal tensors", cause)


# --- other places --------------------------------------------------------------------------------------------------


def check_place(base: Base, there: Subject, gradients: Gradients, variant: str, tolerance: float) -> None:
    """The gradient elsewhere is that of the function there: one direction through all arguments, and on suspicion more."""
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
    try:
        gradients = _run(base, variant.name, graph, there.cotangent)
    except WrongShape as error:
        raise GradientError(str(error)) from error
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
        values = [x * (1 + distance * directions[i]) if i in directions else x for i, x in enumerate(subject.values)]
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

    for i, rough in roughness(1e-6).items():
        if not 1e-9 + subject.rounding(1) / largest(base.gradients[i]) < rough < 1e-2:
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
        single = [np.array(x * 2.0**power, np.float32) if i in subject.moved else x for i, x in enumerate(subject.values)]
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
        if abs(rounded.out - exact.out).max(initial=0) > 1e-3 * largest(exact.out):
            tried.skipped.append(f"{name}: the forward itself loses its digits")
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
        with np.errstate(invalid="ignore"):
            wrong = ~(abs(got - right) <= 1e-3 * size)
        if not wrong.any() or _sensitive(exact, i, right, 1e-3 * size):
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
            cause=f"float32 arithmetic {'overflows' if not np.isfinite(got).all() else 'loses its digits'} in the backward",
        )


def _sensitive(exact: Subject, position: int, right: Array, allowed: float) -> bool:
    """Whether rounding the arguments to float32 alone moves the true gradient that far: then nothing can be said."""
    moved = [
        x * (1 + 16 * FLOAT32 * weights(exact.rng, x.shape)) if i in exact.moved else x for i, x in enumerate(exact.values)
    ]
    try:
        there, graph = exact.at(moved)
    except Skipped:
        return True
    gradient = graph.gradients(exact.cotangent)[position]
    return gradient is None or not abs(gradient - right).max() <= allowed / 4

