"""GELU by kernels/gelu.cu."""

from __future__ import annotations

from minillm.cuda import activations

FILE = "gelu.cu"
FUNCTIONS = {"none": "GeluErf", "tanh": "GeluTanh"}  # what gelu.cu calls each form


def forward(x, *, approximate):
    return activations.forward(FILE, FUNCTIONS[approximate], x)


def backward(dy, saved):
    return activations.backward(FILE, dy, saved)
