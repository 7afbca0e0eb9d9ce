"""Dropout by kernels/dropout.cu, which makes the random numbers of random.py where they are used."""

from __future__ import annotations

import numpy as np

from minillm import random
from minillm.backend import contiguous
from minillm.cuda import get_kernel
from minillm.cuda.launch import THREADS, blocks_for
from minillm.ops.dropout import Saved


def forward(x, *, p, seed, counter, skip=0):
    """x times its mask, scaled by 1 / (1 - p)."""
    if x.size == 0 or not 0 <= seed < 2**128 or counter + x.size >= 2**64:
        return NotImplemented
    saved = Saved(seed, counter, skip, p)
    return launch(x, saved), saved


def backward(dy, saved):
    """dy times the same mask."""
    return (launch(dy, saved),)


def launch(x, saved):
    """The array times its mask."""
    x, (seed, counter, skip, p) = contiguous(x), saved
    y = np.empty_like(x)
    key = np.uint64(seed % 2**64), np.uint64(seed // 2**64)
    threshold = np.uint32(min(round(p * 2**32), 2**32 - 1))
    scale = np.promote_types(x.dtype, np.float32).type(1 / (1 - p))
    arguments = (x, y, np.int64(x.size), *key, np.uint64(counter), np.int32(skip), threshold, scale)
    get_kernel("dropout.cu", "dropout", x.dtype)(blocks_for(skip + x.size, random.BLOCK), THREADS, arguments)
    return y
