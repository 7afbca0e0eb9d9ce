"""The product of two large arrays of one shape, in row blocks on every thread."""

from __future__ import annotations

import numpy as np

from minillm.backend import elementwise
from minillm.ops.arithmetic import Operands
from minillm.ops.operands import is_number


def forward(a, b):
    """y = a b, in their shape."""
    return elementwise(np.multiply, a, b), Operands(a, b)


def backward(dy, saved):
    """da = dy b and db = dy a."""
    a, b = saved
    da = None if is_number(a) else elementwise(np.multiply, dy, b)
    db = None if is_number(b) else elementwise(np.multiply, dy, a)
    return da, db
