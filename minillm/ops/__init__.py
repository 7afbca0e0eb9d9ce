# ruff: noqa: F403, F405
"""Differentiable operations. Each file derives its backward, then writes forward and backward as plain functions.

Every file names its public functions in `__all__`, and they are functions of minillm.ops. Tensor gets its operators and
methods here too: the engine knows no operation, and operations need the engine, so they meet here and nowhere else.
A public function becomes a method of Tensor when minillm/methods.py declares its name.

A public function hides the file of its name: `import minillm.ops.gelu as g` gives the function. For what else is in the
file, write `from minillm.ops.gelu import gelu_backward`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from minillm.autograd import Op, Tensor
from minillm.hints import missing_function
from minillm.methods import Methods
from minillm.ops import compare as _c
from minillm.ops import inplace as _i
from minillm.ops.activations import *
from minillm.ops.add_layernorm import add_layer_norm
from minillm.ops.add_low_rank import add_low_rank
from minillm.ops.arithmetic import *
from minillm.ops.attention import attention
from minillm.ops.axes import choose_axis
from minillm.ops.bias_gelu import bias_gelu
from minillm.ops.broadcast import *
from minillm.ops.choice import *
from minillm.ops.compare import *
from minillm.ops.create import *
from minillm.ops.cross_entropy import cross_entropy
from minillm.ops.cumulative import *
from minillm.ops.dropout import dropout
from minillm.ops.einsum import *
from minillm.ops.embedding import embedding
from minillm.ops.exponential import *
from minillm.ops.gather import *
from minillm.ops.gelu import gelu
from minillm.ops.getitem import *
from minillm.ops.index_select import *
from minillm.ops.join import *
from minillm.ops.layernorm import layer_norm
from minillm.ops.linear import linear
from minillm.ops.log_softmax import log_softmax
from minillm.ops.logsumexp import *
from minillm.ops.mask import *
from minillm.ops.matmul import *
from minillm.ops.mse_loss import mse_loss
from minillm.ops.norm import *
from minillm.ops.numpy_protocol import array_function, array_ufunc
from minillm.ops.order import *
from minillm.ops.pad import *
from minillm.ops.power import *
from minillm.ops.reduce import *
from minillm.ops.remainder import *
from minillm.ops.reshape import *
from minillm.ops.rmsnorm import rms_norm
from minillm.ops.roll import *
from minillm.ops.rope import rope
from minillm.ops.rope_table import half_to_interleaved, interleaved_to_half, rope_table
from minillm.ops.rounding import *
from minillm.ops.sample import *
from minillm.ops.silu import silu
from minillm.ops.softmax import softmax
from minillm.ops.split import *
from minillm.ops.swiglu import swiglu
from minillm.ops.to import *
from minillm.ops.transpose import *
from minillm.ops.triangle import *
from minillm.ops.trigonometry import *
from minillm.ops.variance import *

_FILES = [module for name, module in sys.modules.items() if name.startswith("minillm.ops.")]
_OPS = {name: op for file in _FILES for name, op in vars(file).items() if isinstance(op, Op)}
globals().update(_OPS)  # minillm.ops.GELU and its like
OPS: tuple[Op, ...] = tuple(op for op in _OPS.values() if op.name != "to")  # which computes nothing to be checked

__all__ = [
    "OPS", "add_layer_norm", "add_low_rank", "attention", "bias_gelu", "cross_entropy", "dropout", "embedding", "gelu",
    "half_to_interleaved", "interleaved_to_half", "layer_norm", "linear", "log_softmax", "mse_loss", "rms_norm", "rope",
    "rope_table", "silu", "softmax", "swiglu",
]  # fmt: skip
__all__ += [name for file in _FILES for name in getattr(file, "__all__", ())]


def size(x: Tensor, dim: int | None = None) -> Any:
    """The shape as a tuple, or the size of one axis."""
    return x.shape if dim is None else x.shape[choose_axis("size", dim, None, x.ndim)]


def _reflected(function: Callable) -> Callable:
    """The method that Python calls for `y - x` where y is no Tensor."""
    return lambda x, y: function(y, x)


Tensor.__add__ = Tensor.__radd__ = add
Tensor.__sub__, Tensor.__rsub__ = sub, _reflected(sub)
Tensor.__mul__ = Tensor.__rmul__ = mul
Tensor.__truediv__, Tensor.__rtruediv__ = div, _reflected(div)
Tensor.__pow__, Tensor.__rpow__ = pow, _reflected(pow)
Tensor.__matmul__, Tensor.__rmatmul__ = matmul, _reflected(matmul)
Tensor.__neg__ = neg
Tensor.__getitem__ = getitem
for _name in Methods.__annotations__:
    if _name in __all__:
        setattr(Tensor, _name, globals()[_name])
for _name, _dtype in {
    **{"float": "float32", "double": "float64", "half": "float16", "bfloat16": "bfloat16"},
    **{"long": "int64", "int": "int32", "bool": "bool"},
}.items():
    setattr(Tensor, _name, lambda x, dtype=_dtype: to(x, dtype))

# Operators, and methods that differ from the function of their name.
_METHODS: dict[str, Any] = {
    **{"add": _i.scaled(add), "sub": _i.scaled(sub)},
    **{"__floordiv__": floor_divide, "__rfloordiv__": _reflected(floor_divide)},
    **{"__mod__": remainder, "__rmod__": _reflected(remainder)},
    "__pos__": lambda x: x,
    "__abs__": abs,
    "T": property(lambda x: x.permute(tuple(range(x.ndim))[::-1])),
    "mT": property(lambda x: x.transpose(-1, -2)),
    "size": size,
    # comparisons and logic
    **{"__eq__": _c.operator(eq), "__ne__": _c.operator(ne), "__gt__": _c.operator(gt), "__ge__": _c.operator(ge)},
    **{"__lt__": _c.operator(lt), "__le__": _c.operator(le), "__contains__": _c.contains, "__invert__": _c.invert},
    **{"__and__": _c.and_, "__rand__": _c.and_, "__or__": _c.or_, "__ror__": _c.or_},
    **{"__xor__": _c.xor, "__rxor__": _c.xor},
    # in place, where nothing is recorded
    **{"__setitem__": _i.setitem, "copy_": _i.copy_, "fill_": _i.fill_, "zero_": _i.zero_},
    **{"normal_": _i.normal_, "uniform_": _i.uniform_},
    # NumPy's functions
    **{"__array_ufunc__": array_ufunc, "__array_function__": array_function},
}
for _name, _method in _METHODS.items():
    setattr(Tensor, _name, _method)
for _symbol, _name in {
    **{"+": "add", "-": "sub", "*": "mul", "/": "truediv", "//": "floordiv", "%": "mod", "**": "pow", "@": "matmul"},
    **{"&": "and", "|": "or", "^": "xor"},
}.items():  # x += y
    setattr(Tensor, f"__i{_name}__", _i.operator_in_place(_symbol, getattr(Tensor, f"__{_name}__")))
for _name in Methods.__annotations__:  # x.add_(y)
    if _name.endswith("_") and _name not in _METHODS:
        _function = getattr(Tensor, _name[:-1])
        setattr(Tensor, _name, _i.in_place(_name, _function, f"x = x.{_name[:-1]}(...)"))


def __getattr__(name: str) -> Any:
    raise missing_function(name, "minillm.ops", __all__, Tensor)
