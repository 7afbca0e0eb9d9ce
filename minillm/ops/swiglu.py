"""SiLU as a gate (Shazeer 2020, arXiv:2002.05202): half of the channels say how much of the other half passes.

    h = silu(gate)          with s as in ops/silu.py
    y = h up

Backward, line by line from the end:

    y = h up                dh = dy up         dup = dy h
    h = silu(gate)          dgate = dh s (1 + gate (1 - s))
"""

from __future__ import annotations

from typing import NamedTuple

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.errors import ShapeError, check_floating
from minillm.ops.silu import Saved as SavedBySilu
from minillm.ops.silu import silu_backward, silu_forward


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    gate: SavedBySilu  # gate and s, each (...)
    h: Array  # (...)
    up: Array  # (...)


def swiglu_forward(gate, up):
    h, saved_gate = silu_forward(gate)  # (...)
    y = h * up  # (...)
    return y, Saved(saved_gate, h, up)


def swiglu_backward(dy, saved):
    saved_gate, h, up = saved
    dup = dy * h  # (...)
    dh = dy * up  # (...)
    (dgate,) = silu_backward(dh, saved_gate)  # (...)
    return dgate, dup


SWIGLU = Op("swiglu", swiglu_forward, swiglu_backward)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise.

    Shapes: gate, up and the result, all the same (...).
    Saves: the slopes dy/dgate and dy/dup, two arrays like gate; on a GPU, references to gate and up; by the plain
        formula, both, s and h.
    Raises: ShapeError where the shapes differ; DtypeError where one is not floating.
    Source: Shazeer 2020, section 2.
    """
    if gate.shape != up.shape:
        raise ShapeError(f"swiglu: gate has shape {gate.shape}, but up has shape {up.shape}; both must be the same")
    check_floating("swiglu", gate=gate, up=up)
    return SWIGLU(gate, up)
