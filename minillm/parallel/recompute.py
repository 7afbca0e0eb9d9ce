"""Activation checkpointing: a block keeps its input alone, and is computed a second time in the backward.

Of L blocks with activations of A bytes and inputs of I, what a forward leaves falls from L A to L I + A, for a third
more FLOPs (Chen et al. 2016, "Training deep nets with sublinear memory cost", arXiv:1604.06174, section 3). The
second forward draws the same dropout masks, because they are a function of the place in the random stream, and gives
the same bits as the first.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from minillm import random
from minillm.autograd import Op, Tensor, enable_grad, is_grad_enabled, no_grad
from minillm.backend import Array
from minillm.errors import InputError
from minillm.nn import Module
from minillm.parallel.data_parallel import model_blocks
from minillm.parallel.wrapper import Wrapper, replace


class Saved(NamedTuple):
    """The input, the function to compute again, the random generator at its start, and the number of inputs."""

    x: Array
    function: Callable[[Tensor], Tensor]
    place: random.Generator
    inputs: int


def recompute_forward(x, *weights, function):
    place = copy.copy(random.default)
    with no_grad():
        y = function(Tensor(x))
    return y.data, Saved(x, function, place, 1 + len(weights))


def recompute_backward(dout, saved):
    x = Tensor(saved.x, requires_grad=True)
    with random.using(copy.copy(saved.place)), enable_grad():
        y = saved.function(x)
    y.backward(dout)  # the gradients of the weights go to them from here
    return (x.grad, *[None] * (saved.inputs - 1))


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
    """A block that keeps its input alone, and is computed again in the backward."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not is_grad_enabled():
            return self.module(x, *args, **kwargs)
        weights = [parameter for parameter in self.parameters() if parameter.requires_grad]  # so that it is recorded
        return RECOMPUTE(x, *weights, function=lambda x: self.module(x, *args, **kwargs))


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
