"""The cosine of a large array, in row blocks on every thread."""

from __future__ import annotations

import numpy as np

from minillm.backend import elementwise
from minillm.ops.exponential import Input
from minillm.ops.trigonometry import cos_backward as backward

__all__ = ["backward", "forward"]


def forward(x):
    return elementwise(np.cos, x), Input(x)
