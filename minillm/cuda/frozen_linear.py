"""The linear layer with frozen weights on a GPU: as the linear layer, without the gradients that nobody needs."""

from __future__ import annotations

from minillm.backend import Product, as_rows, contiguous, matmuls
from minillm.cuda import linear
from minillm.ops.frozen_linear import Saved

KERNEL = linear.KERNEL


def forward(x, weight, bias):
    """y = x weight^T + bias, (..., out), for x (..., in)."""
    y, _ = linear.forward(x, weight, bias)
    return y, Saved(weight)


def backward(dy, saved):
    """dx = dy weight, (..., in); nothing for weight and bias."""
    (dx,) = matmuls(Product(contiguous(as_rows(dy)), saved.weight))
    return dx.reshape(*dy.shape[:-1], saved.weight.shape[1]), None, None
