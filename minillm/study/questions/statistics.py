"""The statistics of an array, in one line."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.device import to_host


class Statistics(NamedTuple):
    """The statistics of an array: those of its finite elements, and how many of its elements are not finite."""

    shape: tuple[int, ...]
    dtype: str
    mean: float
    std: float
    smallest: float
    largest: float
    rms: float  # root of the mean square
    zeros: int
    nans: int
    infinities: int

    @classmethod
    def of(cls, array: Array) -> Statistics:
        """The statistics of an array, computed in float64."""
        x: Any = to_host(array)
        shape, dtype = x.shape, x.dtype.name
        x = np.asarray(x, np.float64).reshape(-1)
        nans, infinities = int(np.isnan(x).sum()), int(np.isinf(x).sum())
        x = x[np.isfinite(x)] if nans or infinities else x
        if not x.size:
            none = float("nan")
            return cls(shape, dtype, none, none, none, none, none, 0, nans, infinities)
        scale = float(abs(x).max()) or 1.0  # so that no square overflows
        rms = scale * float(np.sqrt(np.mean((x / scale) ** 2)))
        std = scale * float((x / scale).std())
        smallest, largest = float(x.min()), float(x.max())
        return cls(shape, dtype, float(x.mean()), std, smallest, largest, rms, int((x == 0).sum()), nans, infinities)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape))

    def __str__(self) -> str:
        parts = [f"{self.shape} {self.dtype}"]
        if self.nans + self.infinities < self.size:
            parts.append(
                f"mean {self.mean:.3g}, std {self.std:.3g}, from {self.smallest:.3g} to {self.largest:.3g}"
                + (f", {self.zeros / self.size:.0%} zeros" if self.zeros else "")
            )
        parts += [f"{self.nans} NaN"] if self.nans else []
        parts += [f"{self.infinities} infinite"] if self.infinities else []
        return ", ".join(parts)
