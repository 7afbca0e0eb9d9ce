"""The stops of a trace whose arrays have an axis with an element for each token of the vocabulary.

These are the lookups in the table of tokens (V, C) and its updates; and what leads to the loss from the product that
makes logits (..., V) on. The same number of elements elsewhere, such as that of an MLP's units, means nothing.
"""

from __future__ import annotations

from minillm.study.step.records import ParameterStop, StepTrace, Stop

LOSSES = ("cross_entropy", "vocabulary_cross_entropy", "log_softmax")
PRODUCTS = ("linear", "frozen_linear", "matmul")


def vocabulary_stops(trace: StepTrace) -> dict[int, int]:
    """The size of the vocabulary for each of these stops, by its index."""
    lookups = [stop for stop in trace.of_kind("forward") if stop.op == "embedding"]
    tables = {
        stop.inputs[0].parameter: (stop.inputs[0].shape or (0,))[0]
        for stop in lookups
        if stop.inputs[1].data in trace.tokens
    }
    if not tables:
        return {}
    size = max(tables.values())
    found = {stop.index for stop in lookups if stop.inputs[0].parameter in tables}
    parameters = set(tables)
    waiting = [stop for stop in trace.of_kind("forward") if stop.op in LOSSES and _is_along(stop, size)]
    while waiting:
        stop = waiting.pop()
        if stop.index in found:
            continue
        found.add(stop.index)
        if stop.op in PRODUCTS:
            parameters |= {value.parameter for value in stop.inputs if (value.shape or (0,))[0] == size}
        else:
            makers = [value.stop for value in stop.inputs if (value.shape or (0,))[-1:] == (size,)]
            waiting += [trace.stops[maker] for maker in makers if maker is not None]
    halves = {half for index in found if (half := trace.stops[index].partner) is not None}
    updates = {stop.index for stop in trace.stops if isinstance(stop, ParameterStop) and stop.scope in parameters}
    return dict.fromkeys(sorted(found | halves | updates), size)


def _is_along(stop: Stop, size: int) -> bool:
    """True if the first input of a stop has the vocabulary as its last axis."""
    return (stop.inputs[0].shape or (0,))[-1] == size
