"""Dropout (Srivastava et al. 2014): elements are zeroed at random, so that no element can rely on another.

    m_i = 0 with probability p, else 1 / (1 - p)
    y_i = m_i x_i                                   dx_i = m_i dy_i

The scale 1 / (1 - p) keeps the expected value, so nothing changes at evaluation. The backward computes m again from the
seed and the counter (see random.py); m is not stored.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from minillm import random
from minillm.autograd import Op, Tensor
from minillm.device import like
from minillm.errors import InputError, check_floating


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward: the place in the random stream, in place of a mask."""

    seed: int
    counter: int  # the first block of random numbers
    skip: int  # random numbers of that block to skip
    p: float


def dropout_forward(x, *, p, seed, counter, skip=0):
    saved = Saved(seed, counter, skip, p)
    m = mask_like(x, saved)  # (...)
    y = m * x  # (...)
    return y, saved


def dropout_backward(dy, saved):
    m = mask_like(dy, saved)  # (...)
    dx = m * dy  # (...)
    return (dx,)


def mask_like(x, saved):
    """The mask m for an array, where the array is."""
    seed, counter, skip, p = saved
    return like(random.keep_scale(seed, counter, x.shape, p, x.dtype, skip), x)


DROPOUT = Op("dropout", dropout_forward, dropout_backward)


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Zero each element with probability p and scale the others by 1 / (1 - p); x itself when not training.

    The random numbers come from `minillm.random.default`, which `minillm.manual_seed` restarts. Under
    `minillm.random.part`, x gets the part of the mask that belongs to its rows in a larger tensor.

    Shapes: x (...); result (...).
    Saves: the place in the random stream, and no array.
    Raises: InputError for p outside [0, 1), and for more rows than the larger tensor has; DtypeError for integers.
    Source: Srivastava et al. 2014, section 4, with the scale moved from evaluation to training.
    """
    check_probability("dropout", p)
    check_floating("dropout", x=x)
    if not training or p == 0:
        return x
    first, total = random.default.rows_of("dropout", x.shape)
    row = math.prod(x.shape[1:])
    seed, counter = random.default.reserve(total * row)
    blocks, skip = divmod(first * row, random.BLOCK)
    return DROPOUT(x, p=p, seed=seed, counter=counter + blocks, skip=skip)


def check_probability(function: str, p: float) -> None:
    """Raise InputError for a dropout probability outside [0, 1)."""
    if not 0 <= p < 1:
        raise InputError(f"{function}: p is {p}; give a probability of at least 0 and below 1")
