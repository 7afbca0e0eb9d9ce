"""A residual addition and the layer norm of the sum, two steps that follow each other in pre-norm models:

    total = x + residual        y = layer_norm(total)

The sum has two ways on: it stays in the residual stream, and it is normalised. Backward, with dtotal the gradient that
reaches the sum in the stream, and through_norm the dx of layer norm (see layernorm.py):

    dx = dresidual = dtotal + through_norm

The models here call `add` and `layer_norm`, which read better. The fusion pays on a GPU, where passes over memory take
all the time: its forward reads or writes 4 arrays (..., C) in place of 5, its backward 4 in place of 6.
"""

from __future__ import annotations

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.errors import ShapeError, check_floating, check_shapes
from minillm.ops.layernorm import layernorm_backward, layernorm_forward, weight_or_ones


def add_layernorm_forward(x, residual, weight, bias, *, eps):
    total = x + residual  # (..., C)
    y, saved = layernorm_forward(total, weight, bias, eps=eps)  # (..., C)
    return (total, y), saved


def add_layernorm_backward(douts, saved):
    dtotal, dy = douts  # (..., C) each, or None for an output that no gradient reached
    if dy is None:
        return without_norm(dtotal, saved)
    through_norm, dweight, dbias = layernorm_backward(dy, saved)  # (..., C), (C,), (C,)
    dx = through_norm if dtotal is None else dtotal + through_norm  # (..., C)
    return dx, dx, dweight, dbias


def without_norm(dtotal, saved):
    """The gradients where nothing depends on the norm."""
    zeros = np.zeros_like(saved.weight)  # (C,)
    return dtotal, dtotal, zeros, zeros if saved.has_bias else None


# `aliases`: both terms of the sum get one array.
ADD_LAYERNORM = Op("add_layernorm", add_layernorm_forward, add_layernorm_backward, aliases=True)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """The sum x + residual, and the layer norm of it.

    Shapes: x and residual (..., C), weight (C,) or None for ones, bias (C,) or None; both results (..., C).
    Units: eps is in units of x squared, as in `layer_norm`.
    Saves: what `layer_norm` saves; the kernels a reference to the sum and two numbers per row.
    Raises: ShapeError where C differs, or the shapes of x and residual.
    Source: Ba, Kiros, Hinton 2016, equation 4, of the sum.
    """
    check_shapes("add_layer_norm", x=("... C", x), weight=("C", weight), bias=("C", bias))
    if x.shape != residual.shape:
        raise ShapeError(
            f"add_layer_norm: x has shape {x.shape}, but residual has shape {residual.shape}; both must be the same"
        )
    check_floating("add_layer_norm", x=x, residual=residual, weight=weight, bias=bias)
    return ADD_LAYERNORM(x, residual, weight_or_ones(weight, x), bias, eps=eps)
