"""Describe where a gradient is wrong: a sign, a size or a place that exactly the wrong elements share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minillm.backend import Array
from minillm.testing.subject import Subject

FEWEST = 3  # with fewer wrong or right elements, a common feature may be chance

Part = tuple[
    Subject, int, Array, Array
]  # a subject, the argument, the flat indices that were measured, a mask of the wrong ones


def where_wrong(draws: list[Part]) -> str:
    """A condition that exactly the wrong elements meet in every draw: `where argument 0 (x) is below 0`; or ""."""
    if any(min(wrong.sum(), (~wrong).sum()) < FEWEST for *_, wrong in draws):
        return ""
    for facts in (_places, _own_values, _other_values):
        common = set.intersection(*(set(facts(*draw)) for draw in draws))
        if common:
            return " and ".join(text for text in facts(*draws[0]) if text in common)
    return ""


def _own_values(subject: Subject, position: int, elements: Array, wrong: Array) -> Iterator[str]:
    """Conditions on the argument's own values."""
    return _values(subject.values[position], subject.label(position), elements, wrong)


def _other_values(subject: Subject, position: int, elements: Array, wrong: Array) -> Iterator[str]:
    """Conditions on the values of other arguments of one shape with it."""
    for other in subject.moved:
        if other != position and subject.values[other].shape == subject.values[position].shape:
            yield from _values(subject.values[other], subject.label(other), elements, wrong)


def _values(array: Array, label: str, elements: Array, wrong: Array) -> Iterator[str]:
    """The first of these that is true."""
    x = array.reshape(-1)[elements]
    for text, mask in {
        "below 0": x < 0,
        "above 0": x > 0,
        "0": x == 0,
        "a whole number": (x == np.round(x)) & (x != 0),
    }.items():
        if np.array_equal(mask, wrong):
            yield f"where {label} is {text}"
            return
    if (x < 0).any() and (x > 0).any():
        yield from _beyond(abs(x), wrong, f"where the size of {label} is")


def _beyond(size: Array, wrong: Array, start: str) -> Iterator[str]:
    """A threshold between wrong and right, if there is one, to the power of ten that both draws share."""
    if size[wrong].min() > size[~wrong].max():
        yield f"{start} large"
    elif size[wrong].max() < size[~wrong].min():
        yield f"{start} small"


def _places(subject: Subject, position: int, elements: Array, wrong: Array) -> Iterator[str]:
    """Conditions on the place of an element: first or last index of an axis, on or beside the diagonal."""
    shape = subject.values[position].shape
    index: tuple[Array, ...] = tuple(np.unravel_index(elements, shape)) if shape else ()  # type: ignore[arg-type]
    for axis, (i, n) in enumerate(zip(index, shape, strict=True)):
        if np.array_equal(i == n - 1, wrong):
            yield f"at the last index of axis {axis}"
        elif np.array_equal(i == 0, wrong):
            yield f"at the first index of axis {axis}"
        elif i[wrong].min() > i[~wrong].max():
            first, last = int(i[~wrong].max()) + 1, int(i[wrong].min())
            yield f"at the indices of axis {axis} from {first if first == last else f'{first} to {last}'} on"
    if len(shape) == 2:
        row, column = index
        for text, mask in {"on": row == column, "above": row < column, "below": row > column}.items():
            if np.array_equal(mask, wrong):
                yield f"{'in the part ' if text != 'on' else ''}{text} the diagonal"
