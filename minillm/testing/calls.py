"""Check that repeated calls give the same gradients, and change nothing else."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.testing.audit import GradientError, InfiniteSlope, WrongShape
from minillm.testing.measure import largest
from minillm.testing.subject import Buffered, Gradients, Graph, Skipped, Subject, nearly_equal


class Base(NamedTuple):
    """The given arguments, a graph built from them, and the first gradients."""

    subject: Subject
    graph: Graph
    gradients: Gradients


class Tried(NamedTuple):
    """The variants that were checked, and those that were skipped, with the reason."""

    checked: list[str]
    skipped: list[str]


def check_repeats(subject: Subject) -> Base:
    """Check that three backwards through one graph and one through a second agree, and change nothing else."""
    graph = Graph(subject)
    if subject.name == "fn" and graph.outs[0].node is not None:
        subject.name = f"fn (ending in {graph.outs[0].node.op.name})"
    before = [np.array(x) if isinstance(x, np.ndarray) else None for x in subject.values]
    returned = graph.gradients(subject.cotangent)
    first = {i: None if g is None else g.copy() for i, g in returned.items()}
    base = Base(subject, graph, first)
    subject.usual.update({i: largest(g) for i, g in first.items() if g is not None})
    _check_unchanged(subject, before, "backward")
    for call in ("second", "third"):
        again = graph.gradients(subject.cotangent)
        _check_unchanged(subject, before, "backward")
        for i, gradient in again.items():
            _compare_again(base, i, gradient, f"a {call} backward through the same graph")
            _check_sharing(subject, i, again)
    for i, gradient in returned.items():
        kept = first[i]
        if gradient is not None and kept is not None and not np.array_equal(gradient, kept, equal_nan=True):
            raise GradientError(
                f"check_gradients: the gradient of {subject.describe(i)} changed after it was returned: a later "
                "backward writes into the same memory; return a new array"
            )
    for i, gradient in Graph(subject).gradients(subject.cotangent).items():
        _compare_again(base, i, gradient, "a second forward and backward")
    return base


def check_adding(base: Base) -> None:
    """Check that a backward adds to an existing gradient, and overwrites memory without one."""
    subject, graph, first = base
    try:
        totals = graph.gradients(subject.cotangent, add=True)
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise GradientError(
            f"check_gradients: a gradient of {subject.name} cannot be added to, because it shares memory with dout; "
            "copy it, or declare the Op with aliases=True"
        ) from error
    for i, total in totals.items():
        if total is not None:
            _compare_again(base, i, total - first[i], "a backward that adds to the gradient of the one before")
    if any(op.writes_into for op in graph.ops):
        for i, gradient in Graph(subject, leaf=Buffered).gradients(subject.cotangent).items():
            _compare_again(base, i, gradient, "a backward into the memory that an optimiser keeps")


def _check_unchanged(subject: Subject, before: list[Any], what: str) -> None:
    """Check that no argument has changed."""
    for i, (x, kept) in enumerate(zip(subject.values, before, strict=True)):
        if isinstance(kept, np.ndarray) and not np.array_equal(x, kept):
            raise GradientError(f"check_gradients: {subject.describe(i)} was changed by the {what}")


def _compare_again(base: Base, position: int, gradient: Array | None, what: str) -> None:
    """Check that a gradient is the first one again, up to the last digits."""
    first, subject = base.gradients[position], base.subject
    if first is None or gradient is None or nearly_equal(first, gradient, subject.rounding(step=1)):
        return
    raise GradientError(
        f"check_gradients: {what} gave {subject.describe(position)} another gradient; {_reason(subject, what)}"
    )


def _reason(subject: Subject, what: str) -> str:
    """The reason of a changed gradient: if the backward writes into saved arrays, which a new graph shows."""
    if "adds to" in what:
        return "where a gradient is there already (Into.add), the backward must add to it, once"
    if "memory" in what:
        return "where Into.add is false, the array holds nothing: the backward must overwrite all of it"
    graph = Graph(subject, strict=False)
    kept = [[array.copy() for array in arrays] for arrays in graph.saved()]
    graph.gradients(subject.cotangent)
    for old, new in zip(kept, graph.saved(), strict=True):
        if any(not np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(old, new, strict=True)):
            return "a backward writes into what its forward saved"
    return "the forward or the backward keeps state from call to call, or draws random numbers"


def _check_sharing(subject: Subject, position: int, gradients: Gradients) -> None:
    """Check that a gradient shares no memory with its argument or with another gradient."""
    gradient = gradients[position]
    others = [(position, subject.values[position]), *((j, g) for j, g in gradients.items() if j != position)]
    for other, array in others:
        if gradient is not None and array is not None and np.shares_memory(gradient, array):
            raise GradientError(
                f"check_gradients: the gradient of {subject.describe(position)} shares memory with "
                + ("the argument itself" if other == position else f"the gradient of {subject.describe(other)}")
            )


def check_state(base: Base) -> None:
    """Check that the gradient stays the same after many other calls, and with another forward in between."""
    subject = base.subject
    graph = Graph(subject, strict=False)
    with contextlib.suppress(Skipped):
        subject.at([np.asarray(x / 2) if i in subject.moved else x for i, x in enumerate(subject.values)])
    for i, gradient in graph.gradients(subject.cotangent).items():
        _compare_again(base, i, gradient, "a backward after a forward of other values")


def raise_state(subject: Subject, position: int, variant: str) -> None:
    """Raise the error for a gradient that changes when it is computed again."""
    raise GradientError(
        f"check_gradients: {subject.describe(position)} gets another gradient when called again with {variant}; "
        "the forward or the backward keeps state from call to call, or draws random numbers"
    )


def run_backward(base: Base, variant: str, graph: Graph, cotangent: Array, **options) -> Gradients:
    """Run a backward; an exception in it names the variant."""
    try:
        return graph.gradients(cotangent, **options)
    except WrongShape as error:
        error.subject = graph.subject
        error.add_note(f"check_gradients: with {variant}")
        raise
    except InfiniteSlope as error:
        raise Skipped(str(error)) from error
    except Exception as error:
        check_state(base)
        error.add_note(f"check_gradients: with {variant}; the function itself is defined there")
        raise
