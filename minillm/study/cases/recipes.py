"""Rows of the gradient-check table, and recipes for their arrays.

    Case("exp", "matrix", lambda x: x.exp(), normal((3, 4)))

A recipe takes a random generator and returns arrays: `normal((3, 4), (4,))` returns two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from minillm.backend import Array

Make = Callable[[np.random.Generator], tuple[Array, ...]]


class Case(NamedTuple):
    """A row of the table: an operation by name, what is awkward here, the function, and how to draw its arrays."""

    op: str
    name: str
    fn: Callable
    make_arrays: Make


def normal(*shapes: tuple[int, ...]) -> Make:
    """Standard normal numbers."""
    return lambda rng: tuple(rng.normal(size=shape) for shape in shapes)


def positive(*shapes: tuple[int, ...]) -> Make:
    """Numbers from 0.5 to 2, where logarithms, roots and quotients are smooth."""
    return lambda rng: tuple(rng.uniform(0.5, 2, shape) for shape in shapes)


def apart(*shapes: tuple[int, ...]) -> Make:
    """Odd multiples of 0.05 in random order, none twice: no ties, and no element near 0 or another kink."""

    def make(rng: np.random.Generator) -> tuple[Array, ...]:
        sizes = [int(np.prod(shape)) for shape in shapes]
        return tuple(
            (0.1 * (rng.permutation(n) - n // 2) + 0.05).reshape(shape) for n, shape in zip(sizes, shapes, strict=True)
        )

    return make


def apart_from_each_other(*shapes: tuple[int, ...]) -> Make:
    """Numbers of which no two, in whichever array, are equal or near."""

    def make(rng: np.random.Generator) -> tuple[Array, ...]:
        sizes = [int(np.prod(shape)) for shape in shapes]
        (numbers,) = apart((sum(sizes),))(rng)
        pieces = np.split(numbers, np.cumsum(sizes)[:-1])
        return tuple(piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True))

    return make


def _transposed(x: Array) -> Array:
    return np.ascontiguousarray(x.T).T


def _strided(x: Array) -> Array:
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def _reversed(x: Array) -> Array:
    return np.ascontiguousarray(x[..., ::-1])[..., ::-1]


VIEWS = {"transposed in memory": _transposed, "every other element": _strided, "reversed in memory": _reversed}


def in_views(op: str, fn: Callable, make: Make, what: str = "") -> Iterator[Case]:
    """A row of the table for each kind of view, with equal numbers; none of the arrays is contiguous."""
    for name, view in VIEWS.items():
        yield Case(op, what + name, fn, lambda rng, view=view: tuple(view(x) for x in make(rng)))  # type: ignore[misc]


SHAPES_OF_TWO = {
    "one shape": ((3, 4), (3, 4)),
    "left stretched": ((4,), (3, 4)),
    "right stretched": ((3, 4), (3, 1)),
    "both stretched": ((3, 1), (1, 4)),
    "one of two size-1 axes": ((1, 1), (1, 4)),
    "new axis of size 1": ((1, 1), (1, 3, 4)),
    "new axes and stretched": ((3, 1), (2, 3, 4)),
    "stretched and new axes": ((2, 1, 3, 4), (2, 1, 4)),
    "left has no axes": ((), (3, 4)),
    "right has no axes": ((2, 1, 3), ()),
    "no axes": ((), ()),
    "size 1": ((1, 1), (1,)),
    "empty": ((0, 3), (3,)),
    "stretched to nothing": ((1, 3), (0, 3)),
}
SHAPES_OF_ONE = {"matrix": (3, 4), "no axes": (), "size 1": (1, 1), "empty": (2, 0), "four axes": (2, 1, 3, 2)}
