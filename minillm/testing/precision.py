"""Check that a gradient is as smooth as float64, and equal in float32."""

from __future__ import annotations

import math

import numpy as np

from minillm.autograd import observe
from minillm.backend import Array
from minillm.testing.audit import GradientError, InfiniteSlope, float32_stays
from minillm.testing.calls import Base, Tried, check_state, raise_state, run_backward
from minillm.testing.measure import largest
from minillm.testing.report import report
from minillm.testing.subject import EPSILON, Gradients, Skipped, Subject, weights

FLOAT32 = float(np.finfo(np.float32).eps)


def check_smoothness(base: Base) -> None:
    """Check that a gradient barely moves when an argument barely moves: float32 on the way would make it jump.

    g(x + d) - 2 g(x) + g(x - d) is about d^2 in float64, and about float32's rounding if float32 takes part. Roughness
    that shrinks with d, or that a change in the last digits of x shows too, belongs to the function itself.
    """
    subject = base.subject
    directions = {i: weights(subject.rng, subject.values[i].shape) for i in subject.moved}

    def moved(distance: float) -> Gradients | None:
        values = [
            np.asarray(x * (1 + distance * directions[i])) if i in directions else x
            for i, x in enumerate(subject.values)
        ]
        try:
            _, graph = subject.at(values)
            return graph.gradients(subject.cotangent)
        except (Skipped, InfiniteSlope):
            return None

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
            raise_state(subject, i, "arguments moved by 1e-6 of themselves")
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
    """Compare runs in float32, at the given size and at very large and small ones, with runs in float64."""
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
            with observe(on_forward=float32_stays):
                rounded, graph = subject.at(single)
        except Skipped as reason:
            tried.skipped.append(f"{name}: {reason}")
            continue
        size = abs(exact.out) if power else largest(exact.out)
        if (abs(rounded.out - exact.out) > 1e-4 * size).any():
            tried.skipped.append(f"{name}: the forward itself loses its digits")
            continue
        try:
            expected = run_backward(base, name, exact_graph, exact.cotangent.astype(np.float32).astype(np.float64))
            received = run_backward(base, name, graph, exact.cotangent)
        except Skipped as reason:
            tried.skipped.append(f"{name}: {reason}")
            continue
        finite = all(g is None or np.isfinite(g).all() for g in received.values())
        if not finite and rounded.overflows():
            tried.skipped.append(f"{name}: overflow on the way")
            continue
        _compare_float32(base, exact, expected, received, name)
        tried.checked.append(name)


def _compare_float32(base: Base, exact: Subject, expected: Gradients, received: Gradients, name: str) -> None:
    """Compare the gradients of a float32 call with exact ones; raise GradientError for one that is far off."""
    for i, right in expected.items():
        got = received.get(i)
        if right is None or got is None or not right.size or not np.isfinite(right).all():
            continue
        size = largest(right)
        if size > 1e36 or (0 < size < 1e-30):
            continue  # float32 cannot hold such numbers
        wrong = ~(abs(got - right) <= 1e-3 * size + 16 * FLOAT32 * _scale(exact, i))
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
            cause="float32 arithmetic in the backward: it overflows, underflows, or loses its digits",
        )


def _scale(exact: Subject, position: int) -> float:
    """The size of terms that may cancel in a gradient: |u| |y| / |x|, capped at the usual size."""
    u = largest(exact.cotangent)
    y, x = largest(exact.out), largest(exact.values[position])
    natural = u * y / x if x and y > 1e-12 else u
    return min(natural, max(u, exact.usual.get(position, 0.0)))


def _sensitive(exact: Subject, position: int, right: Array, allowed: float) -> bool:
    """True if merely rounding the arguments to float32 moves the true gradient that far, so no check is possible."""
    moved = [
        np.asarray(x * (1 + 16 * FLOAT32 * weights(exact.rng, x.shape))) if i in exact.moved else x
        for i, x in enumerate(exact.values)
    ]
    try:
        _, graph = exact.at(moved)
        gradient = graph.gradients(exact.cotangent)[position]
    except (Skipped, InfiniteSlope):
        return True
    return gradient is None or not abs(gradient - right).max() <= allowed / 4
