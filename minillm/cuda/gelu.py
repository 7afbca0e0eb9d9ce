"""GELU by kernels/gelu.cu."""

from __future__ import annotations

from minillm.cuda import activations

FILE = "gelu.cu"
FUNCTIONS = {"none": "GeluErf", "tanh": "GeluTanh"}  # what gelu.cu calls each form


def forward(x, *, approximate):
    """y = gelu(x), in the shape of x."""
    return activations.forward(FILE, FUNCTIONS[approximate], x)


def backward(dy, saved):
    """dx = dy times the slope."""
    return activations.backward(FILE, dy, saved)
