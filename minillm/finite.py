"""Kinds of numbers that are not finite, and whether an operation made one.

An operation *makes* what its inputs do not have: NaN where no input has one, an infinity where none is infinite.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minillm.device import to_host


class Kinds(NamedTuple):
    """The kinds of numbers in some arrays that are not finite."""

    nan: bool
    infinite: bool


def kinds_of(values: Any) -> Kinds:
    """The kinds among arrays and numbers."""
    nan = infinite = False
    for value in values:
        if isinstance(value, float):
            nan, infinite = nan or math.isnan(value), infinite or math.isinf(value)
        elif hasattr(value, "dtype") and value.dtype.kind in "fV":
            array = to_host(value).astype(np.float32) if value.dtype.kind == "V" else value
            if not math.isfinite(float(array.sum())):  # one pass without an array; it may overflow, so look again
                nan, infinite = nan or bool(np.isnan(array).any()), infinite or bool(np.isinf(array).any())
    return Kinds(nan, infinite)


def made(before: Kinds, after: Kinds) -> str:
    """The name of what is new: `NaN`, `an infinity`, or nothing."""
    if after.nan and not before.nan:
        return "NaN"
    return "an infinity" if after.infinite and not (before.infinite or before.nan) else ""
