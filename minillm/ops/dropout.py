"""Dropout (Srivastava et al. 2014): each element is zeroed with probability p, the others scaled by 1/(1-p).

The scale keeps the expected value, so nothing changes at evaluation. With m the mask times its scale, y = m x and
dx = m dy. The mask is a function of (seed, counter), so it is made again in the backward and never kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from minillm import random
from minillm.autograd import Op, Tensor
from minillm.backend import Array, contiguous
from minillm.cuda import get_kernel
from minillm.cuda.launch import THREADS, blocks_for
from minillm.device import like
from minillm.errors import InputError, check_floating


class Saved(NamedTuple):
    """The place in the random stream: a few integers instead of a mask."""

    seed: int
    counter: int
    skip: int  # numbers of the first block that belong to what lies before x, in the tensor that x is a part of
    p: float


def dropout_forward(x, *, p, seed, counter, skip=0):
    saved = Saved(seed, counter, skip, p)
    return x * _keep_scale(x, saved), saved


def dropout_backward(dout, saved):
    return (dout * _keep_scale(dout, saved),)


def _keep_scale(x: Array, saved: Saved) -> Array:
    return like(random.keep_scale(saved.seed, saved.counter, x.shape, saved.p, x.dtype, saved.skip), x)


def dropout_forward_cuda(x, *, p, seed, counter, skip=0):
    if x.size == 0 or not 0 <= seed < 2**128 or counter + x.size >= 2**64:
        return NotImplemented
    saved = Saved(seed, counter, skip, p)
    return _launch(x, saved), saved


def dropout_backward_cuda(dout, saved):
    return (_launch(dout, saved),)


def _launch(x: Array, saved: Saved) -> Array:
    x, (seed, counter, skip, p) = contiguous(x), saved
    y = np.empty_like(x)
    key = np.uint64(seed % 2**64), np.uint64(seed // 2**64)
    threshold = np.uint32(min(round(p * 2**32), 2**32 - 1))
    scale = np.promote_types(x.dtype, np.float32).type(1 / (1 - p))
    arguments = (x, y, np.int64(x.size), *key, np.uint64(counter), np.int32(skip), threshold, scale)
    get_kernel("dropout.cu", "dropout", x.dtype)(blocks_for(skip + x.size, random.BLOCK), THREADS, arguments)
    return y


DROPOUT = Op("dropout", dropout_forward, dropout_backward, cuda=(dropout_forward_cuda, dropout_backward_cuda))


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Zero each element with probability p and scale the others by 1/(1-p); x itself when not training.

    The bits come from `minillm.random.default`, which `minillm.manual_seed` restarts; within `minillm.random.part` they
    are those of the rows that x is, of a larger tensor.
    Saves: nothing but the place in the stream.
    Raises: InputError for p outside [0, 1), and for more rows than the larger tensor has.
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
