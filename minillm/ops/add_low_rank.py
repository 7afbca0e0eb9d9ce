"""A low-rank update of a linear layer's output: LoRA (Hu et al. 2021, arXiv:2106.09685, section 4.1).

The layer computes y = x W^T, with W (out, in) frozen. LoRA trains a change of W that is a product of two thin
matrices, s B A, with A (r, in), B (out, r) and a fixed number s. It is never formed, for x goes through A first:

    h = s x A^T             (..., r)
    z = y + h B^T           (..., out)

Backward, line by line from the end, with N rows of x, H and Z, and g the gradient of x A^T, by the rules of the matrix
product (ops/matmul.py):

    z = y + h B^T           dy = dz            dB = dZ^T H     (out, r)
    h = s x A^T             g = s dz B         dA = G^T X      (r, in)         dx = g A

B starts as zeros, so that z = y at first. Then g, dA and dx are 0 too, and dB alone is not: A moves from the second
step on. The layer's own dx = dy W is added by the engine.

W may hold several layers, one below the other, such as those of queries, keys and values. An update of one of them
changes some channels of y alone: those from `start` on.
"""

from __future__ import annotations

from typing import NamedTuple

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_rows, matmul
from minillm.errors import ShapeError, check_floating, check_shapes


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    x: Array  # (..., in)
    a: Array  # (r, in)
    b: Array  # (out, r)
    h: Array  # (..., r)
    scale: float
    start: int


def add_low_rank_forward(y, x, a, b, *, scale, start, overwrite):
    h = scaled(matmul(x, a.T), scale)  # (..., r)
    z = y if overwrite else y.copy()  # (..., C)
    channels = channels_of(b, start)
    z[..., channels] = y[..., channels] + matmul(h, b.T)  # (..., out)
    return z, Saved(x, a, b, h, scale, start)


def add_low_rank_backward(dz, saved):
    x, a, b, h, scale, start = saved
    dy = dz  # (..., C)
    dz = dz[..., channels_of(b, start)]  # (..., out)
    db = matmul(as_rows(dz).T, as_rows(h))  # (out, r)
    g = scaled(matmul(dz, b), scale)  # (..., r)
    da = matmul(as_rows(g).T, as_rows(x))  # (r, in)
    dx = matmul(g, a)  # (..., in)
    return dy, dx, da, db


def scaled(x, scale):
    """An array times a number, in the array's dtype: of bfloat16 NumPy would make float32."""
    return (scale * x).astype(x.dtype, copy=False)


def channels_of(b, start):
    """The channels of y that B (out, r) changes."""
    return slice(start, start + len(b))


# `aliases`: dy is dz.
ADD_LOW_RANK = Op("add_low_rank", add_low_rank_forward, add_low_rank_backward, aliases=True)


def add_low_rank(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float = 1.0, start: int = 0, overwrite: bool = False
) -> Tensor:
    """y + scale (x A^T) B^T, in the channels of y from `start` on.

    overwrite: the result takes the memory of y, which nothing else may read, before or after: for the output of a
        linear layer, whose backward does not need it.
    Shapes: y (..., C), x (..., in), a (r, in), b (out, r), with start + out <= C; result (..., C).
    Saves: x, and h (..., r), with references to a and b.
    Raises: ShapeError where sizes differ, or the channels go beyond C; DtypeError where one is not floating.
    Source: Hu et al. 2021, equation 3.
    """
    check_shapes("add_low_rank", x=("... in", x), a=("r in", a), b=("out r", b))
    check_floating("add_low_rank", y=y, x=x, a=a, b=b)
    if y.shape[:-1] != x.shape[:-1] or y.ndim != x.ndim:
        raise ShapeError(
            f"add_low_rank: y has shape {y.shape} and x has shape {x.shape}; give one row of y for each of x"
        )
    if not 0 <= start <= start + len(b) <= y.shape[-1]:
        raise ShapeError(
            f"add_low_rank: b has out={len(b)}, which does not fit into y's C={y.shape[-1]} from start={start} on"
        )
    return ADD_LOW_RANK(y, x, a, b, scale=scale, start=start, overwrite=overwrite)
