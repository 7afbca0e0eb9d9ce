"""Layer norm by kernels/layernorm.cu, which keeps x, and mean and rstd of each row: less memory than norm takes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.backend import Array, contiguous
from minillm.cuda.launch import launch_norm_backward, launch_norm_forward, norm_fits


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward; N is the number of rows."""

    x: Array  # (..., C)
    weight: Array  # (C,)
    mean: Array  # (N,)
    rstd: Array  # (N,)
    has_bias: bool


def forward(x, weight, bias, *, eps):
    """y (..., C), with mean and rstd of each row."""
    if not norm_fits(x, weight, bias, sums=2):
        return NotImplemented
    x, weight = contiguous(x), contiguous(weight)
    y, mean, rstd = outputs(x)
    arrays = x, weight, bias_or_zeros(bias, weight), y, mean, rstd
    launch_norm_forward("layernorm.cu", "layernorm_forward", *arrays, eps=eps)
    return y, Saved(x, weight, mean, rstd, bias is not None)


def backward(dy, saved):
    """dx (..., C), dweight (C,) and dbias (C,)."""
    *kept, has_bias = saved
    dx, (dweight, dbias) = launch_norm_backward("layernorm.cu", "layernorm_backward", contiguous(dy), *kept, sums=2)
    return dx, dweight, dbias if has_bias else None


def outputs(x):
    """Memory for y, mean and rstd; the numbers of a row have float32 at least."""
    mean, rstd = np.empty_like(x, shape=(2, x.size // x.shape[-1]), dtype=np.promote_types(x.dtype, np.float32))
    return np.empty_like(x), mean, rstd


def bias_or_zeros(bias, weight):
    """The bias as the kernel reads it."""
    return np.zeros_like(weight) if bias is None else contiguous(bias)
