"""The linear layer y = x weight^T + bias with a frozen weight and a frozen bias, such as that under an adapter.

Only x gets a gradient, by the first of the rules in ops/linear.py, which needs no x:

    dX = dY weight     (N, in)

So x is not kept, and half of the backward's work is left out. `ops.linear` calls this operation where neither weight
nor bias needs a gradient.
"""

from __future__ import annotations

from typing import NamedTuple

from minillm.autograd import Op
from minillm.backend import Array, matmul


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    weight: Array  # (out, in)


def frozen_linear_forward(x, weight, bias):
    y = matmul(x, weight.T)  # (..., out)
    if bias is not None:
        y = y + bias  # (..., out)
    return y, Saved(weight)


def frozen_linear_backward(dy, saved):
    dx = matmul(dy, saved.weight)  # (..., in)
    return dx, None, None


FROZEN_LINEAR = Op("frozen_linear", frozen_linear_forward, frozen_linear_backward)
