"""New tensors from nothing but a shape: constants, ranges, and random numbers.

Names, arguments and default dtypes are PyTorch's: float32, or int64 where only whole numbers come in or out. Random
numbers come from the project's stream (random.py), so `minillm.manual_seed` decides them, on every device alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm import random
from minillm.autograd import Tensor, tensor
from minillm.backend import Array
from minillm.device import check_device, to_device
from minillm.dtypes import as_dtype
from minillm.errors import DtypeError, InputError, ShapeError, check_whole

__all__ = [
    "arange", "as_tensor", "bernoulli", "empty", "empty_like", "eye", "from_numpy", "full", "full_like", "linspace",
    "multinomial", "ones", "ones_like", "rand", "rand_like", "randint", "randn", "randn_like", "randperm",
    "tril_indices", "triu_indices", "zeros", "zeros_like",
]  # fmt: skip


def _sizes(function: str, size: tuple) -> tuple[int, ...]:
    given = size[0] if len(size) == 1 and isinstance(size[0], (tuple, list)) else size
    shape = tuple(check_whole(function, "a size", n) for n in given)
    if min(shape, default=0) < 0:
        raise ShapeError(f"{function}: the sizes are {shape}; give 0 or more")
    return shape


def _made(array: Array, dtype: Any, device: str, requires_grad: bool, default: Any = np.float32) -> Tensor:
    """The new tensor of an array on the CPU that nobody else has."""
    check_device(device)
    array = np.asarray(array).astype(default if dtype is None else as_dtype(dtype), copy=False)
    return Tensor(to_device(array, device), requires_grad)


# --- constants -----------------------------------------------------------------------------------------------------


def full(size: Any, fill_value: Any, *, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of `fill_value`, whose kind decides the dtype: float32, int64 or bool."""
    value = fill_value.item() if isinstance(fill_value, Tensor) else fill_value
    default = tensor(value).dtype if dtype is None else None
    shape = _sizes("full", (size,) if isinstance(size, (tuple, list)) else ((size,),))
    return _made(np.full(shape, value, default or as_dtype(dtype)), dtype, device, requires_grad, default)


