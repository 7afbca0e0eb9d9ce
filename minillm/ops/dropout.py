"""Dropout (Srivastava et al. 2014): each element is zeroed with probability p, the others scaled by 1/(1-p).

The scale keeps the expected value, so nothing changes at evaluation. With m the mask times its scale, y = m x and
dx = m dy. The mask is a function of (seed, counter), so it is made again in the backward and never kept.
"""

from __future__ import annotations

from typing import NamedTuple

from minillm import random
from minillm.autograd import Op, Tensor
from minillm.errors import InputError, check_floating


class Saved(NamedTuple):
    """The place in the random stream: two integers instead of a mask."""

    seed: int
    counter: int
    p: float


def dropout_forward(x, *, p, seed, counter):
    return x * random.keep_scale(seed, counter, x.shape, p, x.dtype), Saved(seed, counter, p)


def dropout_backward(dout, saved):
    return (dout * random.keep_scale(saved.seed, saved.counter, dout.shape, saved.p, dout.dtype),)


DROPOUT = Op("dropout", dropout_forward, dropout_backward)


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Zero each element with probability p and scale the others by 1/(1-p); x itself when not training.

    The bits come from `minillm.random.default`, which `minillm.manual_seed` restarts.
    Saves: nothing but the place in the stream.
    Raises: InputError for p outside [0, 1).
    """
    check_probability("dropout", p)
    check_floating("dropout", x=x)
    if not training or p == 0:
        return x
    seed, counter = random.default.reserve(x.numel())
    return DROPOUT(x, p=p, seed=seed, counter=counter)


def check_probability(function: str, p: float) -> None:
    """Raise InputError for a dropout probability outside [0, 1)."""
    if not 0 <= p < 1:
        raise InputError(f"{function}: p is {p}; give a probability of at least 0 and below 1")
