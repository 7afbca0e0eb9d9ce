"""Differentiable operations. Each file derives its backward, then writes forward and backward as plain functions.

The table at the end is where Tensor gets its operators and methods: the engine knows no operation, and operations
need the engine, so they meet here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minillm.autograd import Op, Tensor
from minillm.hints import missing_function
from minillm.ops import arithmetic as _arithmetic
from minillm.ops import compare as _c
from minillm.ops import inplace as _i
from minillm.ops import shape as _shape
from minillm.ops.arithmetic import add, clip, div, exp, log, mul, neg, pow, relu, sigmoid, sqrt, sub, tanh, where
from minillm.ops.attention import ATTENTION, attention
from minillm.ops.compare import (
    all,
    allclose,
    any,
    eq,
    equal,
    ge,
    gt,
    isclose,
    isfinite,
    isinf,
    isnan,
    le,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    lt,
    ne,
)
from minillm.ops.cross_entropy import CROSS_ENTROPY, cross_entropy
from minillm.ops.dropout import DROPOUT, dropout
from minillm.ops.embedding import EMBEDDING, embedding
from minillm.ops.gelu import GELU, gelu
from minillm.ops.layernorm import ADD_LAYERNORM, LAYERNORM, add_layer_norm, layer_norm
from minillm.ops.linear import LINEAR, linear
from minillm.ops.matmul import MATMUL, matmul
from minillm.ops.mse_loss import mse_loss
from minillm.ops.numpy_protocol import array_function, array_ufunc
from minillm.ops.reduce import MAX, MEAN, SUM, choose_axis, max, mean, sum
from minillm.ops.remainder import REMAINDER, floor_divide, remainder
from minillm.ops.rmsnorm import RMSNORM, rms_norm
from minillm.ops.rope import ROPE, half_to_interleaved, interleaved_to_half, rope, rope_table
from minillm.ops.shape import broadcast_to, concat, getitem, permute, reshape, split, stack, take, to, transpose
from minillm.ops.silu import SILU, SWIGLU, silu, swiglu
from minillm.ops.softmax import LOG_SOFTMAX, SOFTMAX, log_softmax, softmax

_a, _s = _arithmetic, _shape
# Every operation that computes; `to`, which only moves, has nothing that differences could check.
OPS: tuple[Op, ...] = (
    *(_a.ADD, _a.SUB, _a.MUL, _a.DIV, _a.POW, _a.NEG, _a.EXP, _a.LOG, _a.SQRT, _a.TANH, _a.SIGMOID, _a.RELU),
    *(_a.WHERE, _a.CLIP, REMAINDER, SUM, MEAN, MAX, MATMUL),
    *(_s.RESHAPE, _s.TRANSPOSE, _s.GETITEM, _s.TAKE, _s.CONCAT, _s.STACK, _s.SPLIT, _s.BROADCAST),
    *(GELU, SILU, SWIGLU, ROPE, LINEAR, EMBEDDING, SOFTMAX, LOG_SOFTMAX, LAYERNORM, ADD_LAYERNORM, RMSNORM),
    *(DROPOUT, ATTENTION, CROSS_ENTROPY),
)

__all__ = [
    "OPS",
    "add",
    "add_layer_norm",
    "all",
    "allclose",
    "any",
    "attention",
    "broadcast_to",
    "clip",
    "concat",
    "cross_entropy",
    "div",
    "dropout",
    "embedding",
    "eq",
    "equal",
    "exp",
    "floor_divide",
    "ge",
    "gelu",
    "getitem",
    "gt",
    "half_to_interleaved",
    "interleaved_to_half",
    "isclose",
    "isfinite",
    "isinf",
    "isnan",
    "layer_norm",
    "le",
    "linear",
    "log",
    "log_softmax",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "lt",
    "matmul",
    "max",
    "mean",
    "mse_loss",
    "mul",
    "ne",
    "neg",
    "permute",
    "pow",
    "relu",
    "remainder",
    "reshape",
    "rms_norm",
    "rope",
    "rope_table",
    "sigmoid",
    "silu",
    "softmax",
    "split",
    "sqrt",
    "stack",
    "sub",
    "sum",
    "swiglu",
    "take",
    "tanh",
    "to",
    "transpose",
    "where",
]


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
Tensor.exp, Tensor.log, Tensor.sqrt = exp, log, sqrt
Tensor.tanh, Tensor.sigmoid, Tensor.relu = tanh, sigmoid, relu
Tensor.pow, Tensor.clip = pow, clip
Tensor.sum, Tensor.mean, Tensor.max = sum, mean, max
Tensor.matmul = matmul
Tensor.reshape, Tensor.transpose, Tensor.permute = reshape, transpose, permute
Tensor.split, Tensor.take, Tensor.broadcast_to, Tensor.to = split, take, broadcast_to, to
Tensor.softmax, Tensor.log_softmax = softmax, log_softmax

# What has no declaration in Tensor, because nothing here calls it by that name.
_METHODS: dict[str, Any] = {
    **{"add": _i.scaled(add), "sub": _i.scaled(sub), "mul": mul, "div": div, "neg": neg},
    **{"__floordiv__": floor_divide, "__rfloordiv__": _reflected(floor_divide), "floor_divide": floor_divide},
    **{"__mod__": remainder, "__rmod__": _reflected(remainder), "remainder": remainder},
    "__pos__": lambda x: x,
    "__abs__": lambda x: x.abs(),
    "T": property(lambda x: x.permute(tuple(range(x.ndim))[::-1])),
    "mT": property(lambda x: x.transpose(-1, -2)),
    "size": size,
    # comparisons and logic
    **{"__eq__": _c.operator(eq), "__ne__": _c.operator(ne), "__gt__": _c.operator(gt), "__ge__": _c.operator(ge)},
    **{"__lt__": _c.operator(lt), "__le__": _c.operator(le), "__contains__": _c.contains, "__invert__": _c.invert},
    **{"__and__": _c.and_, "__rand__": _c.and_, "__or__": _c.or_, "__ror__": _c.or_},
    **{"__xor__": _c.xor, "__rxor__": _c.xor, "eq": eq, "ne": ne, "gt": gt, "ge": ge, "lt": lt, "le": le},
    **{"isclose": isclose, "allclose": allclose, "equal": equal, "any": any, "all": all},
    **{"isnan": isnan, "isinf": isinf, "isfinite": isfinite, "logical_not": logical_not},
    **{"logical_and": logical_and, "logical_or": logical_or, "logical_xor": logical_xor},
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
for _name in (
    "add sub mul div pow neg exp log sqrt tanh sigmoid relu clip clamp abs sign square rsqrt masked_fill tril triu "
    "floor_divide remainder eq ne gt ge lt le logical_and logical_or logical_xor logical_not"
).split():  # x.add_(y)
    if hasattr(Tensor, _name):
        setattr(Tensor, f"{_name}_", _i.in_place(f"{_name}_", getattr(Tensor, _name), f"x = x.{_name}(...)"))


def __getattr__(name: str) -> Any:
    raise missing_function(name, "minillm.ops", __all__, Tensor)
