"""GELU after a linear layer's bias, as one operation: y = gelu(x + bias), where x = input W^T is made without a bias.

    z = x + bias
    y = gelu(z)             with cdf and pdf as in ops/gelu.py

Backward, line by line from the end:

    y = gelu(z)             dz = dy (cdf + z pdf)
    z = x + bias            dx = dz            dbias = sum over the rows of dz

The models here call `linear` with its bias and then `gelu`, which read better. The fusion pays on a GPU, where passes
over memory take all the time: x is read once and y written once. A bias of its own reads and writes an array of that
size before, and its backward reads dz once more to add up dbias.
"""

from __future__ import annotations

from minillm.autograd import Op, Tensor
from minillm.errors import check_floating, check_shapes
from minillm.ops.gelu import check_form, gelu_backward, gelu_forward


def bias_gelu_forward(x, bias, *, approximate):
    z = x + bias  # (..., C)
    y, saved = gelu_forward(z, approximate=approximate)  # (..., C)
    return y, saved


def bias_gelu_backward(dy, saved):
    (dz,) = gelu_backward(dy, saved)  # (..., C)
    dx = dz  # (..., C)
    rows = tuple(range(dz.ndim - 1))  # every axis but the channels
    dbias = dz.sum(axis=rows)  # (C,)
    return dx, dbias


BIAS_GELU = Op("bias_gelu", bias_gelu_forward, bias_gelu_backward)


def bias_gelu(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    """gelu(x + bias), where the bias is that of the linear layer that made x without it.

    Shapes: x (..., C), bias (C,); result (..., C).
    Saves: the slope dy/dz, an array like x; on a GPU, references to x and bias; by the plain formula, z and cdf.
    Raises: ShapeError where C differs; InputError for another form; DtypeError where one is not floating.
    Source: Hendrycks, Gimpel 2016, section 2.
    """
    check_form("bias_gelu", approximate)
    check_shapes("bias_gelu", x=("... C", x), bias=("C", bias))
    check_floating("bias_gelu", x=x, bias=bias)
    return BIAS_GELU(x, bias, approximate=approximate)
