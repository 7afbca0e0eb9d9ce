"""Slices along one axis on a CPU: the backward sorts the index, so that the slices of one place are summed at once."""

from __future__ import annotations

import math

import numpy as np

from minillm.ops.index_select import index_select_forward as forward
from minillm.sums import add_rows

__all__ = ["backward", "forward"]


def backward(dy, saved):
    """dx: at each place of the axis the sum of the slices of dy that were taken from it."""
    shape, index, axis = saved
    # With the axis in front, the rows of dy that came from row i of x are summed into row i of dx.
    rows = np.moveaxis(dy, range(axis, axis + index.ndim), range(index.ndim))
    others = shape[:axis] + shape[axis + 1 :]
    dx_rows = np.zeros_like(dy, shape=(shape[axis], math.prod(others)), order="C")
    add_rows(dx_rows, index.reshape(-1), rows.reshape(index.size, dx_rows.shape[1]))
    return (np.moveaxis(dx_rows.reshape(shape[axis], *others), 0, axis),)
