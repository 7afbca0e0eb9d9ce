"""The low-rank update on a CPU: its product is added in place, and so are the gradients of A and B."""

from __future__ import annotations

import numpy as np

from minillm.backend import Product, as_rows, matmuls
from minillm.ops.add_low_rank import Saved, channels_of


def forward(y, x, a, b, *, scale, start, overwrite):
    """z = y + scale x a^T b^T, (..., C)."""
    x_rows = as_rows(x)  # (rows, in)
    (h,) = matmuls(Product(x_rows, a.T))  # (rows, r)
    h *= scale
    z = y if overwrite and y.flags.c_contiguous else y.copy()
    matmuls(Product(h, b.T, as_rows(z)[:, channels_of(b, start)], add=True))
    return z, Saved(x, a, b, h, scale, start)


def backward(dz, saved, into=(None, None, None, None)):
    """dy, dx (..., in), da (r, in) and db (out, r)."""
    x, a, b, h, scale, start = saved
    dy = dz
    x_rows, dz_rows = as_rows(x), as_rows(dz)[:, channels_of(b, start)]  # (rows, in), (rows, out)
    g, db = matmuls(Product(dz_rows, b), Product(dz_rows.T, h, *(into[3] or ())))  # (rows, r), (out, r)
    np.multiply(g, scale, out=g)
    dx, da = matmuls(Product(g, a), Product(g.T, x_rows, *(into[2] or ())))  # (rows, in), (r, in)
    return dy, dx.reshape(x.shape), da, db
