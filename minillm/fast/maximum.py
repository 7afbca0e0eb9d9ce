"""The larger of two large arrays of one shape, in row blocks on every thread."""

from __future__ import annotations

import numpy as np

from minillm.backend import elementwise
from minillm.ops.arithmetic import Operands
from minillm.ops.choice import maximum_backward as backward

__all__ = ["backward", "forward"]


def forward(a, b):
    return elementwise(np.maximum, a, b), Operands(a, b)
