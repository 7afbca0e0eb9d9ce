"""A layered layout: boxes in rows, every arrow from a row to a lower one, few crossings, long arrows nearly straight.

After Sugiyama, Tagawa, Toda 1981, "Methods for visual understanding of hierarchical system structures": each box gets
the row below the lowest of its sources; an arrow over several rows gets a point in each; the order within a row is
improved by sweeps in which every box moves to the median of its neighbours; and then the places, row by row, are those
nearest to the neighbours that keep the order and the distance (an isotonic regression).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

GAP = 26.0  # between boxes of a row
ROW_GAP = 44.0  # between rows
POINT = 10.0  # width that an arrow takes where it passes a row
ORDER_SWEEPS, PLACE_SWEEPS = 12, 24


class Layout(NamedTuple):
    """The places of everything: the centres of boxes, and the points of arrows, from a lower edge to an upper one."""

    centres: list[tuple[float, float]]
    routes: list[list[tuple[float, float]]]
    width: float
    height: float


def lay_out(sizes: Sequence[tuple[float, float]], arrows: Sequence[tuple[int, int]]) -> Layout:
    """Places for boxes of these widths and heights, and the ways of the arrows between them; arrows make no circle."""
    rank = _ranks(len(sizes), arrows)
    ranks, widths = list(rank), [width for width, _ in sizes]
    chains: list[list[int]] = []  # of each arrow: its source, a point in each row that it passes, its target
    for source, target in arrows:
        chain = [source]
        for between in range(rank[source] + 1, rank[target]):
            chain.append(len(ranks))
            ranks.append(between)
            widths.append(POINT)
        chains.append([*chain, target])
    above: list[list[int]] = [[] for _ in ranks]
    below: list[list[int]] = [[] for _ in ranks]
    for chain in chains:
        for upper, lower in itertools.pairwise(chain):
            above[lower].append(upper)
            below[upper].append(lower)
    rows: list[list[int]] = [[] for _ in range(max(ranks, default=-1) + 1)]
    for one, row in enumerate(ranks):
        rows[row].append(one)
    rows = _ordered(rows, above, below)
    x = _placed(rows, above, below, widths, len(sizes))
    y, height = _row_places(rows, sizes)
    shift = min((x[i] - widths[i] / 2 for i in range(len(x))), default=0.0)
    x = [place - shift for place in x]
    centres = [(x[i], y[rank[i]]) for i in range(len(sizes))]
    routes = [
        [
            (x[chain[0]], y[ranks[chain[0]]] + sizes[chain[0]][1] / 2),
            *((x[i], y[ranks[i]]) for i in chain[1:-1]),
            (x[chain[-1]], y[ranks[chain[-1]]] - sizes[chain[-1]][1] / 2),
        ]
        for chain in chains
    ]
    return Layout(centres, routes, max((x[i] + widths[i] / 2 for i in range(len(x))), default=0.0), height)


def _ranks(count: int, arrows: Sequence[tuple[int, int]]) -> list[int]:
    """The row of each box: below all of its sources; one without sources stands just above its first target."""
    sources: list[list[int]] = [[] for _ in range(count)]
    targets: list[list[int]] = [[] for _ in range(count)]
    for source, target in arrows:
        sources[target].append(source)
        targets[source].append(target)
    rank, waiting = [0] * count, [len(own) for own in sources]
    ready = [i for i in range(count) if not waiting[i]]
    while ready:
        one = ready.pop()
        for target in targets[one]:
            rank[target] = max(rank[target], rank[one] + 1)
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    for one in range(count):
        if not sources[one] and targets[one]:
            rank[one] = min(rank[target] for target in targets[one]) - 1
    return rank


def _ordered(rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> list[list[int]]:
    """The rows, each in an order with few crossings: the best of some sweeps down and up."""
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    place = {one: float(i) for row in rows for i, one in enumerate(row)}
    for sweep in range(ORDER_SWEEPS):
        down = sweep % 2 == 0
        neighbours = above if down else below
        for row in rows if down else rows[::-1]:
            row.sort(key=lambda one: statistics.median([place[n] for n in neighbours[one]] or [place[one]]))
            place |= {one: float(i) for i, one in enumerate(row)}
        crossings = _crossings(rows, below)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    return best


def _crossings(rows: list[list[int]], below: list[list[int]]) -> int:
    """The number of crossings between each row and the next."""
    crossings = 0
    for upper, lower in itertools.pairwise(rows):
        place = {one: i for i, one in enumerate(lower)}
        ends: list[int] = []
        for one in upper:
            own = sorted(place[target] for target in below[one])
            crossings += sum(end > target for target in own for end in ends)
            ends += own
    return crossings


def _placed(
    rows: list[list[int]], above: list[list[int]], below: list[list[int]], widths: list[float], boxes: int
) -> list[float]:
    """The centre of each box and point along its row."""
    x = [0.0] * len(widths)
    for row in rows:
        end = 0.0
        for one in row:
            x[one], end = end + widths[one] / 2, end + widths[one] + GAP
    for sweep in range(PLACE_SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wanted, weights = [], []
            for one in row:
                near = (
                    above[one] + below[one] if sweep > PLACE_SWEEPS // 2 else (above if sweep % 2 == 0 else below)[one]
                )
                wanted.append(statistics.fmean([x[n] for n in near]) if near else x[one])
                weights.append(1.0 if one < boxes else 4.0)  # points are drawn nearer: long arrows are straight
            for one, place in zip(row, _apart(wanted, weights, [widths[one] for one in row]), strict=True):
                x[one] = place
    return x


def _apart(wanted: list[float], weights: list[float], widths: list[float]) -> list[float]:
    """The places nearest to those wanted, by weighted squares, that keep the order and the gaps."""
    offsets, offset = [], 0.0
    for i, width in enumerate(widths):
        offset += (widths[i - 1] + width) / 2 + GAP if i else 0.0
        offsets.append(offset)
    pools: list[list[float]] = []  # place, weight, number of members that stand as near to each other as they may
    for want, weight, offset in zip(wanted, weights, offsets, strict=True):
        pools.append([want - offset, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            place, own, count = pools.pop()
            before = pools[-1]
            before[0] = (before[0] * before[1] + place * own) / (before[1] + own)
            before[1] += own
            before[2] += count
    places = [place for place, _, count in pools for _ in range(int(count))]
    return [place + offset for place, offset in zip(places, offsets, strict=True)]


def _row_places(rows: list[list[int]], sizes: Sequence[tuple[float, float]]) -> tuple[list[float], float]:
    """The middle of each row, and the height of all."""
    y, top = [], 0.0
    for row in rows:
        height = max((sizes[one][1] for one in row if one < len(sizes)), default=0.0)
        y.append(top + height / 2)
        top += height + ROW_GAP
    return y, max(0.0, top - ROW_GAP)
