"""The matrix product, batched and broadcast as in NumPy.

For Y = A B, with A (M, K), B (K, N), Y (M, N), and L a function of Y: dL/dA_ik = sum_j dY_ij B_kj and
dL/dB_kj = sum_i A_ik dY_ij, that is

    dA = dY B^T     (M, K)          dB = A^T dY     (K, N)

Where a batch axis was stretched, the gradient is summed over it. A vector on the left counts as a matrix (1, K), a
vector on the right as (K, 1); Y does not have this axis of size 1. GPT-2 does not call this operation: its products are
in ops/linear.py and ops/attention.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minillm import backend
from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_array
from minillm.errors import ShapeError
from minillm.ops.arithmetic import mul
from minillm.ops.broadcast import unbroadcast
from minillm.ops.operands import operands

__all__ = ["addmm", "baddbmm", "bmm", "dot", "matmul", "mm", "mv", "outer"]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    a: Array  # (..., M, K), or (K,)
    b: Array  # (..., K, N), or (K,)


def matmul_forward(a, b):
    y = backend.matmul(a, b)  # (..., M, N), without M or N where a or b is a vector
    return y, Saved(a, b)


def matmul_backward(dy, saved):
    a, b, dy_matrix = as_matrices(saved.a, saved.b, dy)  # (..., M, K), (..., K, N), (..., M, N)
    da = backend.matmul(dy_matrix, b.swapaxes(-1, -2))  # (..., M, K), with the batch axes of Y
    db = backend.matmul(a.swapaxes(-1, -2), dy_matrix)  # (..., K, N), with the batch axes of Y
    # summed over the stretched batch axes, in the shapes of a and b: (..., M, K) or (K,), and (..., K, N) or (K,)
    return unbroadcast(da, a.shape).reshape(saved.a.shape), unbroadcast(db, b.shape).reshape(saved.b.shape)


def as_matrices(a, b, dy):
    """Vectors as matrices: a (..., M, K), b (..., K, N) and dy (..., M, N)."""
    if b.ndim == 1:
        b, dy = b[:, None], dy[..., None]  # (K, 1), (..., M, 1) or, if a is a vector too, (1,)
    if a.ndim == 1:
        a, dy = a[None, :], dy[..., None, :]  # (1, K), (..., 1, N)
    return a, b, dy


MATMUL = Op("matmul", matmul_forward, matmul_backward)


def matmul(a: Any, b: Any) -> Tensor:
    """A B: the product over the last axis of a and the second-last of b.

    Shapes: a (..., M, K), b (..., K, N), result (..., M, N); batch axes broadcast, a vector is one row or column.
    Saves: references to both.
    Raises: ShapeError naming both K where they differ.
    """
    a, b = (x if hasattr(x, "ndim") else as_array(x) for x in operands(a, b, "matmul"))
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"matmul: a has shape {a.shape} and b has shape {b.shape}; a number is multiplied with *")
    inner = b.shape[0] if b.ndim == 1 else b.shape[-2]
    if a.shape[-1] != inner:
        raise ShapeError(f"matmul: a has K={a.shape[-1]} columns, but b has K={inner} rows: {a.shape} @ {b.shape}")
    return MATMUL(a, b)


# --- under PyTorch's other names -----------------------------------------------------------------------------------


def _product(function: str, a: Any, b: Any, axes: tuple[int, int]) -> Tensor:
    """`matmul` of operands that must have this many axes, and stacks of matrices one batch size."""
    a, b = (x if hasattr(x, "ndim") else as_array(x) for x in operands(a, b, function))
    if (a.ndim, b.ndim) != axes or (axes == (3, 3) and len(a) != len(b)):
        raise ShapeError(
            f"{function}: the shapes are {a.shape} and {b.shape}, expected {axes[0]} and {axes[1]} axes"
            + (" and batches of one size" if axes == (3, 3) else "")
            + "; matmul takes any, and broadcasts"
        )
    return matmul(a, b)


def dot(a: Any, b: Any) -> Tensor:
    """The inner product of two vectors, (K,) and (K,)."""
    return _product("dot", a, b, (1, 1))


def mv(a: Any, b: Any) -> Tensor:
    """A matrix times a vector, (M, K) and (K,)."""
    return _product("mv", a, b, (2, 1))


def mm(a: Any, b: Any) -> Tensor:
    """The product of two matrices, (M, K) and (K, N)."""
    return _product("mm", a, b, (2, 2))


def bmm(a: Any, b: Any) -> Tensor:
    """The products of two stacks of matrices, (B, M, K) and (B, K, N)."""
    return _product("bmm", a, b, (3, 3))


def outer(a: Any, b: Any) -> Tensor:
    """Every element of a vector times every element of another, (M,) and (N,) to (M, N)."""
    a, b = (x if hasattr(x, "ndim") else as_array(x) for x in operands(a, b, "outer"))
    if (a.ndim, b.ndim) != (1, 1):
        raise ShapeError(f"outer: the shapes are {a.shape} and {b.shape}, expected two vectors")
    return mul(a.reshape(-1, 1) if len(a) else a.reshape(0, 1), b)


def addmm(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta x + alpha A B of matrices; x broadcasts."""
    return beta * x + alpha * mm(a, b)


def baddbmm(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta x + alpha A B of stacks of matrices; x broadcasts."""
    return beta * x + alpha * bmm(a, b)
