"""RMS norm by kernels/rmsnorm.cu, which keeps x, and rstd of each row: less memory than norm takes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.backend import Array, contiguous
from minillm.cuda.launch import launch_norm_backward, launch_norm_forward, norm_fits


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward; N is the number of rows."""

    x: Array  # (..., C)
    weight: Array  # (C,)
    rstd: Array  # (N,)


def forward(x, weight, *, eps):
    """y (..., C), with rstd of each row."""
    if not norm_fits(x, weight, sums=1):
        return NotImplemented
    x, weight = contiguous(x), contiguous(weight)
    y = np.empty_like(x)
    rstd = np.empty_like(x, shape=x.size // x.shape[-1], dtype=np.promote_types(x.dtype, np.float32))
    launch_norm_forward("rmsnorm.cu", "rmsnorm_forward", x, weight, y, rstd, eps=eps)
    return y, Saved(x, weight, rstd)


def backward(dy, saved):
    """dx (..., C) and dweight (C,)."""
    dx, (dweight,) = launch_norm_backward("rmsnorm.cu", "rmsnorm_backward", contiguous(dy), *saved, sums=1)
    return dx, dweight
