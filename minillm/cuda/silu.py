"""SiLU by kernels/silu.cu."""

from __future__ import annotations

from minillm.cuda import activations

FILE, FUNCTION = "silu.cu", "Silu"


def forward(x):
    """y = x sigmoid(x), in the shape of x."""
    return activations.forward(FILE, FUNCTION, x)


def backward(dy, saved):
    """dx = dy times the slope."""
    return activations.backward(FILE, dy, saved)
