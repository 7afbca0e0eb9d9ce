"""Softmax and its logarithm, over the last axis or any other.

Forward: p_i = e^(x_i) / sum_j e^(x_j). Subtracting max(x) from x changes nothing in the ratio and keeps e^x finite.

Backward. dp_i/dx_j = p_i (1[i=j] - p_j), so with dp the gradient that came in

    dx_j = sum_i dp_i p_i (1[i=j] - p_j) = p_j (dp_j - sum_i dp_i p_i)

and for l = log p:  dl_i/dx_j = 1[i=j] - p_j, so  dx_j = dl_j - p_j sum_i dl_i.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm import backend
from minillm.autograd import Op, Tensor
from minillm.backend import Array, as_rows
from minillm.cuda import WARP, get_kernel
from minillm.errors import ShapeError, check_floating
from minillm.ops.reduce import choose_axis
from minillm.sums import row_sums, vecdot


class Saved(NamedTuple):
    """The output: probabilities, or their logarithms."""

    out: Array
    axis: int


def softmax_forward(x, *, axis):
    if axis != x.ndim - 1:
        out, _ = softmax_forward(np.moveaxis(x, axis, -1), axis=x.ndim - 1)
        out = np.moveaxis(out, -1, axis)
        return out, Saved(out, axis)
    out = np.empty_like(x, order="C")
    x_rows, p = as_rows(x), as_rows(out)

    def formula(rows):
        np.subtract(x_rows[rows], backend.row_max(x_rows[rows]), out=p[rows])
        np.exp(p[rows], out=p[rows])
        p[rows] /= row_sums(p[rows])

    backend.row_blocks(formula, p)
    return out, Saved(out, axis)


def softmax_backward(dout, saved):
    p, axis = saved
    if axis != p.ndim - 1:
        (dx,) = softmax_backward(np.moveaxis(dout, axis, -1), Saved(np.moveaxis(p, axis, -1), p.ndim - 1))
        return (np.moveaxis(dx, -1, axis),)
    dx = np.empty_like(p, order="C")
    dp, p, dx_rows = as_rows(dout), as_rows(p), as_rows(dx)

    def formula(rows):
        dot = vecdot(dp[rows], p[rows])[:, None]
        np.subtract(dp[rows], dot, out=dx_rows[rows])
        dx_rows[rows] *= p[rows]

    backend.row_blocks(formula, p)
    return (dx,)


def softmax_forward_cuda(x, *, axis):
    if x.size == 0:
        return NotImplemented
    out = _launch("softmax_forward", axis, x)
    return out, Saved(out, axis)


def softmax_backward_cuda(dout, saved):
    return (_launch("softmax_backward", saved.axis, dout, saved.out),)


def _launch(name: str, axis: int, *arrays: Array) -> Array:
    """A block for each row along `axis`, with a thread for every 16 bytes of it, as kernels/softmax.cu recommends."""
    arrays = tuple(backend.contiguous(np.moveaxis(array, axis, -1)) for array in arrays)
    out = np.empty_like(arrays[0])
    rows, columns = as_rows(out).shape
    threads = min(512, -(-columns * out.itemsize // 512) * WARP)
    kernel = get_kernel("softmax.cu", name, out.dtype)
    kernel(min(rows, 1 << 20), threads, (*arrays, out, np.int64(rows), np.int32(columns)))
    return np.moveaxis(out, -1, axis)


SOFTMAX = Op("softmax", softmax_forward, softmax_backward, cuda=(softmax_forward_cuda, softmax_backward_cuda))


def softmax(x: Tensor, axis: int | None = None, *, dim: int | None = None) -> Tensor:
    """p_i = e^(x_i) / sum_j e^(x_j) along one axis (default the last).

    Saves: p. Raises: ShapeError for an axis of size 0.
    """
    return SOFTMAX(x, axis=_checked_axis("softmax", x, axis, dim))


def log_softmax_forward(x, *, axis):
    if axis != x.ndim - 1:
        out, _ = log_softmax_forward(np.moveaxis(x, axis, -1), axis=x.ndim - 1)
        out = np.moveaxis(out, -1, axis)
        return out, Saved(out, axis)
    out = np.empty_like(x, order="C")
    x_rows, log_p = as_rows(x), as_rows(out)

    def formula(rows):
        np.subtract(x_rows[rows], backend.row_max(x_rows[rows]), out=log_p[rows])
        log_p[rows] -= np.log(row_sums(np.exp(log_p[rows])))

    backend.row_blocks(formula, log_p)
    return out, Saved(out, axis)


def log_softmax_backward(dout, saved):
    log_p, axis = saved
    if axis != log_p.ndim - 1:
        (dx,) = log_softmax_backward(np.moveaxis(dout, axis, -1), Saved(np.moveaxis(log_p, axis, -1), log_p.ndim - 1))
        return (np.moveaxis(dx, -1, axis),)
    dx = np.empty_like(log_p, order="C")
    dlog_p, log_p, dx_rows = as_rows(dout), as_rows(log_p), as_rows(dx)

    def formula(rows):
        p = np.exp(log_p[rows], out=dx_rows[rows])
        p *= row_sums(dlog_p[rows])
        np.subtract(dlog_p[rows], p, out=p)

    backend.row_blocks(formula, dx_rows)
    return (dx,)


def log_softmax_forward_cuda(x, *, axis):
    if x.size == 0:
        return NotImplemented
    out = _launch("log_softmax_forward", axis, x)
    return out, Saved(out, axis)


def log_softmax_backward_cuda(dout, saved):
    return (_launch("log_softmax_backward", saved.axis, dout, saved.out),)


LOG_SOFTMAX = Op(
    "log_softmax",
    log_softmax_forward,
    log_softmax_backward,
    cuda=(log_softmax_forward_cuda, log_softmax_backward_cuda),
    kernel="softmax",
)


def log_softmax(x: Tensor, axis: int | None = None, *, dim: int | None = None) -> Tensor:
    """log p_i = x_i - log sum_j e^(x_j) along one axis (default the last), without ever taking the log of a small p.

    Saves: log p. Raises: ShapeError for an axis of size 0.
    """
    return LOG_SOFTMAX(x, axis=_checked_axis("log_softmax", x, axis, dim))


def _checked_axis(function: str, x: Tensor, axis: int | None, dim: int | None) -> int:
    check_floating(function, x=x)
    chosen = choose_axis(function, -1 if axis is None and dim is None else axis, dim, x.ndim)
    if not isinstance(chosen, (int, np.integer)):
        raise ShapeError(f"{function}: axis is {chosen!r}; give one whole number")
    place = int(chosen) % x.ndim
    if x.shape[place] == 0:
        raise ShapeError(f"{function}: axis {place} of shape {x.shape} has size 0; it needs at least one class")
    return place
