"""The behavior of NumPy's functions on a Tensor. NumPy asks the two methods below.

- A ufunc that is an operator or an operation here is that: `array * x` is `ops.mul(array, x)` and `np.exp(x)` is
  `x.exp()`, tensors with a gradient.
- Every other function computes with the arrays, and returns arrays, if no tensor among its arguments needs a gradient;
  one that does would lose it, and that is an error that says what to write. So it is for np.asarray(x).

Where nothing is recorded, under `no_grad()`, no tensor needs a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minillm import hints
from minillm.autograd import Tensor, is_grad_enabled
from minillm.errors import GraphError

# NumPy's ufuncs by name, and the method of Tensor that is the same function.
UFUNCS = {
    "add": "__add__",
    "subtract": "__sub__",
    "multiply": "__mul__",
    "divide": "__truediv__",
    "power": "__pow__",
    "matmul": "__matmul__",
    "floor_divide": "__floordiv__",
    "remainder": "__mod__",
    "negative": "__neg__",
    "positive": "__pos__",
    "absolute": "__abs__",
    "equal": "eq",
    "not_equal": "ne",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "bitwise_and": "__and__",
    "bitwise_or": "__or__",
    "bitwise_xor": "__xor__",
    "invert": "__invert__",
}
UFUNCS |= {
    name: name
    for name in "exp log sqrt tanh maximum minimum sign square sin cos log1p expm1 logical_and logical_or logical_xor "
    "logical_not isnan isinf isfinite".split()
}
# Functions of shapes and places alone, or whose results change in jumps: they have no gradient that could be lost.
WITHOUT_GRADIENT = frozenset(
    "shape ndim size result_type can_cast may_share_memory shares_memory iscomplexobj isrealobj zeros_like ones_like "
    "empty_like full_like array_repr array_str array2string argmax argmin argsort nonzero flatnonzero argwhere "
    "count_nonzero array_equal array_equiv allclose isclose any all searchsorted digitize histogram bincount "
    "floor ceil rint trunc round around fix isneginf isposinf isin isreal signbit lexsort "
    "save savez savez_compressed savetxt".split()
)
WRITERS = frozenset("copyto put place putmask fill_diagonal put_along_axis".split())


def array_ufunc(self: Tensor, ufunc: Any, method: str, *inputs: Any, **settings: Any) -> Any:
    """Tensor.__array_ufunc__: `np.exp(x)`, `array * x`, `np.add.reduce(x)`, `array += x`."""
    ours = getattr(Tensor, UFUNCS.get(ufunc.__name__, ""), None)
    if method == "__call__" and not settings and ours is not None:
        return ours(*inputs)
    name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
    if "out" in settings:
        if any(isinstance(out, Tensor) for out in settings["out"]):
            raise GraphError(f"np.{name}: out= is a tensor; write x[...] = values under minillm.no_grad()")
        instead = "; the result has no place in an array: write a = a + x for a += x, or x.detach()"
    else:
        instead = hints.numpy_instead(name, Tensor)
    return getattr(ufunc, method)(*_arrays(name, instead, inputs), **_arrays(name, instead, settings))


def array_function(self: Tensor, function: Callable, types: Any, args: tuple, settings: dict) -> Any:
    """Tensor.__array_function__: `np.sum(x)`, `np.concatenate([x, y])`."""
    name = function.__name__
    if name in WRITERS and args and isinstance(args[0], Tensor):
        raise GraphError(
            f"np.{name}: the array to write into is a tensor; write x[...] = values under minillm.no_grad()"
        )
    if "linalg" in (getattr(function, "__module__", None) or ""):
        name = f"linalg.{name}"
    instead = hints.numpy_instead(name, Tensor)
    return function(*_arrays(name, instead, args), **_arrays(name, instead, settings))


def _arrays(name: str, instead: str, value: Any) -> Any:
    """Tensors as arrays, in lists, tuples and dicts too."""
    if isinstance(value, Tensor):
        if value.requires_grad and is_grad_enabled() and name not in WITHOUT_GRADIENT:
            ways = f"{instead}, or x.detach() for its values" if instead else "; give x.detach(), for its values"
            raise GraphError(f"np.{name}: a tensor that needs a gradient would lose it in NumPy{ways}")
        return value.data
    if isinstance(value, (list, tuple)) and any(isinstance(one, (Tensor, list, tuple)) for one in value):
        return type(value)(_arrays(name, instead, one) for one in value)
    if isinstance(value, dict):
        return {key: _arrays(name, instead, one) for key, one in value.items()}
    return value
