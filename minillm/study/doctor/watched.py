"""The findings in watch.jsonl about the layers of a run, where `minillm train --watch` has written one.

A line has, for each layer, the size of its output (activation), the share of zeros in it, the size of the gradient of
the output, and the update of its weights over the weights (ratio). Medians over the later half of the lines count,
since sizes settle in the first. The limits are those of training/watch.py, which says the same in a run's last lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from minillm.counted import counted
from minillm.study.doctor.finding import Finding
from minillm.study.doctor.history import History, read_lines
from minillm.training.watch import DEAD, FAST, FLAT, HUGE, SLOW

SEE = "watch.png and watch.jsonl"


def layers(history: History) -> Iterator[Finding]:
    """Find layers whose weights jump or stand still, whose gradient vanishes, whose output is huge or zero."""
    path = history.folder / "watch.jsonl" if history.folder else None
    lines = read_lines(path) if path is not None and path.is_file() else []
    later = lines[len(lines) // 2 :]
    if later:
        yield from _updates(medians(later, "ratio"), history.settings.get("lr"))
        yield from _gradients(medians(later, "gradient"))
        yield from _outputs(medians(later, "activation"), medians(later, "zeros"))


def _warning(name: str, cause: str, remedy: str) -> Finding:
    return Finding("warning", name, cause, remedy, SEE)


def _updates(ratios: dict[str, float], lr: float | None) -> Iterator[Finding]:
    """Find weights that jump or stand still, by the update over the weights of each layer."""
    fast = [name for name in ratios if ratios[name] > FAST]
    slow = [name for name in ratios if ratios[name] < SLOW]
    if fast:
        worst = max(fast, key=lambda name: ratios[name])
        yield _warning(
            "large-updates",
            f"a step moves the weights of {worst} by {ratios[worst]:.0%} of their size ({counted(len(fast), 'layer')} "
            f"by more than {FAST:.0%}), where 0.1% is usual",
            f"give a lower --lr (now {lr})",
        )
    if slow:
        yield _warning(
            "no-updates",
            f"a step moves the weights of {slow[0]} by {ratios[slow[0]]:.1e} of their size "
            f"({counted(len(slow), 'layer')} by less than {SLOW:g}): they do not learn",
            "give a higher --lr, and look if a gradient reaches them",
        )


def _gradients(sizes: dict[str, float]) -> Iterator[Finding]:
    """Find a gradient that is far smaller in one block than in another, by its size in each layer."""
    largest: dict[str, float] = {}  # by the name of the layer without the number of its block
    for name, size in sizes.items():
        largest[_kind(name)] = max(size, largest.get(_kind(name), 0.0))
    flat = [name for name, size in sizes.items() if size < FLAT * largest[_kind(name)]]
    if flat:
        yield _warning(
            "vanishing-gradients",
            f"the gradient of the output of {flat[0]} is {sizes[flat[0]] / largest[_kind(flat[0])]:.1e} of that in "
            f"another block ({counted(len(flat), 'layer')}): it vanishes on its way",
            "check the residual connections and the normalisation, and look for saturated units",
        )


def _outputs(sizes: dict[str, float], zeros: dict[str, float]) -> Iterator[Finding]:
    """Find the first layer whose output is huge, and the first that gives hardly anything but zeros."""
    huge = next((name for name, size in sizes.items() if size > HUGE), None)
    dead = next((name for name, share in zeros.items() if share > DEAD), None)
    if huge is not None:
        yield _warning(
            "huge-output",
            f"the output of {huge} has the size {sizes[huge]:.1e}, where 0.01 to 100 is usual",
            "give a lower --lr, or normalise what comes in",
        )
    if dead is not None:
        yield _warning(
            "dead-units",
            f"{zeros[dead]:.0%} of the output of {dead} are zeros, which no gradient passes",
            "give a lower --lr, or take GELU in place of ReLU",
        )


def medians(lines: list[dict], field: str) -> dict[str, float]:
    """The median of a field of each layer."""
    values: dict[str, list[float]] = {}
    for line in lines:
        for name, layer in line.get("layers", {}).items():
            if layer.get(field) is not None:
                values.setdefault(name, []).append(layer[field])
    return {name: float(np.median(numbers)) for name, numbers in values.items()}


def _kind(name: str) -> str:
    return re.sub(r"\d+", "*", name)
