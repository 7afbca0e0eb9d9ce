"""The logarithm to base 10 of a large array, in row blocks on every thread."""

from __future__ import annotations

import numpy as np

from minillm.backend import elementwise
from minillm.ops.exponential import Input
from minillm.ops.exponential import log10_backward as backward

__all__ = ["backward", "forward"]


def forward(x):
    return elementwise(np.log10, x), Input(x)
