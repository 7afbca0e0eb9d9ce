"""New tensors of random numbers, under PyTorch's names and with its default dtypes.

The numbers come from the project's stream (random.py), so `minillm.manual_seed` decides them, on every device alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm import random
from minillm.autograd import Tensor
from minillm.dtypes import as_dtype
from minillm.errors import DtypeError, InputError, check_whole
from minillm.grad_mode import quiet
from minillm.ops.create import like_another, new_tensor, sizes_of

__all__ = ["bernoulli", "multinomial", "rand", "rand_like", "randint", "randn", "randn_like", "randperm"]


def rand(*size: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Random numbers, uniform in [0, 1), float32 by default."""
    shape = sizes_of("rand", size)
    wide = dtype is not None and as_dtype(dtype) == np.float64
    numbers = random.default.numpy().random(shape, np.float64 if wide else np.float32)  # none rounds up to 1
    return new_tensor(numbers, dtype, device, requires_grad)


def randn(*size: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Standard normal random numbers, float32 by default."""
    return new_tensor(random.default.numpy().standard_normal(sizes_of("randn", size)), dtype, device, requires_grad)


def randint(*bounds_and_size: Any, dtype: Any = None, device: str = "cpu", **named: Any) -> Tensor:
    """Random whole numbers in [low, high), int64: `randint(high, size)` or `randint(low, high, size)`."""
    given = list(bounds_and_size)
    size = named.pop("size") if "size" in named else given.pop() if len(given) > 1 else ()
    high = named.pop("high") if "high" in named else given.pop() if given else None
    low = named.pop("low", 0) if not given else given.pop()
    if given or named or high is None:
        raise InputError("randint: give randint(high, size) or randint(low, high, size)")
    low, high = check_whole("randint", "low", low), check_whole("randint", "high", high)
    if low >= high:
        raise InputError(f"randint: there is no whole number from {low} up to {high}, which is left out")
    return new_tensor(
        random.default.numpy().integers(low, high, sizes_of("randint", (size,))), dtype, device, False, np.int64
    )


def randperm(n: int, *, dtype: Any = None, device: str = "cpu") -> Tensor:
    """The numbers 0 to n - 1 in random order, int64."""
    (count,) = sizes_of("randperm", (n,))
    return new_tensor(random.default.numpy().permutation(count), dtype, device, False, np.int64)


def bernoulli(p: Tensor) -> Tensor:
    """1 with the probability in p, else 0, for every element, in p's dtype."""
    return Tensor((rand_like(p).data < p.data).astype(p.dtype))


def multinomial(weights: Tensor, num_samples: int, replacement: bool = False) -> Tensor:
    """Random indices of the last axis, each as likely as its weight says; without replacement no index twice.

    Shapes: weights (N,) or (B, N) of floats, 0 or more, which need not sum to 1; result (S,) or (B, S) of int64.
    Without replacement, the S smallest of N exponential waiting times, which pass at rates equal to the weights.
    """
    count = check_whole("multinomial", "num_samples", num_samples)
    x = weights.numpy() if isinstance(weights, Tensor) else np.asarray(weights)
    if x.dtype.kind in "iub" or x.ndim not in (1, 2):
        raise DtypeError(f"multinomial: weights are {x.dtype} of shape {x.shape}; give floats of shape (N,) or (B, N)")
    p = x.astype(np.float64)
    if not np.isfinite(p).all() or (p < 0).any() or not (p.sum(-1) > 0).all():
        raise InputError("multinomial: every weight must be finite and 0 or more, and one of each row above 0")
    possible = int((p > 0).sum(-1).min(initial=p.shape[-1]))
    if count < 1 or (count > possible and not replacement):
        raise InputError(f"multinomial: {count} indices are asked for, and {possible} have a weight above 0")
    generator = random.default.numpy()
    if replacement:
        bounds = np.cumsum(p, -1)
        points = generator.random((*p.shape[:-1], count)) * bounds[..., -1:]
        points = np.minimum(points, np.nextafter(bounds[..., -1:], 0))  # below the last bound, where it was rounded up
        index = np.empty(points.shape, np.int64)
        for row in np.ndindex(p.shape[:-1]):
            index[row] = np.searchsorted(bounds[row], points[row], side="right")
    else:
        with quiet():  # at rate 0 one waits for ever
            index = np.argsort(generator.standard_exponential(p.shape) / p, -1)[..., :count]
    return new_tensor(index, np.int64, weights.device if isinstance(weights, Tensor) else "cpu", False)


def rand_like(x: Tensor, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Random numbers, uniform in [0, 1), of x's shape, dtype and device."""
    return like_another(rand, x, dtype, device, requires_grad)


def randn_like(x: Tensor, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Standard normal random numbers of x's shape, dtype and device."""
    return like_another(randn, x, dtype, device, requires_grad)
