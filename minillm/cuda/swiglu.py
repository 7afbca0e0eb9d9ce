"""SwiGLU by kernels/silu.cu, which keeps gate and up, and computes everything else again in the backward."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.backend import Array, contiguous
from minillm.cuda import get_kernel
from minillm.cuda.launch import THREADS, blocks_for

KERNEL = "silu"


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    gate: Array  # (...)
    up: Array  # (...)


def forward(gate, up):
    """y = silu(gate) up, in the shape of both."""
    if gate.size == 0 or gate.dtype != up.dtype:
        return NotImplemented
    gate, up = contiguous(gate), contiguous(up)
    y = np.empty_like(gate)
    _launch("swiglu_forward", gate, up, y)
    return y, Saved(gate, up)


def backward(dy, saved):
    """dgate and dup, in the shape of dy."""
    gate, up = saved
    dgate, dup = np.empty_like(gate), np.empty_like(up)
    _launch("swiglu_backward", contiguous(dy), gate, up, dgate, dup)
    return dgate, dup


def _launch(name: str, *arrays: Array) -> None:
    x = arrays[0]
    kernel = get_kernel("silu.cu", name, x.dtype)
    kernel(blocks_for(x.size, 16 // x.itemsize), THREADS, (*arrays, np.int64(x.size)))
