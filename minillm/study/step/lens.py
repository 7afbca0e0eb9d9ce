"""The gradient of an MLP in words: which tokens the rows of its matrices are moved towards.

The gradient of a matrix is a sum over tokens, dW = sum_n dy_n x_n^T: each token n adds its input x_n, scaled by its
gradient dy_n. So both are vectors of the model's width C on one side of an MLP (x_n of its first matrix, dy_n of its
second), and can be read as the model reads its residual stream: by the output table, whose largest product names a
token. "Imprint": what the first matrix gets, x_n. "Shift": the direction -dy_n into which a step moves what the second
matrix writes.
Source: Katz, Belinkov, Geva, Wolf 2024, Backward Lens, arXiv:2402.12865, sections 4 and 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.errors import InputError
from minillm.study.step.records import StepTrace, Stop

NEAREST = 5  # tokens that are named
LOUDEST = 3  # rows of each matrix that are printed


class Reading(NamedTuple):
    """A row of an MLP's gradient in words."""

    layer: str  # h.0.mlp.fc
    kind: str  # "imprint": the input x_n; "shift": -dy_n
    place: tuple[int, ...]  # of the token in the batch: row, position
    token: str  # the token at this position, if the batch has tokens
    size: float  # |x_n| |dy_n|, the size of what this token adds to the gradient
    nearest: list[tuple[str, float]]  # tokens, with the cosine to their vectors


def read_gradients(trace: StepTrace, word: Callable[[int], str]) -> list[Reading]:
    """Read the gradient of each MLP, the loudest rows first within each matrix.

    word: the text of a token. The vectors of the tokens are those that the batch's ids were looked up in; without
    such a table there are no readings.
    """
    table = _token_table(trace)
    if table is None:
        return []
    directions = _unit(table)
    tokens = next((rows for name, rows in trace.tokens.items() if name in ("ids", "source")), [])
    found = []
    for stop in trace.of_kind("backward"):
        if stop.op == "linear" and ".mlp." in f".{stop.scope}." and stop.partner is not None:
            found += _read(trace, stop, directions, word, tokens)
    return found


def _token_table(trace: StepTrace) -> Array | None:
    """The table (V, C) in which the ids of the batch were looked up."""
    for stop in trace.of_kind("forward"):
        if stop.op == "embedding" and stop.inputs[1].data in ("ids", "source"):
            return stop.inputs[0].array
    return None


def _read(
    trace: StepTrace, stop: Stop, directions: Array, word: Callable[[int], str], tokens: list[list[str]]
) -> list[Reading]:
    x = trace.stops[stop.partner or 0].inputs[0].array
    dy = stop.inputs[0].array
    if x is None or dy is None:
        return []
    width = directions.shape[1]
    if x.shape[-1] == width:
        kind, vectors = "imprint", x
    elif dy.shape[-1] == width:
        kind, vectors = "shift", -dy
    else:
        return []
    sizes = np.linalg.norm(x, axis=-1) * np.linalg.norm(dy, axis=-1)  # (B, T)
    order = np.argsort(-sizes, axis=None)[:LOUDEST]
    readings = []
    for place in zip(*np.unravel_index(order, sizes.shape), strict=True):
        position = tuple(int(i) for i in place)
        cosines = directions @ _unit(vectors[place])
        best = np.argsort(-cosines)[:NEAREST]
        row = tokens[position[0]] if len(position) == 2 and position[0] < len(tokens) else []
        token = row[position[1]] if len(position) == 2 and position[1] < len(row) else ""
        nearest = [(word(int(i)), float(cosines[i])) for i in best]
        readings.append(Reading(stop.scope, kind, position, token, float(sizes[place]), nearest))
    return readings


def _unit(x: Array) -> Array:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def lens_lines(readings: list[Reading]) -> list[str]:
    """The readings as text.

    Raises: InputError where there are none.
    """
    if not readings:
        raise InputError(
            "step: --lens found no MLP whose matrices have gradients; leave --lora out, or give another model"
        )
    lines = [
        "imprint: what the gradient of an MLP's first matrix gets from a token; shift: where a step moves what the",
        "second matrix writes there. Behind each, the tokens with the nearest vectors, and the cosine to them.",
    ]
    for one in readings:
        near = ", ".join(f"{word!r} {cosine:.2f}" for word, cosine in one.nearest)
        lines.append(f"{one.layer} {one.kind} of {one.token!r} at {list(one.place)}, size {one.size:.2g}: {near}")
    return lines
