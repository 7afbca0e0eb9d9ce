"""Where a gradient is wrong, in words: the elements that are, and no others, share a sign, a size, or a place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minillm.backend import Array
from minillm.testing.subject import Subject

FEWEST = 3  # wrong elements, and right ones, below which what they share may be chance

Part = tuple[
    Subject, int, Array, Array
]  # a subject, the argument, the flat indices that were measured, which are wrong


def where_wrong(draws: list[Part]) -> str:
    """What holds of exactly the wrong elements in every draw, such as `where argument 0 (x) is below 0`; or ""."""
    if any(min(wrong.sum(), (~wrong).sum()) < FEWEST for *_, wrong in draws):
        return ""
    found = [set(_true_of(*draw)) for draw in draws]
    common = set.intersection(*found)
    return " and ".join(text for text in _true_of(*draws[0]) if text in common)


def _true_of(subject: Subject, position: int, elements: Array, wrong: Array) -> Iterator[str]:
    shape = subject.values[position].shape
    yield from _places(np.unravel_index(elements, shape), shape, wrong)
    for other in subject.moved:
        if subject.values[other].shape != shape:
            continue
        x, label = subject.values[other].reshape(-1)[elements], subject.label(other)
        for text, mask in {
            "below 0": x < 0,
            "above 0": x > 0,
            "0": x == 0,
            "a whole number": (x == np.round(x)) & (x != 0),
        }.items():
            if np.array_equal(mask, wrong):
                yield f"where {label} is {text}"
        size = abs(x)
        if (x < 0).any() and (x > 0).any():
            yield from _beyond(size, wrong, f"where the size of {label} is")


def _beyond(size: Array, wrong: Array, start: str) -> Iterator[str]:
    """A threshold between wrong and right, if there is one, to the power of ten that both draws share."""
    if size[wrong].min() > size[~wrong].max():
        yield f"{start} large"
    elif size[wrong].max() < size[~wrong].min():
        yield f"{start} small"


def _places(index: tuple[Array, ...], shape: tuple[int, ...], wrong: Array) -> Iterator[str]:
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
