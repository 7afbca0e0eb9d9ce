"""The first layer in which two models differ: both run on one input, and the outputs of their layers are compared."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Tensor, no_grad, observe
from minillm.backend import Array
from minillm.device import to_host
from minillm.errors import InputError
from minillm.nn import Module


class Difference(NamedTuple):
    """The difference between the outputs of one layer in two models."""

    layer: str  # its path, such as h.3.attn.qkv; empty for the model itself
    error: float  # the largest difference over the largest number; infinite where shapes differ or one is not finite
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


def outputs_of_layers(model: Module, *inputs: Any) -> list[tuple[str, Array]]:
    """The path of every layer and what it returns, in the order in which layers end."""
    outputs: list[tuple[str, Array]] = []

    def on_module(module: Module, inputs: tuple, output: Any) -> None:
        for one in output if isinstance(output, tuple) else (output,):
            if isinstance(one, Tensor):
                outputs.append((module.name, to_host(one.data)))

    was_training = model.training
    model.eval()
    try:
        with no_grad(), observe(on_module=on_module):
            model(*inputs)
    finally:
        model.train(was_training)
    return outputs


def differences(a: Module, b: Module, *inputs: Any) -> list[Difference]:
    """Every layer's difference on the same input, in the order in which layers end: parts before what they are part of.

    Both models run in evaluation mode. The first that is large is where to look: its inputs still agreed.
    Raises: InputError where the models run other layers than each other, with the first.
    """
    records = [outputs_of_layers(model, *inputs) for model in (a, b)]
    for (ours, _), (theirs, _) in zip(*records, strict=False):
        if ours != theirs:
            raise InputError(f"differences: where the first model runs {ours!r}, the second runs {theirs!r}")
    if len(records[0]) != len(records[1]):
        raise InputError(f"differences: the first model runs {len(records[0])} layers, the second {len(records[1])}")
    return [Difference(name, _error(x, y), (x.shape, y.shape)) for (name, x), (_, y) in zip(*records, strict=True)]


def _error(x: Array, y: Array) -> float:
    if x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return np.inf
    scale = max(np.abs(x).max(initial=0), np.abs(y).max(initial=0))
    return float(np.abs(x.astype(np.float64) - y.astype(np.float64)).max(initial=0) / scale) if scale else 0.0
