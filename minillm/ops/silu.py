"""The sigmoid linear unit (Elfwing et al. 2017, arXiv:1702.03118; also called swish), alone and as a gate.

silu:    y = x s                with s = 1 / (1 + e^-x),   dy/dx = s + x s (1 - s) = s (1 + x (1 - s))
swiglu:  y = silu(gate) up      (Shazeer 2020, arXiv:2002.05202):  dgate = dy up silu'(gate),  dup = dy silu(gate)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_rows, contiguous, row_blocks
from minillm.errors import ShapeError, check_floating
from minillm.kernels import Kernel, get_kernel
from minillm.ops.arithmetic import logistic
from minillm.ops.launch import THREADS, blocks_for


class Saved(NamedTuple):
    """The input."""

    x: Array


class SavedPair(NamedTuple):
    """Both halves."""

    gate: Array
    up: Array


def silu_forward(x):
    return _by_rows(lambda x: x * logistic(x), x), Saved(x)


def silu_backward(dout, saved):
    def formula(dout, x):
        s = logistic(x)
        return dout * s * (1 + x * (1 - s))

    return (_by_rows(formula, dout, saved.x),)


def silu_forward_cuda(x):
    if x.size == 0:
        return NotImplemented
    x = contiguous(x)
    out = np.empty_like(x)
    _launch(get_kernel("silu.cu", "activation_forward", x.dtype, "Silu"), x, out)
    return out, Saved(x)


def silu_backward_cuda(dout, saved):
    x, dx = saved.x, np.empty_like(saved.x)
    _launch(get_kernel("silu.cu", "activation_backward", x.dtype, "Silu"), contiguous(dout), x, dx)
    return (dx,)


def _launch(kernel: Kernel, *arrays: Array) -> None:
    x = arrays[0]
    kernel(blocks_for(x.size, 16 // x.itemsize), THREADS, (*arrays, np.int64(x.size)))


SILU = Op("silu", silu_forward, silu_backward, cuda=(silu_forward_cuda, silu_backward_cuda))


def silu(x: Tensor) -> Tensor:
    """x / (1 + e^-x), elementwise. Saves: a reference to x."""
    check_floating("silu", x=x)
    return SILU(x)


def swiglu_forward(gate, up):
    return _by_rows(lambda gate, up: gate * logistic(gate) * up, gate, up), SavedPair(gate, up)


def swiglu_backward(dout, saved):
    gate, up = saved
    dgate, dup = np.empty_like(gate, order="C"), np.empty_like(up, order="C")
    arrays = [as_rows(array) for array in (dout, gate, up, dgate, dup)]

    def formula(rows):
        dout, gate, up, dgate, dup = (array[rows] for array in arrays)
        s = logistic(gate)
        np.multiply(dout, gate * s, out=dup)
        np.multiply(dout * up, s * (1 + gate * (1 - s)), out=dgate)

    row_blocks(formula, arrays[0])
    return dgate, dup


def swiglu_forward_cuda(gate, up):
    if gate.size == 0 or gate.dtype != up.dtype:
        return NotImplemented
    gate, up = contiguous(gate), contiguous(up)
    out = np.empty_like(gate)
    _launch(get_kernel("silu.cu", "swiglu_forward", gate.dtype), gate, up, out)
    return out, SavedPair(gate, up)


def swiglu_backward_cuda(dout, saved):
    gate, up = saved
    dgate, dup = np.empty_like(gate), np.empty_like(up)
    _launch(get_kernel("silu.cu", "swiglu_backward", gate.dtype), contiguous(dout), gate, up, dgate, dup)
    return dgate, dup


SWIGLU = Op("swiglu", swiglu_forward, swiglu_backward, cuda=(swiglu_forward_cuda, swiglu_backward_cuda), kernel="silu")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise, on two tensors of one shape. Saves: references to both.

    Raises: ShapeError where the shapes differ.
    """
    if gate.shape != up.shape:
        raise ShapeError(f"swiglu: gate has shape {gate.shape}, but up has shape {up.shape}; both must be the same")
    check_floating("swiglu", gate=gate, up=up)
    return SWIGLU(gate, up)


def _by_rows(formula, *arrays: Array) -> Array:
    """Apply an elementwise formula to row blocks of arrays of one shape."""
    out = np.empty_like(arrays[0], order="C")
    y, *xs = (as_rows(array) for array in (out, *arrays))

    def block(rows):
        y[rows] = formula(*(x[rows] for x in xs))

    row_blocks(block, y)
    return out
