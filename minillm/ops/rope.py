"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864, equation 15).

The channels of a head are D/2 pairs. At position t, pair i is a point in the plane that is turned by the angle
t base^(-2i/D); cos and sin of these angles are tables (ops/rope_table.py). Turned queries and keys meet in a dot
product that depends only on the distance of their positions.

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
from minillm.backend import Array
from minillm.device import like
from minillm.errors import InputError, ShapeError, check_floating, check_shapes


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    cos: Array  # (T, D/2)
    sin: Array  # (T, D/2)
    layout: str


def rope_forward(x, *, cos, sin, layout):
    x1, x2 = pairs(x, layout)  # (..., T, D/2) each
    y1 = x1 * cos - x2 * sin  # (..., T, D/2)
    y2 = x1 * sin + x2 * cos  # (..., T, D/2)
    y = joined(y1, y2, layout).astype(x.dtype, copy=False)  # (..., T, D)
    return y, Saved(cos, sin, layout)


def rope_backward(dy, saved):
    cos, sin, layout = saved
    dy1, dy2 = pairs(dy, layout)  # (..., T, D/2) each
    dx1 = dy1 * cos + dy2 * sin  # (..., T, D/2)
    dx2 = -dy1 * sin + dy2 * cos  # (..., T, D/2)
    dx = joined(dx1, dx2, layout).astype(dy.dtype, copy=False)  # (..., T, D)
    return (dx,)


def pairs(x: Array, layout: str) -> tuple[Array, Array]:
    """Views of the first and the second channel of each pair, (..., T, D/2) each."""
    half = x.shape[-1] // 2
    return (x[..., :half], x[..., half:]) if layout == "half" else (x[..., 0::2], x[..., 1::2])


def joined(x1: Array, x2: Array, layout: str) -> Array:
    """The inverse of `pairs`: (..., T, D)."""
    if layout == "half":
        return np.concatenate([x1, x2], axis=-1)
    return np.stack([x1, x2], axis=-1).reshape(*x1.shape[:-1], 2 * x1.shape[-1])


ROPE = Op("rope", rope_forward, rope_backward)


def rope(x: Tensor, cos: Array, sin: Array, layout: str = "half") -> Tensor:
    """Turn each pair of channels by the angle of its position.

    Shapes: x (..., T, D) with D even, cos and sin (T, D/2), from `rope_table`; result (..., T, D).
    Units: cos and sin are taken in the dtype of x, in float32 at least.
    Saves: references to the tables.
    Raises: ShapeError for an odd D or tables that do not fit; InputError for an unknown layout.
    Source: Su et al. 2021, equation 15.
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
