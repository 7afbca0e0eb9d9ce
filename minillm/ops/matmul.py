"""The matrix product, batched and broadcast as in NumPy.

For Y = A B with L a function of Y: dL/dA_ik = sum_j dY_ij B_kj and dL/dB_kj = sum_i A_ik dY_ij, that is

    dA = dY B^T          dB = A^T dY

Batch axes that were stretched sum their gradients, like any broadcast.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minillm import backend
from minillm.autograd import Op, Tensor
from minillm.backend import Array, Product, as_array
from minillm.errors import ShapeError
from minillm.ops.arithmetic import mul, operands, unbroadcast


class Saved(NamedTuple):
    """Both factors."""

    a: Array
    b: Array


def matmul_forward(a, b):
    out = backend.matmul(a, b)
    return out, Saved(a, b)


def matmul_backward(dout, saved):
    a, b = saved
    # A vector is a matrix with one row (on the left) or one column (on the right) that the product dropped again.
    rows = a[None, :] if a.ndim == 1 else a
    columns = b[:, None] if b.ndim == 1 else b
    if b.ndim == 1:
        dout = dout[..., None]
    if a.ndim == 1:
        dout = dout[..., None, :]
    da, db = backend.matmuls(Product(dout, columns.swapaxes(-1, -2)), Product(rows.swapaxes(-1, -2), dout))
    return unbroadcast(da, rows.shape).reshape(a.shape), unbroadcast(db, columns.shape).reshape(b.shape)


MATMUL = Op("matmul", matmul_forward, matmul_backward)


def matmul(a: Any, b: Any) -> Tensor:
    """A B: the product over the last axis of a and the second-last of b.

    Shapes: a (..., M, K), b (..., K, N), result (..., M, N); batch axes broadcast, a vector is one row or column.
    Raises: ShapeError naming both K where they differ.
    """
    a, b = (x if hasattr(x, "ndim") else as_array(x) for x in operands(a, b, "matmul"))
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"matmul: a has shape {a.shape} and b has shape {b.shape}; a number is multiplied with *")
    inner = b.shape[0] if b.ndim == 1 else b.shape[-2]
    if a.shape[-1] != inner:
        raise ShapeError(f"matmul: a has K={a.shape[-1]} columns, but b has K={inner} rows: {a.shape} @ {b.shape}")
    return MATMUL(a, b)


def _product(function: str, a: Any, b: Any, axes: tuple[int, int]) -> Tensor:
    """`matmul` of operands that must have so many axes, and, of stacks of matrices, the same number of them."""
    a, b = (x if hasattr(x, "ndim") else as_array(x) for x in operands(a, b))
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
    a, b = (x if hasattr(x, "ndim") else as_array(x) for x in operands(a, b))
    if (a.ndim, b.ndim) != (1, 1):
        raise ShapeError(f"outer: the shapes are {a.shape} and {b.shape}, expected two vectors")
    return mul(a.reshape(-1, 1) if len(a) else a.reshape(0, 1), b)


def addmm(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta x + alpha A B of matrices; x broadcasts."""
    return beta * x + alpha * mm(a, b)


def baddbmm(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta x + alpha A B of stacks of matrices; x broadcasts."""
    return beta * x + alpha * bmm(a, b)
