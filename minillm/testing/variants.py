"""Variants of the given arguments, which find errors that a person would not think to look for.

Layout variants keep the values and change the memory; value variants keep the shapes; size variants shorten axes or
lengthen them. A variant at which the function itself fails or is not finite is skipped: not every function takes
negative numbers or no rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.engine import current_engine
from minillm.testing.subject import Subject, is_float, weights

MOST = 4_000  # axes may grow up to this many elements of all arguments together


class Variant(NamedTuple):
    """Arguments made from the given ones; `otherwise` holds variants to try if the function is not defined there."""

    name: str
    values: list
    otherwise: tuple[Variant, ...] = ()


# --- layouts -------------------------------------------------------------------------------------------------------


def transposed(x: Array) -> Array:
    """Copy the values, column after column in memory."""
    return np.array(x.T, order="C").T


def strided(x: Array) -> Array:
    """Copy the values to every other place of memory; the gaps are NaN, or the smallest integer."""
    if not x.ndim:
        return x
    between = np.nan if x.dtype.kind == "f" else np.iinfo(x.dtype).min if x.dtype.kind == "i" else 0
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), between, x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def backwards(x: Array) -> Array:
    """Copy the values, from the end of memory to its beginning."""
    turned = tuple(slice(None, None, -1) for _ in x.shape)
    return np.array(x[turned])[turned] if x.ndim else x


LAYOUTS = {
    "transposed in memory": transposed,
    "in every other place of memory": strided,
    "backwards in memory": backwards,
}


def change_arrays(values: list, change: Callable, which: Any = None) -> list:
    """The arguments with these arrays (all by default) changed."""
    return [
        np.asarray(change(x)) if isinstance(x, np.ndarray) and (which is None or i in which) else x
        for i, x in enumerate(values)
    ]


def stretched(x: Array, axis: int | None, contiguous: bool) -> Array:
    """Repeat the first slice along the axis (None: all axes): by strides of 0, or copied."""
    if not x.ndim or not x.size:
        return x.copy()
    first = x.reshape(-1)[0] if axis is None else x.take([0], axis)
    return np.array(np.broadcast_to(first, x.shape)) if contiguous else np.broadcast_to(first, x.shape)


# --- values --------------------------------------------------------------------------------------------------------


def every_third_zero(x: Array) -> Array:
    """A copy of x in which every third element is 0."""
    x = x.copy()
    x.reshape(-1)[::3] = 0
    return x


def reversed_values(x: Array) -> Array:
    """A copy of x in the opposite order along every axis."""
    return np.array(x[tuple(slice(None, None, -1) for _ in x.shape)])


VALUES: dict[str, Callable[[Array], Array]] = {
    "negated": lambda x: -x,
    "times 4": lambda x: 4 * x,
    "times 1000": lambda x: 1000 * x,
    "divided by 1000": lambda x: x / 1000,
    "doubled and rounded to whole numbers": lambda x: np.round(2 * x),
    "with a 0 in every third place": every_third_zero,
    "in reversed order": reversed_values,
}


def repeated_ids(x: Array) -> Array:
    """Repeat the first half of the integers; invert booleans."""
    if x.dtype.kind == "b":
        return ~x
    return np.resize(x.reshape(-1)[: (x.size + 1) // 2], x.shape) if x.size else x


def of_values(subject: Subject) -> Iterator[Variant]:
    """Change all floating arguments together, or else one by one; and repeat the integers."""
    values = [np.array(x) if isinstance(x, np.ndarray) else x for x in subject.values]
    for name, change in VALUES.items():
        together = change_arrays(values, change, subject.moved)
        if all(np.array_equal(together[i], values[i]) for i in subject.moved):
            continue
        alone = [Variant(f"{subject.label(i)} {name}", change_arrays(values, change, [i])) for i in subject.moved]
        if name == "times 1000":
            less = change_arrays(values, lambda x: 30 * x, subject.moved)
            alone = [Variant(f"{_all(subject)} times 30", less)]
        yield Variant(f"{_all(subject)} {name}", together, tuple(alone) if len(alone) > 1 or "1000" in name else ())
    integers = [i for i, x in enumerate(values) if isinstance(x, np.ndarray) and x.dtype.kind in "iub" and x.size > 1]
    if integers:
        yield Variant("integers repeated, booleans inverted", change_arrays(values, repeated_ids, integers))
    same = [
        (i, j)
        for i, j in zip(subject.moved, subject.moved[1:], strict=False)
        if values[i].shape == values[j].shape and values[i].size
    ]
    for i, j in same[:2]:
        equal = list(values)
        equal[j] = values[i].copy()
        yield Variant(f"arguments {i} and {j} equal", equal)


def _all(subject: Subject) -> str:
    """All floating arguments in words."""
    return "every floating argument" if len(subject.moved) > 1 else subject.label(subject.moved[0])


# --- sizes ---------------------------------------------------------------------------------------------------------


def of_sizes(subject: Subject) -> Iterator[Variant]:
    """Cut all axes of one size to 1, to nothing, by one, and grow them beyond a block of 64 and of 256."""
    arrays = [x for x in subject.values if isinstance(x, np.ndarray)]
    ones = change_arrays(subject.values, lambda x: x[tuple(slice(1) for _ in x.shape)].copy())
    yield Variant("every axis made 1", ones)
    for n in sorted({n for x in arrays for n in x.shape} - {0}):
        cuts = {1, 0, n - 1} - {n} if n > 1 else set()
        for size in [*sorted(cuts), *([67, 259] if n > 1 else [3])]:
            shapes = [tuple(size if m == n else m for m in x.shape) for x in arrays]
            emulated = current_engine() in ("emulate", "require")
            if size == n or (size > n and (emulated or sum(int(np.prod(shape)) for shape in shapes) > MOST)):
                continue
            values = [_resized(subject, x, n, size) if isinstance(x, np.ndarray) else x for x in subject.values]
            yield Variant(f"every axis of size {n} made {size}", values)


def _resized(subject: Subject, x: Array, n: int, size: int) -> Array:
    """Take the first indices of each such axis, repeated if there are too few; floating repeats differ slightly."""
    for axis, m in enumerate(x.shape):
        if m == n:
            x = x.take(np.arange(size) % n, axis)
    return np.asarray(x * (1 + 0.01 * weights(subject.rng, x.shape))) if is_float(x) and size > n else np.array(x)
