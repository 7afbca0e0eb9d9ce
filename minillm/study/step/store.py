"""The arrays of a page: which of them are stored exactly, which are rounded, and which become a small picture.

A page holds one block of bytes with all arrays one after the other, each at a multiple of eight. An array is stored in
one of three ways, and the page says which:

    exact    every number, in its own dtype (integers in 32 bits where they fit)
    half     every number in 16 bits, times a power of two that makes the largest one fit: three digits are right
    image    an array too large for either: 64 x 64 blocks, of each the mean and the number farthest from 0

The statistics are those of the whole array in every case. All arrays are exact in a page of a nano preset; where that
would exceed the budget, the largest ones are rounded first.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, NamedTuple

import numpy as np

from minillm.backend import Array

SIDE = 64  # rows and columns of an image


class Level(NamedTuple):
    """The largest sizes, in elements, of an array that is stored exactly, and of one that is stored rounded."""

    exact: int
    half: int
    side: int  # rows and columns of the image of a larger one


ALL = 1 << 62  # more elements than any array has
LIMITS = (ALL, *(1 << bits for bits in range(20, 5, -1)))  # the limits that are tried, in this order
LEAST = 1 << 8  # arrays up to this size stay exact as long as images of the largest ones make room


class Store:
    """Collects arrays, each once, and packs them."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}  # by id
        self._arrays: list[Array] = []

    def __len__(self) -> int:
        return len(self._arrays)

    def number(self, array: Array | None) -> int | None:
        """The number of an array in the page; None for one that the trace left out."""
        if array is None:
            return None
        if id(array) not in self._numbers:
            self._numbers[id(array)] = len(self._arrays)
            self._arrays.append(array)
        return self._numbers[id(array)]

    def packed(self, budget: float) -> tuple[list[dict[str, Any]], bytes, Level]:
        """The data of the page about each array, the bytes of all, and the level that fits a budget of bytes."""
        sizes = [(array.size, len(zlib.compress(as_exact(array).tobytes(), 1))) for array in self._arrays]
        expected = budget
        for _ in range(6):
            level = choose_level(sizes, expected)
            records, block = self._pack(level)
            if len(block) <= budget:
                break
            expected *= 0.9 * budget / len(block)
        return records, block, level

    def _pack(self, level: Level) -> tuple[list[dict[str, Any]], bytes]:
        """Records and compressed bytes of all arrays at a level."""
        records, parts, offset = [], [], 0
        for array in self._arrays:
            stored, extra = store(array, level)
            data = stored.tobytes()
            data += bytes(-len(data) % 8)
            stats = statistics(array)
            records.append(
                {"shape": list(array.shape), "dtype": str(array.dtype), "at": offset, **extra, "stats": stats}
            )
            offset += len(data)
            parts.append(data)
        return records, zlib.compress(b"".join(parts), 6)


def choose_level(sizes: list[tuple[int, int]], budget: float) -> Level:
    """The level that rounds least within a budget, from the elements and the compressed bytes of every array.

    First as few arrays as possible become images, then as few as possible are rounded.
    """

    def expected(level: Level) -> float:
        image = 4 * level.side**2
        return sum(
            exact if count <= level.exact else 0.55 * exact if count <= level.half else min(exact, image)
            for count, exact in sizes
        )

    for half in LIMITS:
        side = min(SIDE, 1 << (half.bit_length() - 2) // 2)  # an image of half the bytes that the numbers would take
        for exact in LIMITS:
            level = Level(exact, half, side)
            if LEAST <= exact <= half and expected(level) <= budget:
                return level
    return Level(LIMITS[-1], LIMITS[-1], 8)


def store(array: Array, level: Level) -> tuple[Array, dict[str, Any]]:
    """The array as it is stored, and how: the type of its numbers, and what undoes the rounding."""
    if array.size <= level.exact:
        exact = as_exact(array)
        return exact, {"type": exact.dtype.str[1:]}
    if array.size <= level.half:
        return halves(array)
    rows = np.asarray(array, np.float64).reshape(-1, array.shape[-1])
    block = tuple(-(-size // level.side) for size in rows.shape)
    grid = tuple(-(-size // step) for size, step in zip(rows.shape, block, strict=True))
    padded = np.full((grid[0] * block[0], grid[1] * block[1]), np.nan)
    padded[: rows.shape[0], : rows.shape[1]] = rows
    blocks = padded.reshape(grid[0], block[0], grid[1], block[1]).swapaxes(1, 2).reshape(*grid, -1)
    outside = np.isnan(blocks)
    total = np.where(outside, 0, blocks).sum(axis=-1)
    mean = total / np.maximum(1, (~outside).sum(axis=-1))
    farthest = np.take_along_axis(blocks, np.where(outside, -1, abs(blocks)).argmax(axis=-1)[..., None], -1)[..., 0]
    stored, extra = halves(np.stack([mean, farthest]))
    return stored, {**extra, "image": list(grid), "block": list(block)}


def as_exact(array: Array) -> Array:
    """The numbers in a type that a page can read: float32, float64, int32 or uint8, in C order."""
    kind = array.dtype.kind
    if kind == "b":
        return np.ascontiguousarray(array, np.uint8)
    if kind in "iu":
        fits = not array.size or (array.min() >= -(2**31) and array.max() < 2**31)
        return np.ascontiguousarray(array, np.int32 if fits else np.float64)
    if array.dtype == np.float64:
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array, np.float32)  # float32, float16, bfloat16


def halves(array: Array) -> tuple[Array, dict[str, Any]]:
    """The array in float16 times a power of two, with the exponent that undoes it."""
    numbers = np.asarray(array, np.float64)
    largest = np.abs(numbers, where=np.isfinite(numbers), out=np.zeros_like(numbers)).max(initial=0)
    exponent = math.frexp(largest)[1] - 15 if largest else 0
    return np.ascontiguousarray(np.ldexp(numbers, -exponent), np.float16), {"type": "f2", "exponent": exponent}


def statistics(array: Array) -> dict[str, float]:
    """Mean, standard deviation, smallest, largest, norm, and how many numbers are 0 or not finite."""
    numbers = np.asarray(array, np.float64).ravel()
    finite = numbers[np.isfinite(numbers)]
    if not finite.size:
        return {"infinite": numbers.size}
    found = {
        "mean": finite.mean(),
        "std": finite.std(),
        "least": finite.min(),
        "most": finite.max(),
        "norm": math.sqrt(float(finite @ finite)),
    }
    found = {name: float(f"{value:.4g}") for name, value in found.items()}
    return {**found, "zeros": int((finite == 0).sum()), "infinite": numbers.size - finite.size}
