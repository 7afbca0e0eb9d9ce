"""The matrix product on a CPU: both products of the backward are handed to the threads together.

Sums over stretched batch axes stay right to seven digits (see sums.py).
"""

from __future__ import annotations

from minillm.backend import Product, matmuls
from minillm.fast.broadcast import unbroadcast
from minillm.ops.matmul import as_matrices
from minillm.ops.matmul import matmul_forward as forward

__all__ = ["backward", "forward"]


def backward(dy, saved):
    """da and db, in the shapes of a and b."""
    a, b, dy_matrix = as_matrices(saved.a, saved.b, dy)
    da, db = matmuls(Product(dy_matrix, b.swapaxes(-1, -2)), Product(a.swapaxes(-1, -2), dy_matrix))
    return unbroadcast(da, a.shape).reshape(saved.a.shape), unbroadcast(db, b.shape).reshape(saved.b.shape)
