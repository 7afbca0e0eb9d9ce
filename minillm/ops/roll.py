"""Elements moved along axes, or in reverse order.

roll:  y[i + shift] = x[i], counted around the end      dx = dy rolled back by the same shift
flip:  y[i] = x[n - 1 - i], by an index                 see getitem.py
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.errors import ShapeError
from minillm.ops.axes import Axis, one_axis, several_axes, whole_sizes
from minillm.ops.getitem import getitem
from minillm.ops.reshape import flatten, reshape
from minillm.ops.to import clone

__all__ = ["flip", "roll"]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    shifts: tuple[int, ...]
    axes: tuple[int, ...]


def roll_forward(x, *, shifts, axes):
    y = np.roll(x, shifts, axes)  # (...)
    return y, Saved(shifts, axes)


def roll_backward(dy, saved):
    back = tuple(-shift for shift in saved.shifts)
    dx = np.roll(dy, back, saved.axes)  # (...)
    return (dx,)


ROLL = Op("roll", roll_forward, roll_backward)


def roll(x: Tensor, shifts: Any, dims: Axis = None) -> Tensor:
    """x with elements moved along axes, those that fall off coming in at the other end; without dims, flattened."""
    if dims is None:
        return reshape(roll(flatten(x), shifts, 0), x.shape)
    steps = whole_sizes("roll", (shifts,), "a shift")
    axes = tuple(one_axis("roll", axis, x.ndim) for axis in whole_sizes("roll", (dims,), "axis"))
    if len(steps) != len(axes):
        raise ShapeError(f"roll: there are {len(steps)} shifts, but {len(axes)} axes; give one shift for each axis")
    return ROLL(x, shifts=steps, axes=axes)


def flip(x: Tensor, *axes: Any, dims: Any = None) -> Tensor:
    """A copy of x with the order of elements reversed along the given axes: `flip(0, 1)` or `flip(dims=(0, 1))`."""
    if not axes and dims is None:
        raise ShapeError(f"flip: no axis is given for the shape {x.shape}; give at least one, such as flip(0)")
    chosen = several_axes("flip", axes if dims is None else (dims,), x.ndim)
    return clone(getitem(x, tuple(slice(None, None, -1 if axis in chosen else None) for axis in range(x.ndim))))
