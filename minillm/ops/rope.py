"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864, equation 15).

The channels of a head are D/2 pairs; at position t, pair i is a point in the plane that is turned by the angle
t base^(-2i/D). Turned queries and keys meet in a dot product that depends only on the distance of their positions.

    y1 = x1 cos - x2 sin        dx1 =  dy1 cos + dy2 sin
    y2 = x1 sin + x2 cos        dx2 = -dy1 sin + dy2 cos

The backward turns back: a rotation's transpose is its inverse. Which channels form a pair is a matter of layout:

- "half": channel i with channel i + D/2 (Hugging Face's Llama);
- "interleaved": channel 2i with channel 2i + 1 (the paper, and Meta's Llama).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, contiguous, row_blocks
from minillm.device import like
from minillm.errors import InputError, ShapeError, check_floating, check_shapes
from minillm.kernels import get_kernel
from minillm.ops.launch import BLOCKS, THREADS


class Saved(NamedTuple):
    """The turn at each position."""

    cos: Array
    sin: Array
    layout: str


def rope_forward(x, *, cos, sin, layout):
    return _rotate(x, cos, sin, layout), Saved(cos, sin, layout)


def rope_backward(dout, saved):
    return (_rotate(dout, saved.cos, -saved.sin, saved.layout),)


def _rotate(x: Array, cos: Array, sin: Array, layout: str) -> Array:
    half = x.shape[-1] // 2
    first, second = (np.s_[..., :half], np.s_[..., half:]) if layout == "half" else (np.s_[..., 0::2], np.s_[..., 1::2])
    y = np.empty_like(x)

    def formula(items):
        (x1, x2), (y1, y2) = ((array[items][first], array[items][second]) for array in (x, y))
        np.subtract(x1 * cos, x2 * sin, out=y1)
        np.add(x1 * sin, x2 * cos, out=y2)

    if x.ndim > 2:
        row_blocks(formula, y)
    else:  # the first axis is that of the tables
        formula(slice(None))
    return y


def rope_forward_cuda(x, *, cos, sin, layout):
    if x.size == 0:
        return NotImplemented
    return _rotate_cuda(x, cos, sin, layout, direction=1), Saved(cos, sin, layout)


def rope_backward_cuda(dout, saved):
    return (_rotate_cuda(dout, saved.cos, saved.sin, saved.layout, direction=-1),)


def _rotate_cuda(x: Array, cos: Array, sin: Array, layout: str, direction: int) -> Array:
    x, cos, sin = contiguous(x), contiguous(cos), contiguous(sin)
    y = np.empty_like(x)
    length, pairs = cos.shape
    rows = x.size // (2 * pairs)
    threads = min(64, -(-pairs * cos.itemsize // 16))  # for a row; each takes 16 bytes of the tables at a time
    block = (threads, THREADS // threads)
    sizes = (np.int64(rows), np.int32(length), np.int32(pairs), cos.dtype.type(direction))
    kernel = get_kernel("rope.cu", "rope", x.dtype, layout.upper())
    kernel(min(BLOCKS, -(-rows // block[1])), block, (x, cos, sin, y, *sizes))
    return y


ROPE = Op("rope", rope_forward, rope_backward, cuda=(rope_forward_cuda, rope_backward_cuda))


def rope(x: Tensor, cos: Array, sin: Array, layout: str = "half") -> Tensor:
    """Turn each pair of channels by the angle of its position.

    Shapes: x (..., T, D) with D even, cos and sin (T, D/2), from `rope_table`.
    Saves: references to the tables.
    Raises: ShapeError for an odd D or tables that do not fit; InputError for an unknown layout.
    """
    if layout not in ("half", "interleaved"):
        raise InputError(f"rope: layout is {layout!r}; choose 'half' (Hugging Face) or 'interleaved' (Meta)")
    check_shapes("rope", x=("... T D", x))
    check_floating("rope", x=x)
    if x.shape[-1] % 2:
        raise ShapeError(f"rope: x has D={x.shape[-1]} channels per head; pairs need an even number")
    wanted = (x.shape[-2], x.shape[-1] // 2)
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape != wanted:
            raise ShapeError(
                f"rope: {name} has shape {table.shape}, but x of shape {x.shape} needs (T, D/2) = {wanted}"
            )
    precision = np.promote_types(x.dtype, np.float32)  # the tables of bfloat16 stay in float32
    cos, sin = (like(table.astype(precision, copy=False), x.data) for table in (cos, sin))
    return ROPE(x, cos=cos, sin=sin, layout=layout)


def rope_table(length: int, head_size: int, base: float = 10000.0, start: int = 0) -> tuple[Array, Array]:
    """cos and sin (length, head_size / 2) of the angles t base^(-2i/D), for positions from `start` on, in float64."""
    frequency = base ** (-np.arange(0, head_size, 2) / head_size)
    angle = np.outer(np.arange(start, start + length), frequency)
    return np.cos(angle), np.sin(angle)
