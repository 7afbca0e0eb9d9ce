"""Rotary position embedding by kernels/rope.cu, which turns in either direction."""

from __future__ import annotations

import numpy as np

from minillm.backend import Array, contiguous
from minillm.cuda import get_kernel
from minillm.cuda.launch import BLOCKS, THREADS
from minillm.ops.rope import Saved


def forward(x, *, cos, sin, layout):
    """x with each pair of channels turned by its angle."""
    if x.size == 0:
        return NotImplemented
    saved = Saved(contiguous(cos), contiguous(sin), layout)
    return _turn(x, saved, direction=1), saved


def backward(dy, saved):
    """dy turned by the same angles, the other way round."""
    return (_turn(dy, saved, direction=-1),)


def _turn(x: Array, saved: Saved, direction: int) -> Array:
    cos, sin, layout = saved
    x = contiguous(x)
    y = np.empty_like(x)
    length, pairs = cos.shape
    rows = x.size // (2 * pairs)
    threads = min(64, -(-pairs * cos.itemsize // 16))  # for a row; each takes 16 bytes of the tables at a time
    block = (threads, THREADS // threads)
    sizes = (np.int64(rows), np.int32(length), np.int32(pairs), cos.dtype.type(direction))
    kernel = get_kernel("rope.cu", "rope", x.dtype, layout.upper())
    kernel(min(BLOCKS, -(-rows // block[1])), block, (x, cos, sin, y, *sizes))
    return y
