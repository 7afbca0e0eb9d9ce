"""GELU of x + bias by kernels/gelu.cu, whose fused kernels read x once and write y once."""

from __future__ import annotations

from minillm.cuda import activations
from minillm.cuda.gelu import FILE, FUNCTIONS

KERNEL = "gelu"


def forward(x, bias, *, approximate):
    return activations.forward_with_bias(FILE, FUNCTIONS[approximate], x, bias)


def backward(dy, saved):
    return activations.backward_with_bias(FILE, dy, saved)
