"""The sum of squares of optim/clip.py, on several threads and in the dtype of the gradients where that is exact enough.

The plain formula copies every gradient to float64 first.
"""

from __future__ import annotations

import math

import numpy as np

from minillm import backend
from minillm.backend import Array
from minillm.sums import vecdot

SMALLEST_SUM = 1e-25  # of squares in float32; a smaller one may have lost squares below the smallest float32


def sum_of_squares(vectors: list[Array]) -> float:
    """The sum over all vectors, each of one axis."""
    squares = [0.0] * len(vectors)  # added up in order afterwards, so that threads do not change the result

    def run(start, stop):
        with np.errstate(over="ignore", invalid="ignore"):
            for i in range(start, stop):
                squares[i] = _sum_of_squares_of_one(vectors[i])

    if sum(vector.nbytes for vector in vectors) < backend.cutting.parallel_bytes:
        run(0, len(vectors))
    else:
        backend.parallel(run, len(vectors))
    return math.fsum(squares)


def _sum_of_squares_of_one(vector: Array) -> float:
    """In float32, and again in float64 where squares overflow float32 (of 1e20) or vanish in it (of 1e-25)."""
    wide = vector.astype(np.promote_types(vector.dtype, np.float32), copy=False)
    total = float(vecdot(wide, wide))
    if wide.dtype == np.float32 and wide.size and not SMALLEST_SUM < total < math.inf and (wide.max() or wide.min()):
        wide = wide.astype(np.float64)
        total = float(vecdot(wide, wide))
    return total
