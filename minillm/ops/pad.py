"""Values put around x, or a rim cut off. With `kept` the part of x that stays, and `inside` its place in y,

y = value, but y[inside] = x[kept]          dx = 0, but dx[kept] = dy[inside]

For two axes: x (I, J), y (K, L).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.errors import InputError, ShapeError
from minillm.ops.axes import whole_sizes

__all__ = ["pad"]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    shape: tuple[int, ...]  # of x
    kept: tuple[slice, ...]  # a slice of x for each axis
    inside: tuple[slice, ...]  # a slice of y for each axis


def pad_forward(x, *, shape, kept, inside, value):
    y = np.full_like(x, value, shape=shape, order="C")  # (K, L)
    y[inside] = x[kept]
    return y, Saved(x.shape, kept, inside)


def pad_backward(dy, saved):
    shape, kept, inside = saved
    dx = np.zeros_like(dy, shape=shape, order="C")  # (I, J)
    dx[kept] = dy[inside]
    return (dx,)


PAD = Op("pad", pad_forward, pad_backward)


def pad(x: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """x with `value` (0 by default) put around it: `pad` is (before, after) of the last axis, then of the one before.

    As in torch.nn.functional.pad: `pad(x, (1, 2))` puts one column on the left and two on the right, `(1, 2, 3, 4)`
    also three rows above and four below. A negative number cuts off.
    Raises: ShapeError for an odd number of them, too many, or more cut off than there is; InputError for other modes.
    """
    if mode != "constant":
        raise InputError(f"pad: mode is {mode!r}; only 'constant' is there")
    widths = whole_sizes("pad", (pad,), "a width")
    if len(widths) % 2 or len(widths) > 2 * x.ndim:
        raise ShapeError(f"pad: {widths} are no pairs (before, after) for up to {x.ndim} axes, the last axis first")
    pairs = [(0, 0)] * (x.ndim - len(widths) // 2) + list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    shape = tuple(n + before + after for n, (before, after) in zip(x.shape, pairs, strict=True))
    if any(n + min(before, 0) + min(after, 0) < 0 for n, (before, after) in zip(x.shape, pairs, strict=True)):
        raise ShapeError(f"pad: {widths} cuts off more than there is of shape {x.shape}")
    kept = tuple(slice(max(0, -before), n - max(0, -after)) for n, (before, after) in zip(x.shape, pairs, strict=True))
    inside = tuple(slice(max(0, a), n - max(0, b)) for n, (a, b) in zip(shape, pairs, strict=True))
    return PAD(x, shape=shape, kept=kept, inside=inside, value=value or 0)
