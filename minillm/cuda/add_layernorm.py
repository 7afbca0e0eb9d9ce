"""A residual addition and its layer norm by kernels/layernorm.cu."""

from __future__ import annotations

import numpy as np

from minillm.backend import contiguous
from minillm.cuda.launch import launch_norm_backward, launch_norm_forward, norm_fits
from minillm.cuda.layernorm import Saved, bias_or_zeros, outputs
from minillm.ops.add_layernorm import without_norm

KERNEL = "layernorm"


def forward(x, residual, weight, bias, *, eps):
    """x + residual and its layer norm, (..., C) each."""
    if not norm_fits(x, residual, weight, bias, sums=2):
        return NotImplemented
    x, residual, weight = contiguous(x), contiguous(residual), contiguous(weight)
    total = np.empty_like(x)
    y, mean, rstd = outputs(x)
    arrays = x, residual, weight, bias_or_zeros(bias, weight), total, y, mean, rstd
    launch_norm_forward("layernorm.cu", "residual_layernorm_forward", *arrays, eps=eps)
    return (total, y), Saved(total, weight, mean, rstd, bias is not None)


def backward(douts, saved):
    """dx = dresidual (..., C), dweight (C,) and dbias (C,)."""
    dtotal, dy = douts
    if dy is None:
        return without_norm(dtotal, saved)
    *kept, has_bias = saved
    name, arrays = "layernorm_backward", (contiguous(dy), *kept)
    if dtotal is not None:
        name, arrays = "residual_layernorm_backward", (contiguous(dy), contiguous(dtotal), *kept)
    dx, (dweight, dbias) = launch_norm_backward("layernorm.cu", name, *arrays, sums=2)
    return dx, dx, dweight, dbias if has_bias else None
