"""The sigmoid linear unit (Elfwing et al. 2017, arXiv:1702.03118; also called swish), alone and as a gate.

silu:    y = x s                with s = 1 / (1 + e^-x),   dy/dx = s + x s (1 - s) = s (1 + x (1 - s))
swiglu:  y = silu(gate) up      (Shazeer 2020, arXiv:2002.05202):  dgate = dy up silu'(gate),  dup = dy silu(gate)

The bias of the linear layer before may be added here, as in ops/gelu.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_rows, contiguous, row_blocks, sum_over_blocks
from minillm.errors import ShapeError, check_floating, check_shapes
from minillm.kernels import get_kernel
from minillm.ops.arithmetic import logistic
from minillm.ops.launch import THREADS, activation_backward, activation_fits, activation_forward, blocks_for


class Saved(NamedTuple):
    """The inputs."""

    x: Array
    bias: Array | None


class SavedPair(NamedTuple):
    """Both halves."""

    gate: Array
    up: Array


def silu_forward(x, bias=None):
    out = np.empty_like(x, order="C")
    x_rows, y = as_rows(x), as_rows(out)

    def formula(rows):
        _silu(x_rows[rows] if bias is None else x_rows[rows] + bias, y[rows])

    row_blocks(formula, y)
    return out, Saved(x, bias)


def _silu(x: Array, y: Array) -> None:
    """y = x / (1 + e^-x), in place where y is not x: a pass each for the sign, e^, the sum and the quotient."""
    with np.errstate(over="ignore"):  # x / inf is 0
        np.exp(np.negative(x, out=y), out=y)
    y += 1
    np.divide(x, y, out=y)


def _slope(x: Array, s: Array) -> None:
    """s (1 + x (1 - s)), the slope of silu at x, written over s = 1 / (1 + e^-x)."""
    rest = 1 - s
    rest *= x
    rest += 1
    s *= rest


def silu_backward(dout, saved):
    x, bias = saved
    dx = np.empty_like(x, order="C")
    x_rows, dy, dx_rows = as_rows(x), as_rows(dout), as_rows(dx)

    def formula(rows):
        x = x_rows[rows] if bias is None else x_rows[rows] + bias
        s = logistic(x)
        _slope(x, s)
        np.multiply(dy[rows], s, out=dx_rows[rows])
        return () if bias is None else (dx_rows[rows].sum(axis=0),)

    sums = sum_over_blocks(formula, dy)
    return dx, sums[0] if sums else None


def silu_forward_cuda(x, bias=None):
    if not activation_fits(x, bias):
        return NotImplemented
    x, bias = contiguous(x), None if bias is None else contiguous(bias)
    return activation_forward("silu.cu", "Silu", x, bias), Saved(x, bias)


def silu_backward_cuda(dout, saved):
    return activation_backward("silu.cu", "Silu", contiguous(dout), saved.x, saved.bias)


SILU = Op("silu", silu_forward, silu_backward, cuda=(silu_forward_cuda, silu_backward_cuda))


def silu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """x / (1 + e^-x), elementwise; with a bias (C,), that of x + bias, for x (..., C).

    Saves: references to x and bias. Raises: ShapeError where C differs.
    """
    if bias is not None:
        check_shapes("silu", x=("... C", x), bias=("C", bias))
    check_floating("silu", x=x, bias=bias)
    return SILU(x, bias)


def swiglu_forward(gate, up):
    out = np.empty_like(gate, order="C", dtype=np.promote_types(gate.dtype, up.dtype))
    y, gate_rows, up_rows = (as_rows(array) for array in (out, gate, up))

    def formula(rows):
        _silu(gate_rows[rows], y[rows])
        y[rows] *= up_rows[rows]

    row_blocks(formula, y)
    return out, SavedPair(gate, up)


def swiglu_backward(dout, saved):
    gate, up = saved
    dgate, dup = np.empty_like(gate, order="C"), np.empty_like(up, order="C")
    arrays = [as_rows(array) for array in (dout, gate, up, dgate, dup)]

    def formula(rows):
        dout, gate, up, dgate, dup = (array[rows] for array in arrays)
        s = logistic(gate)
        np.multiply(gate, s, out=dup)
        dup *= dout
        _slope(gate, s)
        np.multiply(dout, up, out=dgate)
        dgate *= s

    row_blocks(formula, arrays[0])
    return dgate, dup


def swiglu_forward_cuda(gate, up):
    if gate.size == 0 or gate.dtype != up.dtype:
        return NotImplemented
    gate, up = contiguous(gate), contiguous(up)
    out = np.empty_like(gate)
    _launch("swiglu_forward", gate, up, out)
    return out, SavedPair(gate, up)


def swiglu_backward_cuda(dout, saved):
    gate, up = saved
    dgate, dup = np.empty_like(gate), np.empty_like(up)
    _launch("swiglu_backward", contiguous(dout), gate, up, dgate, dup)
    return dgate, dup


def _launch(name: str, *arrays: Array) -> None:
    x = arrays[0]
    kernel = get_kernel("silu.cu", name, x.dtype)
    kernel(blocks_for(x.size, 16 // x.itemsize), THREADS, (*arrays, np.int64(x.size)))


SWIGLU = Op("swiglu", swiglu_forward, swiglu_backward, cuda=(swiglu_forward_cuda, swiglu_backward_cuda), kernel="silu")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise, on two tensors of one shape. Saves: references to both.

    Raises: ShapeError where the shapes differ.
    """
    if gate.shape != up.shape:
        raise ShapeError(f"swiglu: gate has shape {gate.shape}, but up has shape {up.shape}; both must be the same")
    check_floating("swiglu", gate=gate, up=up)
    return SWIGLU(gate, up)
