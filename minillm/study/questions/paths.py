"""The way of a gradient from a loss to a tensor: where it ends, where part of it ends, and where it grows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minillm.autograd import Backward, Node, Tensor, grad, observe
from minillm.backend import Array
from minillm.counted import counted
from minillm.device import to_host
from minillm.study.questions.causes import Cause, cause_of_end, cause_of_growth, causes_of_part

LARGE = 10.0  # root mean square of a gradient from which on it is explained as large
GROWTH = 8.0  # factor from which on an operation counts as making a gradient large
SMALL = 1e-9  # root mean square of a gradient below which it is explained as vanishing
MOST = 3  # operations that are named as making it large or small


class Passed(NamedTuple):
    """A backward on the way: by how much it multiplies the size of the gradient, and what it does away with."""

    node: Node
    growth: float
    end: Cause | None  # nothing but zeros leave it towards the tensor
    part: list[Cause]  # some of what arrives does not leave it
    large: Cause | None


def causes_on_the_way(tensor: Tensor, loss: Tensor, nodes: list[Node]) -> tuple[list[Cause], Array | None]:
    """The findings on the way from the loss to the tensor, and the gradient; no `grad` changes."""
    passed = _Passing(tensor, nodes)
    start = np.ones_like(loss.data)
    with _left_as_it_is(nodes), observe(on_backward=passed.look):
        [gradient] = grad(loss, tensor, start, retain_graph=True, allow_unused=True)
    gradient = None if gradient is None else to_host(gradient)
    if gradient is None:
        return [Cause("no gradient passes", "an operation on the way gives no gradient to this input", "")], None
    if not gradient.any():
        ends = [one.end for one in passed.seen if one.end is not None]
        return _once(ends) or [_cancelled(tensor)], gradient
    found = [cause for one in passed.seen for cause in one.part]
    if not gradient.all():
        found += _zero_rows(gradient, found)
    else:
        found = []
    size = _norm([gradient]) / math.sqrt(gradient.size)
    if np.isfinite(gradient).all() and size >= LARGE:
        grown = sorted((one for one in passed.seen if one.growth >= GROWTH), key=lambda one: -one.growth)
        found += [one.large for one in grown[:MOST] if one.large is not None] or [_step_by_step(passed.seen, size)]
    elif 0 < size < SMALL:
        found.append(_step_by_step(passed.seen, size))
    return _once(found), gradient


def _step_by_step(seen: list[Passed], size: float) -> Cause:
    """The cause of a gradient that grows, or shrinks, over many operations."""
    grows = size > 1
    order = sorted((one for one in seen if one.growth), key=lambda one: one.growth, reverse=grows)
    most = ", ".join(f"{one.growth:.3g} times at {one.node.describe()}" for one in order[:MOST])
    return Cause(
        "grows on the way" if grows else "vanishes on the way",
        f"its size is {size:.1e} after {counted(len(order), 'operation')}, of which none alone does it; most do {most}",
        "start with smaller weights, normalise between layers, or clip gradients"
        if grows
        else "add residual connections, normalise between layers, or use functions that do not saturate",
    )


def _once(causes: list[Cause]) -> list[Cause]:
    return list(dict.fromkeys(causes))


@contextlib.contextmanager
def _left_as_it_is(nodes: list[Node]) -> Iterator[None]:
    """Keep a backward from changing what the one that follows needs: retained gradients, and logits.

    cross_entropy(overwrite=True) may write over the logits once.
    """
    before = [(node, node.saved, node.watchers) for node in nodes]
    for node in nodes:
        node.watchers = None
        if getattr(node.saved, "overwrite", False):
            node.saved = node.saved._replace(overwrite=False)
    try:
        yield
    finally:
        for node, saved, watchers in before:
            node.saved, node.watchers = saved, watchers


class _Passing:
    """Looks at every backward that runs, and keeps what happens towards a tensor."""

    def __init__(self, tensor: Tensor, nodes: list[Node]):
        self.seen: list[Passed] = []
        self.tensor = tensor
        self.towards: set[Node] = set()  # the nodes through which a gradient reaches the tensor
        for node in nodes:  # each after those that made its inputs
            if any(self._leads(edge) for edge in node.edges):
                self.towards.add(node)

    def _leads(self, edge: tuple | None) -> bool:
        if edge is None:
            return False
        target, number = edge
        if not isinstance(target, Node):
            return target is self.tensor
        return target in self.towards or (target is self.tensor.node and number == self.tensor.index)

    def look(self, call: Backward) -> None:
        """An observer of backwards."""
        places = [i for i, edge in enumerate(call.node.edges) if self._leads(edge)]
        if not places:
            return
        came = [x for x in call.douts if x is not None and x.any()]
        left = [call.dinputs[i] for i in places if call.dinputs[i] is not None]
        if not came:
            return
        if not any(x.any() for x in left):
            self.seen.append(Passed(call.node, 0.0, cause_of_end(call, places), [], None))
            return
        growth = _norm(left) / _norm(came)
        large = cause_of_growth(call, growth) if growth >= GROWTH else None
        self.seen.append(Passed(call.node, growth, None, causes_of_part(call, places), large))


def _norm(arrays: list[Array]) -> float:
    return math.sqrt(sum(float(np.square(x, dtype=np.float64).sum()) for x in arrays))


def _cancelled(tensor: Tensor) -> Cause:
    return Cause(
        "cancelled",
        "gradients reach it over several ways, and their sum is zero, as in x - x",
        "look at the ways one by one: minillm.study.graph(loss) shows them",
    )


def _zero_rows(gradient: Array, found: list[Cause]) -> list[Cause]:
    """The part of a gradient that is zero, where no operation on the way explains it."""
    if found:
        return []
    zeros = int((gradient == 0).sum())
    told = f"{zeros} of {gradient.size} elements are 0"
    rows = 0
    if gradient.ndim > 1:
        rows = int((~gradient.reshape(len(gradient), -1).any(axis=1)).sum())
        told += f", among them {rows} of {len(gradient)} rows" if rows else ""
    return [Cause("in part zero", f"{told}: the loss does not depend on them", "nothing, if they were not selected")]
