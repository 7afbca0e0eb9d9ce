"""Compare gradients with differences: element by element, and along directions through whole arrays."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.testing.subject import Gradients, Subject, difference_step, weights

DIFFERENCES = 4_000_000  # number of elements of the measured J that are held at once
SAMPLE = 200  # number of elements that are measured to explain a failure in a large array
SUSPECTS = 12  # number of elements of a variant that are measured with care
OWN_SIZE = 1e-4  # the tolerance, relative to its own size, of an element far smaller than the largest


class Measured(NamedTuple):
    """Some elements of one gradient, with their differences."""

    elements: Array  # flat indices
    jacobian: Array  # (elements, outputs)
    expected: Array
    received: Array
    doubts: Array  # the possible error of each expected number


def measure(
    subject: Subject, position: int, gradient: Array | None, elements: Array, careful: bool = False
) -> Measured:
    """Measure a difference for each element, with its possible error: by rounding, or if careful by all causes."""
    if careful:
        pairs = [subject.careful_difference(subject.one_element(position, element)) for element in elements]
    else:
        pairs = list(subject.differences(position, elements))
    jacobian = np.array([row for row, _ in pairs]).reshape(len(elements), subject.out.size)
    received = np.zeros(len(elements)) if gradient is None else gradient.reshape(-1)[elements].astype(np.float64)
    doubts = np.array([doubt for _, doubt in pairs])
    return Measured(elements, jacobian, jacobian @ subject.cotangent, received, doubts)


def largest(array: Array) -> float:
    """The largest finite size of an element."""
    return float(abs(array[np.isfinite(array)]).max(initial=0))


def relative(difference: float, size: float, noise: float, tolerance: float) -> float:
    """An error relative to the compared size; one that rounding explains comes out below the tolerance."""
    return difference / max(size, noise / tolerance, 1e-300)


def wrong_at_first_sight(subject: Subject, measured: Measured, tolerance: float) -> tuple[float, Array]:
    """The largest error relative to the largest element, and a mask of the elements beyond the tolerance."""
    distance = abs(measured.expected - measured.received)
    size = float(max(abs(measured.expected).max(), abs(measured.received).max()))
    noise = subject.rounding(difference_step())
    return relative(float(distance.max()), size, noise, tolerance), distance > max(tolerance * size, noise)


def wrong_for_their_size(measured: Measured, tolerance: float, least: float) -> Array:
    """A mask of elements wrong by more than OWN_SIZE of their own size, and by more than rounding explains."""
    distance = abs(measured.expected - measured.received)
    own = np.maximum(abs(measured.expected), abs(measured.received))
    least = max(least, 1e-9 * own.max(initial=0))
    return distance > max(tolerance, OWN_SIZE) * own + np.maximum(measured.doubts, least)


def wrong_with_care(measured: Measured, gradient: Array, tolerance: float, least: float) -> Array:
    """A mask of the carefully measured elements that are certainly wrong."""
    own = np.maximum(abs(measured.expected), abs(measured.received))
    allowed = max(tolerance, 1e-5) * own + measured.doubts + max(least, 1e-9 * largest(gradient))
    with np.errstate(invalid="ignore"):
        right = abs(measured.expected - measured.received) <= allowed
    certain = measured.doubts <= 1e-3 * abs(measured.expected) + 1e-9
    return np.where(np.isfinite(measured.received), ~right & np.isfinite(measured.doubts), certain)


def smooth_here(subject: Subject) -> bool:
    """True if differences along directions agree with those of single elements; for a median at ties they do not."""
    if sum(subject.values[i].size for i in subject.moved) > SAMPLE:
        return True
    slopes = {i: measure(subject, i, None, np.arange(subject.values[i].size)).expected for i in subject.moved}
    largest_slope = max(largest(one) for one in slopes.values())
    for draw in (np.ones, lambda shape: weights(subject.rng, shape)):
        directions = {i: draw(subject.values[i].shape) for i in subject.moved}
        change, noise = subject.difference(directions)
        together = float(subject.cotangent @ change)
        apart = sum(float(slopes[i] @ v.reshape(-1)) for i, v in directions.items())
        if not abs(together - apart) <= 1e-3 * max(largest_slope, abs(together)) + noise:
            return False
    return True


def balanced(subject: Subject, gradients: Gradients) -> dict[int, Array]:
    """A random direction through all arguments that moves small elements of a gradient further than large ones.

    So no element hides behind the largest: their shares of <g, v> are equal down to a hundredth of the largest.
    """
    directions, sizes = {}, {}
    for i, gradient in gradients.items():
        x = subject.values[i]
        if not x.size:
            continue
        size = 0.0 if gradient is None else largest(gradient)
        share = np.ones(x.shape) if gradient is None or not size else np.maximum(abs(gradient) / size, 0.01)
        directions[i] = weights(subject.rng, x.shape) * share.min() / share
        sizes[i] = size * float(share.min())
    least = min((size for size in sizes.values() if size), default=1.0)
    return {i: v * max(1e-3, least / max(sizes[i], least)) for i, v in directions.items()}


def projection_error(
    subject: Subject, gradients: Gradients, directions: dict[int, Array], tolerance: float, careful: bool = False
) -> float:
    """The distance of <u, J v> and <g, v>, relative to the length of the part of g that v covers.

    A careful difference copes with sharp curves; at a kink it stays uncertain, and so does the error.
    """
    if not directions:
        return 0.0
    change, noise = subject.careful_difference(directions) if careful else subject.difference(directions)
    noise += subject.least()
    expected, received, length = float(subject.cotangent @ change), 0.0, 0.0
    for i, v in directions.items():
        gradient = gradients[i]
        if gradient is not None:
            received += float(np.vdot(gradient, v))
            length += float(np.sum((gradient * v) ** 2))
    size = max(abs(expected), math.sqrt(length))
    noise = 0.0 if careful and noise > 1e-3 * size + subject.least() else noise
    error = relative(abs(expected - received), size, noise, tolerance)
    return error if math.isfinite(error) else math.inf


def elements_to_explain(subject: Subject, position: int, gradient: Array, tolerance: float, sample: int) -> Array:
    """Flat indices of elements to measure after a projection failed: one that is wrong, and a sample.

    The wrong element is found by bisection: at least one half of the elements disagrees with its projection.
    """
    unfinished = np.flatnonzero(~np.isfinite(gradient))[:4]
    suspects = np.arange(gradient.size) if not unfinished.size else unfinished[:1]
    while len(suspects) > 1:
        half = suspects[: len(suspects) // 2]
        direction = np.zeros(gradient.size)
        direction[half] = weights(subject.rng, half.shape)
        directions = {position: direction.reshape(gradient.shape)}
        error = projection_error(subject, {position: gradient}, directions, tolerance)
        suspects = half if not error <= tolerance else suspects[len(half) :]
    count = min(gradient.size, sample, max(1, DIFFERENCES // max(1, subject.cotangent.size)))
    chosen = subject.rng.choice(gradient.size, count, replace=False)
    return np.unique(np.concatenate([suspects, unfinished, chosen]))
