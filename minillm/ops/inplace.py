"""Methods that change a tensor in place: `p -= lr * p.grad`, `p.add_(...)`, `x.zero_()`, `x[i] = y`.

A backward needs the arrays of the forward as they were, so a tensor may be changed only where nothing is recorded: a
leaf that requires a gradient, within `no_grad()`; a tensor that needs none, anywhere, by values that need none. Its
array itself is written to, so whatever shares it (an optimiser's flat buffer, a view) changes too, and its version
moves on: a backward through an operation that used it before is refused.

Everywhere else the error says what to write: `x = x + y` makes a new tensor, and has the gradient of the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minillm import random
from minillm.autograd import Tensor, is_grad_enabled, no_grad
from minillm.backend import Array, as_array
from minillm.backward import FROZEN
from minillm.device import is_on_gpu, like
from minillm.errors import DtypeError, GraphError, ShapeError
from minillm.ops.getitem import index_key


def check_writable(name: str, x: Tensor, *others: Any, instead: str) -> None:
    """Raise GraphError where a change in place would spoil a backward; `instead` is what to write."""
    if x.node is not None:
        raise GraphError(
            f"{name}: an operation made this tensor, and a backward may need it as it is; write {instead}, which makes "
            "a new tensor"
        )
    if x._version is not None and x._version.number == FROZEN:
        raise GraphError(
            f"{name}: this tensor shares its memory with one that an operation made, which a backward may need as it "
            f"is; write {instead}, which makes a new tensor"
        )
    if not is_grad_enabled():
        return
    if x.requires_grad:
        raise GraphError(
            f"{name}: a leaf that requires a gradient is changed in place only where nothing is recorded; put this "
            f"under 'with minillm.no_grad():', or write {instead} for a new tensor"
        )
    if any(isinstance(other, Tensor) and other.requires_grad for other in others):
        raise GraphError(
            f"{name}: a value that needs a gradient cannot be written into a tensor that has none; write {instead}"
        )


def write(name: str, x: Tensor, key: Any, values: Any) -> Tensor:
    """x[key] = values, in x's own memory; returns x.

    Raises: ShapeError for values that do not fit there, DtypeError for those whose dtype x cannot hold.
    """
    array = values.data if isinstance(values, Tensor) else as_array(values)
    if array.dtype.kind not in "iubf" and array.dtype.kind != "V":
        raise DtypeError(f"{name}: the values have dtype {array.dtype}; give numbers")
    if x.dtype.kind in "iub" and array.dtype.kind not in "iub":
        raise DtypeError(f"{name}: values of dtype {array.dtype} do not fit a tensor of {x.dtype}; convert it first")
    array = like(array, x.data) if array.ndim or is_on_gpu(array) else array.item()
    try:
        x.data[key] = array
    except ValueError:
        if not x.data.flags.writeable:
            raise GraphError(
                f"{name}: the tensor's memory cannot be written to, as expand() stretched it or its owner forbids it; "
                "write x = x.clone() first"
            ) from None
        place = x.shape if key is Ellipsis else np.shape(x.data[key])
        raise ShapeError(f"{name}: values of shape {np.shape(array)} do not fit the shape {place}") from None
    x.version += 1
    return x


def in_place(name: str, function: Callable[..., Tensor], instead: str) -> Callable[..., Tensor]:
    """A method that writes `function(x, ...)` over x and returns x."""

    def method(x: Tensor, *args: Any, **settings: Any) -> Tensor:
        check_writable(name, x, *args, *settings.values(), instead=instead)
        with no_grad():
            result = function(x, *args, **settings)
        if result.shape != x.shape:
            raise ShapeError(f"{name}: the result has shape {result.shape}, and the tensor {x.shape}; write {instead}")
        if result.dtype == bool and x.dtype != bool:
            result = result.to(x.dtype)
        return write(name, x, ..., result)

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"Change x in place to the result of `{function.__name__}`; returns x. See ops/inplace.py."
    return method


def operator_in_place(symbol: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The method for `x += y` and its like."""
    return in_place(f"{symbol}=", function, f"x = x {symbol} y")


def scaled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function(x, alpha y)`, as PyTorch's add and sub: `p.add_(p.grad, alpha=-lr)`."""

    def method(x: Any, y: Any, alpha: float = 1) -> Tensor:
        return function(x, y if alpha == 1 else (y if hasattr(y, "shape") else as_array(y)) * alpha)

    method.__name__, method.__doc__ = function.__name__, f"{function.__doc__} With alpha, y is multiplied by it first."
    return method


def setitem(x: Tensor, key: Any, values: Any) -> None:
    """x[key] = values, in place, where nothing is recorded. Elsewhere: minillm.ops.where(mask, values, x)."""
    check_writable("Tensor: elements cannot be assigned", x, values, instead="minillm.ops.where(mask, values, x)")
    write("Tensor", x, index_key(key, x.data), values)


def copy_(x: Tensor, values: Any) -> Tensor:
    """Write the values, broadcast and converted to x's dtype, into x; returns x."""
    check_writable("copy_", x, values, instead="x = values")
    array = values.data if isinstance(values, Tensor) else as_array(values)
    return write("copy_", x, ..., array.astype(x.dtype, copy=False))


def fill_(x: Tensor, value: Any) -> Tensor:
    """Set every element to one number; returns x."""
    check_writable("fill_", x, value, instead="x = x * 0 + value")
    if np.ndim(value.data if isinstance(value, Tensor) else value):
        raise ShapeError(f"fill_: the value has shape {np.shape(value)}; give one number, or write x.copy_(values)")
    return write("fill_", x, ..., value)


def zero_(x: Tensor) -> Tensor:
    """Set every element to 0; returns x."""
    check_writable("zero_", x, instead="x = x * 0")
    return write("zero_", x, ..., 0)


def normal_(x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Fill x with numbers from N(mean, std), by minillm's random stream; returns x."""
    return _draw("normal_", x, lambda generator: mean + std * generator.standard_normal(x.shape))


def uniform_(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Fill x with numbers from U(low, high), by minillm's random stream; returns x."""
    return _draw("uniform_", x, lambda generator: generator.uniform(low, high, x.shape))


def _draw(name: str, x: Tensor, numbers: Callable[[np.random.Generator], Array]) -> Tensor:
    check_writable(name, x, instead="it under 'with minillm.no_grad():'")
    if x.dtype.kind in "iub":
        raise DtypeError(f"{name}: the tensor has dtype {x.dtype}, which holds no fractions; give it floats")
    return write(name, x, ..., np.asarray(numbers(random.default.numpy())).astype(x.dtype))
