"""The residual stream of a trace: what each part of the model adds to it, forwards and backwards.

A sum of two arrays (B, T, C) of the model's width is a place where a branch joins the stream: x + attention(norm(x)).
The stream is the operand that was there first. Backwards, the gradient of x is the sum of what came along the stream
and of what came through the branch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.study.step.records import Sent, StepTrace, Stop, Value
from minillm.study.step.text import norm


class Contribution(NamedTuple):
    """The part that one branch adds to the residual stream; all numbers are Euclidean norms."""

    stop: int  # the forward that adds
    scope: str  # the part of the model that computed the branch: h.0.attn
    stream: float  # of x before
    branch: float  # of what is added
    total: float  # of the sum
    gradient: float  # of dL/d(sum), which goes to the branch as it is
    along: float  # of the gradient that comes to x along the stream
    through: float  # of the gradient that comes to x through the branch


def residual_stream(trace: StepTrace) -> list[Contribution]:
    """Every branch that joins the residual stream, in the order of the forward."""
    found = []
    for stop in trace.of_kind("forward"):
        if not _joins(trace, stop):
            continue
        stream, branch = sorted(stop.inputs, key=lambda value: value.stop or 0)
        backward = trace.stops[stop.partner] if stop.partner is not None else None
        sent = _sent_to(trace, stream)
        along = [one for one in sent if backward is not None and one.stop == backward.index]
        found.append(
            Contribution(
                stop.index,
                _scope_of(trace, stop, branch),
                norm(stream.array),
                norm(branch.array),
                norm(stop.outputs[0].array),
                norm(backward.inputs[0].array) if backward is not None else 0.0,
                _norm_of_sum(along),
                _norm_of_sum([one for one in sent if one not in along]),
            )
        )
    return found


def _joins(trace: StepTrace, stop: Stop) -> bool:
    """True for a sum of two arrays of the model's width that operations made."""
    if stop.op != "add" or len({value.shape for value in stop.inputs}) != 1:
        return False
    shape = stop.inputs[0].shape or ()
    made = all(value.stop is not None for value in stop.inputs)
    width = next((one.outputs[0].shape for one in trace.of_kind("forward") if one.op == "embedding"), None)
    return made and len(shape) == 3 and width is not None and shape[-1] == width[-1]


def _sent_to(trace: StepTrace, value: Value) -> list[Sent]:
    """The gradients that reached the output that this input came from."""
    maker = trace.stops[value.stop] if value.stop is not None else None
    if maker is None or maker.partner is None:
        return []
    return trace.stops[maker.partner].waited[value.output]


def _norm_of_sum(sent: list[Sent]) -> float:
    arrays = [np.asarray(one.array, np.float64) for one in sent if one.array is not None]
    return norm(sum(arrays[1:], arrays[0])) if arrays else 0.0


def _scope_of(trace: StepTrace, stop: Stop, branch: Value) -> str:
    """The module directly below that of the sum in which the branch was computed: h.0.attn of h.0.attn.proj."""
    maker = branch.stop
    while (
        maker is not None and trace.stops[maker].scope == stop.scope and trace.stops[maker].inputs[0].stop is not None
    ):
        maker = trace.stops[maker].inputs[0].stop  # a dropout, or an axis that was stretched
    scope = trace.stops[maker].scope if maker is not None else ""
    depth = len(stop.scope.split(".")) if stop.scope else 0
    return ".".join(scope.split(".")[: depth + 1])
