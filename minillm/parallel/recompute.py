"""Activation checkpointing: a block keeps its inputs alone, and is computed a second time in the backward.

Of L blocks with activations of A bytes and inputs of I, what a forward leaves falls from L A to L I + A, for a third
more FLOPs (Chen et al. 2016, "Training deep nets with sublinear memory cost", arXiv:1604.06174, section 3). The
second forward draws the same dropout masks, because they are a function of the place in the random stream, and gives
the same bits as the first.

A block may have several inputs with a gradient, such as the keys and values of an encoder, and several outputs.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from minillm import random
from minillm.autograd import Op, Tensor, enable_grad, is_grad_enabled, no_grad
from minillm.backend import Array
from minillm.backward import run_backward
from minillm.errors import InputError
from minillm.nn import Module
from minillm.parallel.data_parallel import model_blocks
from minillm.parallel.wrapper import Wrapper, replace


class Saved(NamedTuple):
    """The inputs, the function to compute again, the random generator at its start, and the number of weights."""

    inputs: tuple[Array, ...]
    function: Callable[..., tuple[Tensor, ...]]
    place: random.Generator
    weights: int


def recompute_forward(*arrays, function, inputs):
    place = copy.copy(random.default)
    with no_grad():
        outputs = function(*map(Tensor, arrays[:inputs]))
    return tuple(y.data for y in outputs), Saved(arrays[:inputs], function, place, len(arrays) - inputs)


def recompute_backward(douts, saved):
    inputs = [Tensor(x, requires_grad=True) for x in saved.inputs]
    with random.using(copy.copy(saved.place)), enable_grad():
        outputs = saved.function(*inputs)
    given = [(y, dy) for y, dy in zip(outputs, douts, strict=True) if dy is not None]
    run_backward(given[::-1], keep_graph=False)  # the gradients of the weights go to them from here
    return (*[x.grad for x in inputs], *[None] * saved.weights)


RECOMPUTE = Op("recompute", recompute_forward, recompute_backward)


def recompute(model: Module, layers: Iterable[int] | None = None) -> None:
    """Make the blocks of a model with these numbers, or all, compute their forward a second time in the backward.

    Call this before DataParallel or ZeRO lay the model out.
    Raises: InputError for a number without a block.
    """
    blocks = list(model_blocks(model).items())
    numbers = list(range(len(blocks))) if layers is None else list(layers)
    for number in numbers:
        if not 0 <= number < len(blocks):
            raise InputError(f"recompute: there is no block {number}; the model has {len(blocks)}, counted from 0")
    made: dict[int, Recomputed] = {}  # a block at two places stays one
    for path, block in (blocks[number] for number in numbers):
        replace(model, path, made.setdefault(id(block), Recomputed(block)))


class Recomputed(Wrapper):
    """A block that keeps its inputs alone, and is computed again in the backward."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not is_grad_enabled():
            return self.module(*args, **kwargs)
        inputs: list[Tensor] = []
        with_tensors((args, kwargs), inputs.append)
        weights = [parameter for parameter in self.parameters() if parameter.requires_grad]  # so that it is recorded
        is_tensor: list[bool] = []  # for each output; empty where there is one alone

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            following = iter(tensors)
            ours, named = with_tensors((args, kwargs), lambda _: next(following))
            outputs = self.module(*ours, **named)
            if not isinstance(outputs, tuple):
                return (outputs,)
            is_tensor[:] = [isinstance(y, Tensor) for y in outputs]
            return tuple(y for y in outputs if isinstance(y, Tensor))

        made = RECOMPUTE(*inputs, *weights, function=function, inputs=len(inputs))
        following = iter(made)
        return tuple(next(following) if there else None for there in is_tensor) if is_tensor else made[0]


def with_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """The value, with `function` of each tensor that needs a gradient in its place, also within tuples and dicts."""
    if isinstance(value, Tensor):
        return function(value) if value.requires_grad else value
    if isinstance(value, dict):
        return {name: with_tensors(one, function) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        inside = [with_tensors(one, function) for one in value]
        return type(value)(*inside) if hasattr(value, "_fields") else type(value)(inside)
    return value


def parse_layers(text: str, count: int) -> list[int]:
    """Numbers of layers from `none`, `all`, or a list such as `0,2-5`.

    Raises: InputError for anything else.
    """
    if text in ("none", "all"):
        return [] if text == "none" else list(range(count))
    layers: list[int] = []
    for item in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", item.strip())
        if not found:
            raise InputError(f"recompute: {text!r} names no layers; give none, all, or numbers such as 0,2-5")
        layers += range(int(found[1]), int(found[2] or found[1]) + 1)
    if layers and max(layers) >= count:
        raise InputError(f"recompute: there is no layer {max(layers)}; the model has {count}, counted from 0")
    return layers
