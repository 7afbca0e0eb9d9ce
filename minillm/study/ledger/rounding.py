"""Differences between two computations, and the largest that rounding explains.

Let u be the unit roundoff of a dtype: 2^-53 for float64, 2^-24 for float32. A sum of n products that is rounded after
each addition, in any order, is the exact sum of products that have each been changed by a factor 1 + t. Roundings have
either sign, so that with probability 1 - 2 exp(-l^2 / 2)

    |t| <= l sqrt(n) u                                        (Higham, Mary 2019, theorem 2.4)

A product x W^T in floating point is therefore the exact product with weights that moved by at most l sqrt(n) u of
themselves. Moved weights can be tried: let S be the difference between the outcome with every weight multiplied by
1 + d or 1 - d, at random, and the outcome itself, divided by d. S says how much this model, with these weights and on
this batch, enlarges a rounding error. It is measured in float64 with d = 2^-26, and has about eight digits then. The
last number is rounded too, so S is 1 at least.

Between two products with weights stand operations without: norms, attention, activations, sums of branches. Each rounds
as a product does, with fewer terms. If m operations come on each one that reads a weight, forward and backward, there
are 2 m roundings of this size for each weight. Two computations that should agree both round:

    difference <= 2 * 2 m * l sqrt(n) u S

n is the longest sum: the largest dimension of a weight, or the number of tokens. l is chosen for the N numbers that are
compared together: l = sqrt(2 ln(2 N)), so that one of them is expected to reach it by chance.

Source: Higham, Mary 2019, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5);
Higham 2002, "Accuracy and stability of numerical algorithms", section 3.1, for the bound n u that holds always.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.device import to_host
from minillm.study.describe.abstract_step import nodes

MOVE = 2.0**-26  # d above: the square root of the spacing of float64
MOST = 1 << 16  # numbers of an array that are compared; of a larger one that many, drawn at random

Outcome = dict[str, dict[str, Array]]  # arrays by the kind of number and by name, such as gradient, h.0.ln_1.weight


class Size(NamedTuple):
    """The numbers that a bound depends on beside the dtype: m, n and N above."""

    operations: float
    terms: int
    numbers: int


def size_of(model: Any, loss: Tensor, tokens: int) -> Size:
    """The size of a model's step, from the graph of its loss."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    graph = list(nodes(loss))
    reading = [node for node in graph if any(edge is not None and isinstance(edge[0], Tensor) for edge in node.edges)]
    longest = max(max(parameter.shape, default=1) for parameter in weights)
    return Size(len(graph) / len(reading), max(longest, tokens), sum(parameter.numel() for parameter in weights))


def bound_of(size: Size, sensitivity: float, dtype: str = "float64", steps: int = 1) -> float:
    """The largest difference that rounding in this dtype explains; each of several steps rounds anew."""
    roundoff = float(np.finfo(dtype).eps) / 2
    spread = math.sqrt(2 * math.log(2 * size.numbers))
    return steps * 4 * size.operations * spread * math.sqrt(size.terms) * roundoff * max(1.0, sensitivity)


def sensitivity_of(outcome: Callable[[Any], Outcome], model: Any, reference: Outcome) -> float:
    """S above, of the outcome of a model in float64; its weights are moved, and stay so."""
    rng = np.random.default_rng(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            signs = rng.integers(0, 2, parameter.shape, np.int8) * 2 - 1
            parameter.data *= 1 + MOVE * signs
    return compared(outcome(model), reference)[0] / MOVE


def compared(found: Outcome, expected: Outcome) -> tuple[float, str]:
    """The largest difference and where it is, each kind relative to the largest number of its kind in `expected`.

    Infinite where arrays are missing, have another size, or hold what is not finite.
    """
    worst, where = 0.0, ""
    for kind, arrays in expected.items():
        theirs = found.get(kind, {})
        if theirs.keys() != arrays.keys():
            return math.inf, f"{kind} of {', '.join(sorted(theirs.keys() ^ arrays.keys())[:3])} is there once"
        scale = max((float(np.abs(array).max(initial=0)) for array in arrays.values()), default=0.0)
        for name, array in arrays.items():
            difference = _distance(theirs[name], array, scale)
            if not difference <= worst:
                worst, where = difference, f"{kind} {name}".strip()
    return worst, where


def _distance(found: Array, expected: Array, scale: float) -> float:
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return math.inf
    difference = float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0))
    return difference / scale if scale else (math.inf if difference else 0.0)


def kept(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Copies of arrays as vectors on the host; of a large one, a part that is the same whenever it is taken."""
    return {name: _part(to_host(array).reshape(-1)) for name, array in arrays.items()}


def _part(flat: Array) -> Array:
    if flat.size <= MOST:
        return flat.copy()
    return flat[np.random.default_rng(flat.size).integers(0, flat.size, MOST)]
