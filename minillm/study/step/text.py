"""Arrays and reasons as lines of text, for the terminal and for reports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from minillm.study.step.records import Sent, Stop

NUMBERS = 200  # of a small array, which are all shown


def array_text(name: str, array: Any) -> str:
    """An array in one line: its name, shape, dtype and statistics."""
    if array is None:
        return f"{name}  left out because it is large, or not there"
    array = np.asarray(array)
    head = f"{name}  {array.shape} {array.dtype}"
    if array.size == 0:
        return head
    if array.size == 1:
        return f"{head}  {array.item()!r}"
    if array.dtype.kind == "b":
        return f"{head}  {int(array.sum())} of {array.size} True"
    if array.dtype.kind not in "fiu":
        return head
    finite = array[np.isfinite(array)].astype(np.float64)
    rest = array.size - finite.size
    if not finite.size:
        return f"{head}  no finite number"
    text = f"{head}  mean {finite.mean():.3g}, std {finite.std():.3g}, from {finite.min():.3g} to {finite.max():.3g}"
    nans = int(np.isnan(array).sum())
    return text + (f", {nans} NaN" if nans else "") + (f", {rest - nans} infinite" if rest > nans else "")


def array_lines(name: str, array: Any) -> list[str]:
    """An array with its numbers, the middle of a large one left out."""
    numbers = np.array2string(np.asarray(array), precision=5, threshold=NUMBERS, edgeitems=3, max_line_width=110)
    return [array_text(name, array), *numbers.splitlines()]


def norm(array: Any) -> float:
    """The Euclidean norm, in float64; NaN for an array that was left out."""
    return float("nan") if array is None else float(np.linalg.norm(np.asarray(array, np.float64)))


def sender(sent: Sent, stops: Iterable[Stop]) -> str:
    """The stop that sent a gradient, in words."""
    if sent.stop is None:
        return "the start of the walk, dL/dL"
    found = next((stop for stop in stops if stop.index == sent.stop), None)
    place = "" if found is None else f"{found.op}" + (f" in {found.scope}" if found.scope else "")
    at = f" at {found.where}" if found is not None and found.where else ""
    return f"[{sent.stop}] {place}{at}, its {sent.name}"


def why_lines(stop: Stop, stops: Iterable[Stop]) -> list[str]:
    """The reason why a stop comes now: for a backward, what it waited for."""
    if stop.kind not in ("backward", "update"):
        return [f"{stop.title}: the model calls it here; only a backward and an update wait for gradients"]
    stops = list(stops)
    lines = []
    for value, sent in zip(stop.inputs, stop.waited, strict=True):
        name = value.name
        if not sent:
            lines.append(f"{name}: no gradient arrived")
            continue
        many = f"the sum of {len(sent)} gradients" if len(sent) > 1 else "one gradient"
        lines.append(f"{name} is {many}; its consumers have all run:")
        for one in sent:
            shape = "left out" if one.array is None else f"{one.array.shape}"
            lines.append(f"    from {sender(one, stops)}  {shape}, norm {norm(one.array):.6g}")
        if len(sent) > 1:
            lines.append(f"    sum {name}, norm {norm(value.array):.6g}")
    return lines
