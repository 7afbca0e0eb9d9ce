"""The report of a wrong gradient: the place, the size of the error, the variant, and the cause if it is certain."""

from __future__ import annotations

import numpy as np

from minillm.backend import Array
from minillm.testing.audit import GradientError
from minillm.testing.calls import raise_state
from minillm.testing.diagnosis import diagnose
from minillm.testing.measure import (
    SUSPECTS,
    Measured,
    elements_to_explain,
    measure,
    projection_error,
    smooth_here,
    wrong_at_first_sight,
    wrong_for_their_size,
    wrong_with_care,
)
from minillm.testing.subject import Gradients, Graph, Subject

NOT_SMOOTH = "differences do not settle here, so that nothing is sure: a kink, a jump, or rounding; move the argument"


def report(
    subject: Subject,
    position: int,
    expected: Array,
    received: Array,
    elements: Array,
    *,
    cause: str,
    variant: str = "",
    source: str = "central differences",
    allowed: str = "",
) -> GradientError:
    """Make the error for some elements (flat indices) of one argument's gradient; it shows the worst one."""
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.nan_to_num(abs(expected - received), nan=np.inf)
    worst = int(np.argmax(distance))
    shape = subject.values[position].shape
    index = tuple(int(i) for i in np.unravel_index(elements[worst], shape)) if shape else ()
    size = float(max(abs(expected).max(), np.nan_to_num(abs(received), nan=0, posinf=0).max(), 1e-300))
    wrong = int(np.count_nonzero(distance > 1e-6 * size)) or 1
    lines = [f"check_gradients: the gradient of {subject.describe(position)} is wrong"]
    lines += [f"  shown by  {variant}"] if variant else []
    lines += [
        f"  worst at index {index} of shape {shape}",
        f"  expected  {expected[worst]: .10g}  ({source})",
        f"  received  {received[worst]: .10g}  (backward)",
        f"  relative error {_relative(float(expected[worst]), float(received[worst]))}",
        f"  {wrong} of {elements.size} elements are off by up to {distance[worst] / size:.1e} of the largest"
        + (f" (allowed {allowed})" if allowed else ""),
        f"  likely cause: {cause}",
    ]
    return GradientError("\n".join(lines))


def _relative(expected: float, received: float) -> str:
    """The error of one element over the larger of the two numbers."""
    larger = max(abs(expected), abs(received))
    return f"{abs(expected - received) / larger:.1e}" if np.isfinite(larger) and larger else "infinite"


def compare_elements(
    subject: Subject, position: int, gradient: Array | None, elements: Array, tolerance: float
) -> float:
    """The worst error among some elements of one gradient; raises GradientError if it is above the tolerance.

    Each element is then compared on its own scale too, with care if it seems wrong.
    """
    if not elements.size:
        return 0.0
    measured = measure(subject, position, gradient, elements)
    error, wrong = wrong_at_first_sight(subject, measured, tolerance)
    if not error <= tolerance:
        order = np.argsort(-abs(measured.expected - measured.received))
        worst = order[wrong[order]][:SUSPECTS]
        received = np.zeros(subject.values[position].shape) if gradient is None else gradient
        again = measure(subject, position, received, elements[worst], careful=True)
        distance = abs(again.expected - again.received)
        sure = again.doubts <= 0.1 * abs(measured.expected - measured.received)[worst]
        own = np.maximum(abs(measured.expected), abs(measured.received)).max()
        if sure.all() and (distance <= tolerance * own + again.doubts).all():
            return float((distance / own).max())  # the function was too curved for the first step
        cause = diagnose(subject, position, gradient, measured) if sure.any() else NOT_SMOOTH
        raise report(
            subject, position, measured.expected, measured.received, elements, cause=cause, allowed=f"{tolerance:.0e}"
        )
    suspects = elements[wrong_for_their_size(measured, tolerance, subject.least(position))]
    if suspects.size:
        confirm(subject, position, gradient, suspects[:SUSPECTS], tolerance, "", measured)
    return error


def confirm(
    subject: Subject,
    position: int,
    gradient: Array | None,
    elements: Array,
    tolerance: float,
    variant: str,
    whole: Measured | None = None,
) -> None:
    """Measure elements that seem to be wrong with care; raise GradientError if one certainly is.

    The cause is sought among them, or among all elements that were measured already (`whole`).
    """
    received = np.zeros(subject.values[position].shape) if gradient is None else gradient
    measured = measure(subject, position, received, elements, careful=True)
    wrong = wrong_with_care(measured, received, tolerance, subject.least(position))
    if not wrong.any() or (variant and not smooth_here(subject)):
        return
    certain = wrong | (measured.doubts <= 1e-4 * abs(measured.expected) + 1e-9)
    measured = Measured(*(part[certain] for part in measured))
    cause = diagnose(subject, position, gradient, whole or measured)
    raise report(
        subject, position, measured.expected, measured.received, measured.elements, cause=cause, variant=variant
    )


def look_closer(subject: Subject, gradients: Gradients, tolerance: float, variant: str) -> None:
    """Find the wrong elements, after a direction through all arguments disagreed, or a number was not finite."""
    for position, gradient in Graph(subject, strict=False).gradients(subject.cotangent).items():
        first = gradients[position]
        if gradient is not None and first is not None and not np.allclose(gradient, first, 1e-9, 1e-12, equal_nan=True):
            raise_state(subject, position, variant)
    for position, gradient in gradients.items():
        x = subject.values[position]
        if not x.size:
            continue
        received = np.zeros(x.shape) if gradient is None else gradient
        everywhere = {position: np.where(subject.rng.random(x.shape) < 0.5, -1.0, 1.0)}
        if projection_error(subject, {position: received}, everywhere, tolerance) > tolerance:
            elements = elements_to_explain(subject, position, received, tolerance, SUSPECTS)
        else:
            elements = subject.rng.choice(x.size, min(x.size, SUSPECTS), replace=False)
        confirm(subject, position, gradient, elements, tolerance, variant)
