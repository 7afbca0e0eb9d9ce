"""The sigmoid linear unit (Elfwing et al. 2017, arXiv:1702.03118; also called swish), alone and as a gate.

silu:    y = x s                with s = 1 / (1 + e^-x),   dy/dx = s + x s (1 - s) = s (1 + x (1 - s))
swiglu:  y = silu(gate) up      (Shazeer 2020, arXiv:2002.05202):  dgate = dy up silu'(gate),  dup = dy silu(gate)

As in ops/gelu.py, the forward keeps the slopes in the place of its inputs, and the bias of the linear layer before may
be added here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor, is_grad_enabled
from minillm.backend import Array, as_rows, contiguous, elementwise, row_blocks, sum_over_blocks
from minillm.cuda import get_kernel
from minillm.cuda.launch import THREADS, activation_backward, activation_fits, activation_forward, blocks_for
from minillm.errors import ShapeError, check_floating, check_shapes
from minillm.ops.arithmetic import logistic
from minillm.sums import column_sums, is_moderate


class Saved(NamedTuple):
    """The slope dy/dx."""

    slope: Array
    has_bias: bool


class SavedPair(NamedTuple):
    """The slopes dy/dgate and dy/dup."""

    dgate: Array
    dup: Array


class SavedByKernel(NamedTuple):
    """The inputs: x and its bias, or gate and up."""

    x: Array
    other: Array | None


def silu_forward(x, bias=None):
    out = np.empty_like(x, order="C")
    slope = np.empty_like(out, shape=None if is_grad_enabled() else 0)
    x_rows, y, slope_rows = as_rows(x), as_rows(out), as_rows(slope)

    def formula(rows):
        value_and_slope(x_rows[rows] if bias is None else x_rows[rows] + bias, y[rows], slope_rows[rows])

    row_blocks(formula, y)
    return out, Saved(slope, bias is not None)


def value_and_slope(x: Array, y: Array, slope: Array) -> None:
    """y = x s; the slope, if there is room for it, is s + y (1 - s)."""
    s = logistic(x)
    np.multiply(x, s, out=y)
    if slope.size:
        write_slope(slope, s, y)
    if not is_moderate(x):
        write_limits(x, y, slope)


def write_limits(x: Array, y: Array, slope: Array) -> None:
    """Far out, where the formulas are infinity times 0: y = x and slope 1 above, both 0 below."""
    above, below = x > 1000, x < -1000  # e^-1000 is 0 in double precision
    np.copyto(y, -0.0, where=below)
    if slope.size:
        np.copyto(slope, 1, where=above)
        np.copyto(slope, 0, where=below)


def write_slope(slope: Array, s: Array, y: Array) -> None:
    """s + y (1 - s)."""
    np.subtract(1, s, out=slope)
    slope *= y
    slope += s


def silu_backward(dout, saved):
    slope, has_bias = saved
    dx = np.empty_like(slope)
    dy, slope_rows, dx_rows = as_rows(dout), as_rows(slope), as_rows(dx)

    def formula(rows):
        np.multiply(dy[rows], slope_rows[rows], out=dx_rows[rows])
        return (column_sums(dx_rows[rows]),) if has_bias else ()

    sums = sum_over_blocks(formula, dy)
    return dx, sums[0] if has_bias else None


def silu_forward_cuda(x, bias=None):
    if not activation_fits(x, bias):
        return NotImplemented
    x, bias = contiguous(x), None if bias is None else contiguous(bias)
    return activation_forward("silu.cu", "Silu", x, bias), SavedByKernel(x, bias)


def silu_backward_cuda(dout, saved):
    return activation_backward("silu.cu", "Silu", contiguous(dout), *saved)


SILU = Op("silu", silu_forward, silu_backward, cuda=(silu_forward_cuda, silu_backward_cuda))


def silu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """x / (1 + e^-x), elementwise; with a bias (C,), that of x + bias, for x (..., C).

    Saves: the slope, an array like x; on a GPU, references to x and bias. Raises: ShapeError where C differs.
    """
    if bias is not None:
        check_shapes("silu", x=("... C", x), bias=("C", bias))
    check_floating("silu", x=x, bias=bias)
    return SILU(x, bias)


def swiglu_forward(gate, up):
    out = np.empty_like(gate, order="C", dtype=np.promote_types(gate.dtype, up.dtype))
    dgate, dup = (np.empty_like(out, shape=None if is_grad_enabled() else 0) for _ in range(2))
    arrays = [as_rows(array) for array in (gate, up, out, dgate, dup)]

    def formula(rows):
        gate, up, y, dgate, dup = (array[rows] for array in arrays)
        activated = dup if dup.size else y
        value_and_slope(gate, activated, dgate)
        np.multiply(activated, up, out=y)
        if dgate.size:
            dgate *= up

    row_blocks(formula, arrays[2])
    return out, SavedPair(dgate, dup)


def swiglu_backward(dout, saved):
    return elementwise(np.multiply, dout, saved.dgate), elementwise(np.multiply, dout, saved.dup)


def swiglu_forward_cuda(gate, up):
    if gate.size == 0 or gate.dtype != up.dtype:
        return NotImplemented
    gate, up = contiguous(gate), contiguous(up)
    out = np.empty_like(gate)
    _launch("swiglu_forward", gate, up, out)
    return out, SavedByKernel(gate, up)


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
    """silu(gate) * up, elementwise, on two tensors of one shape. Saves: two arrays like them; on a GPU, references.

    Raises: ShapeError where the shapes differ.
    """
    if gate.shape != up.shape:
        raise ShapeError(f"swiglu: gate has shape {gate.shape}, but up has shape {up.shape}; both must be the same")
    check_floating("swiglu", gate=gate, up=up)
    return SWIGLU(gate, up)
