"""A row of the table that `benchmarks/reliability.py` prints."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """What was tried, how often, and how it ended. `faults` is what must be 0."""

    tried: str  # such as "checkpoint, one bit flipped"
    count: int
    faults: int
    told: str  # what else there is to say, such as "148 refused with the array's name, 2 in padding"
