"""New tensors from a shape, from another tensor's shape, or from data. Random numbers are in sample.py.

Names, arguments and default dtypes are PyTorch's: float32, or int64 where only whole numbers come in or out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.autograd import Tensor, tensor
from minillm.backend import Array
from minillm.device import check_device, to_device
from minillm.dtypes import as_dtype
from minillm.errors import DtypeError, InputError, ShapeError, check_whole

__all__ = [
    "arange", "as_tensor", "empty", "empty_like", "eye", "from_numpy", "full", "full_like", "linspace", "ones",
    "ones_like", "tril_indices", "triu_indices", "zeros", "zeros_like",
]  # fmt: skip


def sizes_of(function: str, size: tuple) -> tuple[int, ...]:
    """Sizes given one by one, or as one tuple or list, as Python ints."""
    given = size[0] if len(size) == 1 and isinstance(size[0], (tuple, list)) else size
    shape = tuple(check_whole(function, "a size", n) for n in given)
    if min(shape, default=0) < 0:
        raise ShapeError(f"{function}: the sizes are {shape}; give 0 or more")
    return shape


def new_tensor(array: Array, dtype: Any, device: str, requires_grad: bool, default: Any = np.float32) -> Tensor:
    """The new tensor of an array on the CPU that nobody else has."""
    check_device(device)
    array = np.asarray(array).astype(default if dtype is None else as_dtype(dtype), copy=False)
    return Tensor(to_device(array, device), requires_grad)


# --- constants -----------------------------------------------------------------------------------------------------


def full(size: Any, fill_value: Any, *, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of `fill_value`, whose kind decides the dtype: float32, int64 or bool."""
    value = fill_value.item() if isinstance(fill_value, Tensor) else fill_value
    default = tensor(value).dtype if dtype is None else None
    shape = sizes_of("full", (size,) if isinstance(size, (tuple, list)) else ((size,),))
    return new_tensor(np.full(shape, value, default or as_dtype(dtype)), dtype, device, requires_grad, default)


def zeros(*size: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of zeros, float32 by default: `zeros(2, 3)` or `zeros((2, 3))`."""
    return full(sizes_of("zeros", size), 0.0, dtype=dtype, device=device, requires_grad=requires_grad)


def ones(*size: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of ones, float32 by default."""
    return full(sizes_of("ones", size), 1.0, dtype=dtype, device=device, requires_grad=requires_grad)


def empty(*size: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor to be written to, float32 by default; what it holds until then means nothing."""
    shape = sizes_of("empty", size)
    return new_tensor(np.empty(shape, np.float32 if dtype is None else as_dtype(dtype)), dtype, device, requires_grad)


def eye(n: int, m: int | None = None, *, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """The matrix (n, m), square by default, with 1 on its diagonal and 0 elsewhere."""
    shape = sizes_of("eye", (n, n if m is None else m))
    return new_tensor(np.eye(*shape, dtype=np.float32), dtype, device, requires_grad)


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
    return new_tensor(values, dtype, device, requires_grad, np.int64 if whole else np.float32)


def linspace(
    start: float, end: float, steps: int, *, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """So many numbers at equal distances from `start` to `end`, both included, float32 by default."""
    (count,) = sizes_of("linspace", (steps,))
    return new_tensor(np.linspace(start, end, count), dtype, device, requires_grad)


def tril_indices(row: int, col: int, offset: int = 0, *, dtype: Any = None, device: str = "cpu") -> Tensor:
    """Rows and columns, (2, N), of the lower triangle of a matrix (row, col), up to the diagonal `offset`; int64."""
    return new_tensor(np.stack(np.tril_indices(row, offset, col)), dtype, device, False, np.int64)


def triu_indices(row: int, col: int, offset: int = 0, *, dtype: Any = None, device: str = "cpu") -> Tensor:
    """Rows and columns, (2, N), of the upper triangle of a matrix (row, col), from the diagonal `offset` on; int64."""
    return new_tensor(np.stack(np.triu_indices(row, offset, col)), dtype, device, False, np.int64)


# --- like another --------------------------------------------------------------------------------------------------


def like_another(function: Any, x: Tensor, dtype: Any, device: str | None, requires_grad: bool) -> Tensor:
    """`function` of x's shape, with x's dtype and device unless others are given."""
    return function(
        x.shape,
        dtype=x.dtype if dtype is None else dtype,
        device=x.device if device is None else device,
        requires_grad=requires_grad,
    )


def zeros_like(x: Tensor, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Zeros of x's shape, dtype and device."""
    return like_another(zeros, x, dtype, device, requires_grad)


def ones_like(x: Tensor, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Ones of x's shape, dtype and device."""
    return like_another(ones, x, dtype, device, requires_grad)


def empty_like(x: Tensor, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor to be written to, of x's shape, dtype and device."""
    return like_another(empty, x, dtype, device, requires_grad)


def full_like(
    x: Tensor, fill_value: Any, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """`fill_value` in x's shape, dtype and device."""
    return like_another(lambda shape, **given: full(shape, fill_value, **given), x, dtype, device, requires_grad)


# --- from data -----------------------------------------------------------------------------------------------------


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor on the array itself, no copy: what is written to one is seen in the other."""
    if not isinstance(array, np.ndarray):
        raise DtypeError(f"from_numpy: {type(array).__name__} is not a NumPy array; use minillm.tensor")
    return Tensor(array)


def as_tensor(data: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """data as a tensor of a dtype on a device, without a copy where it is a tensor or an array already."""
    if isinstance(data, np.ndarray):
        data = from_numpy(data)
    if not isinstance(data, Tensor):
        return tensor(data, dtype=dtype, device=device or "cpu")
    return data.to(*(target for target in (device, dtype) if target is not None)) if device or dtype else data
