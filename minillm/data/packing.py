"""Several short examples in one row, so that no computation is spent on padding.

    row of T = 8:   ids      a0 a1 a2 | b0 b1 b2 b3 | -        three examples are a, b and padding
                    starts    0  0  0 |  3  3  3  3 | 7        where the example of each position begins
                    targets  a1 a2  . | b1 b2 b3  . | .        the last id of an example tells nothing (-100)

A model that is given `starts` computes each example as if it stood alone: attention sees the keys from the example's
start on, and positions count from there. An example already ends before its last id (instructions.py, `targets_of`),
so no target of one is the first id of the next.

Packing is best-fit decreasing: the longest example first, each into the fullest row that has room for it, or else into
a new one. A row's room is a whole number up to T, so the rows with each room are kept in a list of their own, and the
bits of one number say which of these lists are not empty: the smallest sufficient room is its lowest bit from there on.

Source: Johnson et al., "Worst-case performance bounds for simple one-dimensional packing algorithms" (1974); Ding et
al., "Fewer truncations improve language modeling" (2024, arXiv:2404.10830), for training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minillm.data.instructions import Example
from minillm.data.pairs import IGNORED
from minillm.errors import InputError


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of at most `capacity`, each the numbers of the lengths in it, which are placed from the longest on.

    Raises: InputError for a length outside 1 to `capacity`.
    """
    if len(lengths) and not 1 <= min(lengths) <= max(lengths) <= capacity:
        raise InputError(
            f"best_fit_decreasing: lengths are {min(lengths)} to {max(lengths)}; give 1 to capacity={capacity}"
        )
    rows: list[list[int]] = []
    rows_with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set where a row has room for r
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):  # equals in their order
        length = lengths[number]
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = rows_with_room[room].pop()
            rooms ^= (not rows_with_room[room]) << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(number)
        rows_with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return rows


def rows_of(groups: Sequence[Sequence[Example]], padding_id: int = 0) -> dict[str, np.ndarray]:
    """A batch: the examples of each group one behind the other in a row, as wide as the longest row needs.

    Shapes: ids, targets and starts (B, T), int64; `starts` is the position where the example of each position begins.
    Padding is an example of its own, whose targets are -100.
    """
    width = max(sum(len(example.ids) for example in group) for group in groups)
    ids = np.full((len(groups), width), padding_id, np.int64)
    targets, starts = np.full_like(ids, IGNORED), np.empty_like(ids)
    for row, group in enumerate(groups):
        start = 0
        for example in group:
            stop = start + len(example.ids)
            ids[row, start:stop], targets[row, start:stop], starts[row, start:stop] = *example, start
            start = stop
        starts[row, start:] = start
    return {"ids": ids, "targets": targets, "starts": starts}
