"""A tensor elsewhere: on another device, in another dtype, or in memory of its own. The gradient takes the way back.

to:     y = x on a device, in a dtype      dx = dy on x's device, in x's dtype
clone:  y = a copy of x                    dx = dy
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.device import device_of, to_device
from minillm.dtypes import device_and_dtype

__all__ = ["clone", "contiguous", "to"]


class Origin(NamedTuple):
    """Everything that the forward keeps for the backward."""

    device: str  # of x
    dtype: np.dtype  # of x


def to_forward(x, *, device, dtype):
    y = to_device(x.astype(dtype, copy=False), device)  # (...)
    return y, Origin(device_of(x), x.dtype)


def to_backward(dy, saved):
    dx = to_device(dy, saved.device).astype(saved.dtype, copy=False)  # (...)
    return (dx,)


TO = Op("to", to_forward, to_backward, aliases=True)


def to(x: Tensor, *targets: Any, device: Any = None, dtype: Any = None) -> Tensor:
    """x on another device, in another dtype, or both: `x.to("cuda")`, `x.to("cuda", "bfloat16")`, `x.to(np.float64)`.

    Another tensor as a target stands for its device and dtype. Returns x itself where nothing changes.
    Raises: DeviceError for a device that is not there, DtypeError for what is neither a device nor a dtype.
    """
    named = tuple(one for one in (device, dtype) if one is not None)
    given = [(one.device, one.dtype) if isinstance(one, Tensor) else (one,) for one in (*targets, *named)]
    device, dtype = device_and_dtype(sum(given, ()))
    device, dtype = device or x.device, dtype or x.dtype
    if dtype == x.dtype and device in (x.device, x.device.partition(":")[0]):
        return x
    return TO(x, device=device, dtype=dtype)


def clone_forward(x):
    y = x.copy(order="C")  # (...)
    return y, None


def clone_backward(dy, saved):
    return (dy,)  # (...)


CLONE = Op("clone", clone_forward, clone_backward, aliases=True)


def clone(x: Tensor) -> Tensor:
    """A copy, through which the gradient passes."""
    return CLONE(x)


def contiguous(x: Tensor) -> Tensor:
    """x itself if its elements lie in memory in order, else a copy in which they do."""
    return x if x.data.flags.c_contiguous else CLONE(x)
