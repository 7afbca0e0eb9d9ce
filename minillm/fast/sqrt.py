"""The square root of a large array, in row blocks on every thread."""

from __future__ import annotations

import numpy as np

from minillm.backend import elementwise
from minillm.ops.power import Output
from minillm.ops.power import sqrt_backward as backward

__all__ = ["backward", "forward"]


def forward(x):
    y = elementwise(np.sqrt, x)
    return y, Output(y)
