"""Comparisons and logic, element by element. Their results are booleans, which change in jumps: they have no gradient.

`x == y` compares elements, as in NumPy and PyTorch; whether two names mean one tensor is `x is y`. Operands of two
dtypes are compared in the dtype in which they would be added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minillm.autograd import Tensor
from minillm.backend import Array, as_array
from minillm.errors import DtypeError, ShapeError
from minillm.grad_mode import quiet
from minillm.ops.axes import choose_axis
from minillm.ops.operands import operands

__all__ = [
    "all", "allclose", "any", "eq", "equal", "ge", "gt", "isclose", "isfinite", "isinf", "isnan", "le", "logical_and",
    "logical_not", "logical_or", "logical_xor", "lt", "ne",
]  # fmt: skip


def _array(x: Any) -> Array:
    return x.data if isinstance(x, Tensor) else as_array(x)


def _apply(name: str, function: Callable, x: Any, y: Any) -> Tensor:
    """The function of two operands' arrays, in one dtype."""
    x, y = (one.detach() if isinstance(one, Tensor) else one for one in (x, y))
    arrays = [one.data if isinstance(one, Tensor) else one for one in operands(x, y, name)]
    try:
        return Tensor(function(*arrays))
    except ValueError:
        shapes = " and ".join(str(np.shape(array)) for array in arrays)
        raise ShapeError(f"{name}: shapes {shapes} do not broadcast") from None


# --- comparisons ---------------------------------------------------------------------------------------------------


def eq(x: Any, y: Any) -> Tensor:
    """x == y, elementwise with broadcasting: booleans. NaN equals nothing."""
    return _apply("eq", np.equal, x, y)


def ne(x: Any, y: Any) -> Tensor:
    """x != y, elementwise with broadcasting: booleans."""
    return _apply("ne", np.not_equal, x, y)


def gt(x: Any, y: Any) -> Tensor:
    """x > y, elementwise with broadcasting: booleans."""
    return _apply("gt", np.greater, x, y)


def ge(x: Any, y: Any) -> Tensor:
    """x >= y, elementwise with broadcasting: booleans."""
    return _apply("ge", np.greater_equal, x, y)


def lt(x: Any, y: Any) -> Tensor:
    """x < y, elementwise with broadcasting: booleans."""
    return _apply("lt", np.less, x, y)


def le(x: Any, y: Any) -> Tensor:
    """x <= y, elementwise with broadcasting: booleans."""
    return _apply("le", np.less_equal, x, y)


def _is_number(y: Any) -> bool:
    return isinstance(y, (Tensor, int, float, list, tuple)) or hasattr(y, "shape")


def operator(function: Callable[[Any, Any], Tensor]) -> Callable:
    """A function of two operands for `==` and its like, which Python asks about anything.

    Of what is no number the other operand may know more, and in the end `x == None` is False.
    """

    def compare(x: Tensor, y: Any) -> Any:
        return function(x, y) if _is_number(y) else NotImplemented

    return compare


def contains(x: Tensor, element: Any) -> bool:
    """`element in x`: whether any element of x equals it."""
    return bool(eq(x, element).data.any())


def isclose(x: Any, y: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """True where |x - y| <= atol + rtol |y|, elementwise: booleans. Infinities are close to themselves alone."""

    def close(a: Any, b: Any) -> Array:
        a, b = (one * 1.0 if getattr(one, "dtype", np.dtype(float)).kind in "iub" else one for one in (a, b))
        same = np.equal(a, b)
        if equal_nan:
            same = same | (np.isnan(a) & np.isnan(b))
        with quiet():
            return same | ((np.absolute(np.subtract(a, b)) <= atol + rtol * np.absolute(b)) & np.isfinite(b))

    return _apply("isclose", close, x, y)


def allclose(x: Any, y: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """True if all elements are close (see isclose), as a Python bool."""
    return bool(isclose(x, y, rtol, atol, equal_nan).data.all())


def equal(x: Any, y: Any) -> bool:
    """True if x and y have one shape and equal elements, as a Python bool."""
    return _array(x).shape == _array(y).shape and bool(eq(x, y).data.all())


# --- kinds of numbers ----------------------------------------------------------------------------------------------


def isnan(x: Any) -> Tensor:
    """True where each element is no number (NaN): booleans."""
    return Tensor(np.isnan(_array(x)))


def isinf(x: Any) -> Tensor:
    """True where each element is infinite, of either sign: booleans."""
    return Tensor(np.isinf(_array(x)))


def isfinite(x: Any) -> Tensor:
    """True where each element is neither infinite nor NaN: booleans."""
    return Tensor(np.isfinite(_array(x)))


# --- logic ---------------------------------------------------------------------------------------------------------


def logical_and(x: Any, y: Any) -> Tensor:
    """True where x and y both are not 0, elementwise with broadcasting: booleans."""
    return _apply("logical_and", np.logical_and, x, y)


def logical_or(x: Any, y: Any) -> Tensor:
    """True where x, or y, or both are not 0, elementwise with broadcasting: booleans."""
    return _apply("logical_or", np.logical_or, x, y)


def logical_xor(x: Any, y: Any) -> Tensor:
    """True where one of x and y is not 0, and the other is, elementwise with broadcasting: booleans."""
    return _apply("logical_xor", lambda a, b: np.not_equal(np.not_equal(a, 0), np.not_equal(b, 0)), x, y)


def logical_not(x: Any) -> Tensor:
    """True where each element is 0: booleans."""
    return Tensor(np.logical_not(_array(x)))


def _bits(name: str, symbol: str, function: Callable) -> Callable:
    def bitwise(x: Any, y: Any) -> Any:
        if not _is_number(y):
            return NotImplemented
        for one in (x, y):
            dtype = getattr(one, "dtype", type(one))
            if isinstance(one, float) or (isinstance(dtype, np.dtype) and dtype.kind not in "iub"):
                raise DtypeError(
                    f"{symbol}: an operand has dtype {np.dtype(dtype)}; give booleans or whole numbers, such as "
                    f"(x > 0) {symbol} (y > 0)"
                )
        return _apply(name, function, x, y)

    return bitwise


# & | ^ of booleans are logic; of whole numbers, bit by bit.
and_ = _bits("and", "&", np.bitwise_and)
or_ = _bits("or", "|", np.bitwise_or)
xor = _bits("xor", "^", np.bitwise_xor)


def invert(x: Tensor) -> Tensor:
    """~x: not, of booleans; every bit turned over, of whole numbers."""
    if x.dtype.kind not in "iub":
        raise DtypeError(f"~: the operand has dtype {x.dtype}; give booleans or whole numbers, such as ~(x > 0)")
    return Tensor(np.invert(x.data))


def any(x: Any, axis: Any = None, keepdims: bool = False, *, dim: Any = None, keepdim: bool = False) -> Tensor:
    """True where any element over `axis` (an int, a tuple, or None for all) is not 0: booleans."""
    array = np.not_equal(_array(x), 0)
    return Tensor(array.any(axis=choose_axis("any", axis, dim, array.ndim), keepdims=keepdims or keepdim))


def all(x: Any, axis: Any = None, keepdims: bool = False, *, dim: Any = None, keepdim: bool = False) -> Tensor:
    """True where all elements over `axis` (an int, a tuple, or None for all) are not 0: booleans."""
    array = np.not_equal(_array(x), 0)
    return Tensor(array.all(axis=choose_axis("all", axis, dim, array.ndim), keepdims=keepdims or keepdim))
