"""What the tests of the page share: tokens, a wrong backward, and the places of lines in a trace."""

from __future__ import annotations

from minillm.ops.silu import silu_backward
from minillm.study.step.trace import StepTrace, Stop

TOKENS = {"ids": [["The", " cat", "<b>", "\n", "</script>", "ü"], ["a", " ", "", "&amp;", "'", '"']]}


def wrong_swiglu(dy, saved):
    saved_gate, h, up = saved
    dup = 1.5 * dy * h
    dh = dy * up
    (dgate,) = silu_backward(dh, saved_gate)
    return dgate, dup


def stop_of(trace: StepTrace, kind: str, op: str, scope: str = "") -> Stop:
    """The first stop of a kind and an operation whose module begins with this."""
    return next(stop for stop in trace.of_kind(kind) if stop.op == op and stop.scope.startswith(scope))


def line_of(stop: Stop, name: str) -> int:
    """The number of the last line that makes an array of this name."""
    return max(i for i, line in enumerate(stop.lines) if name in line.made and line.depth == 0)


def place_of(trace: StepTrace, kind: str, op: str, name: str, scope: str = "") -> tuple[Stop, int]:
    """The first stop of a kind and an operation, and its last line that makes an array of this name."""
    stop = stop_of(trace, kind, op, scope)
    return stop, line_of(stop, name)
