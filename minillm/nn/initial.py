"""First weights: how layers fill new arrays, by the project's random stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from minillm import random
from minillm.backend import Array

_draws = True


@contextlib.contextmanager
def uninitialized() -> Iterator[None]:
    """Leave the matrices of new layers unset, for a model whose weights are set afterwards."""
    global _draws
    before, _draws = _draws, False
    try:
        yield
    finally:
        _draws = before


def normal_(array: Array, std: float) -> None:
    """Fill an array with samples from N(0, std)."""
    if _draws:
        normal = random.default.numpy().standard_normal(array.shape, dtype=np.float32)
        np.multiply(normal, std, out=array)


def uniform_(bound: float, *arrays: Array) -> None:
    """Fill arrays with samples from U(-bound, bound)."""
    if _draws:
        generator = random.default.numpy()
        for array in arrays:
            array[...] = generator.uniform(-bound, bound, array.shape)