def zeros(*size: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of zeros, float32 by default: `zeros(2, 3)` or `zeros((2, 3))`."""
    return full(_sizes("zeros", size), 0.0, dtype=dtype, device=device, requires_grad=requires_grad)


def ones(*size: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of ones, float32 by default."""
    return full(_sizes("ones", size), 1.0, dtype=dtype, device=device, requires_grad=requires_grad)


def empty(*size: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor to be written to, float32 by default; what it holds until then means nothing."""
    shape = _sizes("empty", size)
    return _made(np.empty(shape, np.float32 if dtype is None else as_dtype(dtype)), dtype, device, requires_grad)


def eye(n: int, m: int | None = None, *, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """The matrix (n, m), square by default, with 1 on its diagonal and 0 elsewhere."""
    shape = _sizes("eye", (n, n if m is None else m))
    return _made(np.eye(*shape, dtype=np.float32), dtype, device, requires_grad)


# --- ranges --------------------------------------------------------------------------------------------------------


def arange(
    start: Any = None,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """The numbers from `start` up to `end`, which is left out, by `step`; `arange(n)` counts from 0.

    int64 where all three are whole numbers, else float32.
    """
    start, end, step = (x.item() if isinstance(x, Tensor) else x for x in (start, end, step))
    if start is None and end is None:
        raise InputError("arange: no number is given; give the end, as in arange(5)")
    start, end = (0, start) if end is None else (0 if start is None else start, end)
    if step == 0 or (end - start) * step < 0:
        raise InputError(f"arange: from {start} to {end} there is no way by steps of {step}")
    count = int(np.ceil((end - start) / step))
    values = start + step * np.arange(count)  # no step is lost to rounding, as adding them up would
    whole = all(isinstance(x, (int, np.integer)) for x in (start, end, step))
    return _made(values, dtype, device, requires_grad, np.int64 if whole else np.float32)


def linspace(
    start: float, end: float, steps: int, *, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """So many numbers at equal distances from `start` to `end`, both included, float32 by default."""
    (count,) = _sizes("linspace", (steps,))
    return _made(np.linspace(start, end, count), dtype, device, requires_grad)


def tril_indices(row: int, col: int, offset: int = 0, *, dtype: Any = None, device: str = "cpu") -> Tensor:
    """Rows and columns, (2, N), of the lower triangle of a matrix (row, col), up to the diagonal `offset`; int64."""
    return _made(np.stack(np.tril_indices(row, offset, col)), dtype, device, False, np.int64)


def triu_indices(row: int, col: int, offset: int = 0, *, dtype: Any = None, device: str = "cpu") -> Tensor:
    """Rows and columns, (2, N), of the upper triangle of a matrix (row, col), from the diagonal `offset` on; int64."""
    return _made(np.stack(np.triu_indices(row, offset, col)), dtype, device, False, np.int64)


# --- random --------------------------------------------------------------------------------------------------------


def rand(*size: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Random numbers, uniform in [0, 1), float32 by default."""
    shape = _sizes("rand", size)
    wide = dtype is not None and as_dtype(dtype) == np.float64
    numbers = random.default.numpy().random(shape, np.float64 if wide else np.float32)  # none rounds up to 1
    return _made(numbers, dtype, device, requires_grad)


def randn(*size: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Standard normal random numbers, float32 by default."""
    return _made(random.default.numpy().standard_normal(_sizes("randn", size)), dtype, device, requires_grad)


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
    return _made(random.default.numpy().integers(low, high, _sizes("randint", (size,))), dtype, device, False, np.int64)


def randperm(n: int, *, dtype: Any = None, device: str = "cpu") -> Tensor:
    """The numbers 0 to n - 1 in random order, int64."""
    (count,) = _sizes("randperm", (n,))
    return _made(random.default.numpy().permutation(count), dtype, device, False, np.int64)


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
        with np.errstate(divide="ignore"):  # at rate 0 one waits for ever
            index = np.argsort(generator.standard_exponential(p.shape) / p, -1)[..., :count]
    return _made(index, np.int64, weights.device if isinstance(weights, Tensor) else "cpu", False)


# --- like another --------------------------------------------------------------------------------------------------


def _like(function: Any, x: Tensor, dtype: Any, device: str | None, requires_grad: bool) -> Tensor:
    return function(
        x.shape,
        dtype=x.dtype if dtype is None else dtype,
        device=x.device if device is None else device,
        requires_grad=requires_grad,
    )


def zeros_like(x: Tensor, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Zeros of x's shape, dtype and device."""
    return _like(zeros, x, dtype, device, requires_grad)


def ones_like(x: Tensor, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Ones of x's shape, dtype and device."""
    return _like(ones, x, dtype, device, requires_grad)


def empty_like(x: Tensor, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor to be written to, of x's shape, dtype and device."""
    return _like(empty, x, dtype, device, requires_grad)


def rand_like(x: Tensor, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Random numbers, uniform in [0, 1), of x's shape, dtype and device."""
    return _like(rand, x, dtype, device, requires_grad)


def randn_like(x: Tensor, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Standard normal random numbers of x's shape, dtype and device."""
    return _like(randn, x, dtype, device, requires_grad)


def full_like(
    x: Tensor, fill_value: Any, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """`fill_value` in x's shape, dtype and device."""
    return _like(lambda shape, **given: full(shape, fill_value, **given), x, dtype, device, requires_grad)


# --- from data -----------------------------------------------------------------------------------------------------


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor on the array itself, no copy: what is written to one is seen in the other."""
    if not isinstance(array, np.ndarray):
        raise DtypeError(f"from_numpy: {type(array).__name__} is no NumPy array; use minillm.tensor")
    return Tensor(array)


def as_tensor(data: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """data as a tensor of a dtype on a device, without a copy where it is a tensor or an array already."""
    if isinstance(data, np.ndarray):
        data = from_numpy(data)
    if not isinstance(data, Tensor):
        return tensor(data, dtype=dtype, device=device or "cpu")
    return data.to(*(target for target in (device, dtype) if target is not None)) if device or dtype else data
