"""GELU of x + bias by kernels/gelu.cu, whose fused kernels read x once and write y once."""

from __future__ import annotations

from minillm.cuda import activations
from minillm.cuda.gelu import FILE, FUNCTIONS

KERNEL = "gelu"


def forward(x, bias, *, approximate):
    """y = gelu(x + bias), (..., C)."""
    return activations.forward_with_bias(FILE, FUNCTIONS[approximate], x, bias)


def backward(dy, saved):
    """dx (..., C) and dbias (C,)."""
    return activations.backward_with_bias(FILE, dy, saved)
