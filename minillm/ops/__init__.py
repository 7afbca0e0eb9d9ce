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
from minillm.ops import create as _create
from minillm.ops import elementwise as _elementwise
from minillm.ops import index as _index
from minillm.ops import inplace as _i
from minillm.ops import order as _order
from minillm.ops import rearrange as _rearrange
from minillm.ops import shape as _shape
from minillm.ops.add_layernorm import ADD_LAYERNORM, add_layer_norm
from minillm.ops.arithmetic import (
    add,
    clamp_max,
    clamp_min,
    clip,
    div,
    exp,
    log,
    mul,
    neg,
    pow,
    relu,
    sigmoid,
    sqrt,
    sub,
    tanh,
    where,
)
from minillm.ops.attention import ATTENTION, attention
from minillm.ops.bias_gelu import BIAS_GELU, bias_gelu
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
from minillm.ops.create import *  # noqa: F403
from minillm.ops.cross_entropy import CROSS_ENTROPY, cross_entropy
from minillm.ops.cumulative import CUMPROD, CUMSUM, PROD, cumprod, cumsum, prod
from minillm.ops.dropout import DROPOUT, dropout
from minillm.ops.einsum import EINSUM, einsum
from minillm.ops.elementwise import *  # noqa: F403
from minillm.ops.embedding import EMBEDDING, embedding
from minillm.ops.gelu import GELU, gelu
from minillm.ops.index import *  # noqa: F403
from minillm.ops.layernorm import LAYERNORM, layer_norm
from minillm.ops.linear import LINEAR, linear
from minillm.ops.log_softmax import LOG_SOFTMAX, log_softmax
from minillm.ops.matmul import MATMUL, addmm, baddbmm, bmm, dot, matmul, mm, mv, outer
from minillm.ops.mse_loss import mse_loss
from minillm.ops.numpy_protocol import array_function, array_ufunc
from minillm.ops.order import *  # noqa: F403
from minillm.ops.rearrange import *  # noqa: F403
from minillm.ops.reduce import AMAX, AMIN, MEAN, SUM, amax, amin, choose_axis, mean, sum
from minillm.ops.remainder import REMAINDER, floor_divide, remainder
from minillm.ops.rmsnorm import RMSNORM, rms_norm
from minillm.ops.rope import ROPE, rope
from minillm.ops.rope_table import half_to_interleaved, interleaved_to_half, rope_table
from minillm.ops.shape import broadcast_to, concat, getitem, index_select, permute, reshape, split, stack, to, transpose
from minillm.ops.silu import SILU, silu
from minillm.ops.softmax import SOFTMAX, softmax
from minillm.ops.swiglu import SWIGLU, swiglu
from minillm.ops.variance import LOGSUMEXP, NORM, STD, VAR, logsumexp, norm, std, var

clamp, cat, concatenate, swapaxes, swapdims = clip, concat, concat, transpose, transpose

_a, _s, _e, _r = _arithmetic, _shape, _elementwise, _rearrange
# Every operation that computes; `to`, which only moves, has nothing that differences could check.
OPS: tuple[Op, ...] = (
    *(_a.ADD, _a.SUB, _a.MUL, _a.DIV, _a.POW, _a.NEG, _a.EXP, _a.LOG, _a.SQRT, _a.TANH, _a.SIGMOID, _a.RELU),
    *(_a.WHERE, _a.CLIP, REMAINDER, SUM, MEAN, AMAX, AMIN, MATMUL),
    *(_e.ABS, _e.SIGN, _e.FLOOR, _e.CEIL, _e.ROUND, _e.TRUNC, _e.SIN, _e.COS, _e.LOG2, _e.LOG10, _e.LOG1P, _e.EXPM1),
    *(_e.ERF, _e.SOFTPLUS, _e.MAXIMUM, _e.MINIMUM, CUMSUM, CUMPROD, PROD, VAR, STD, NORM, LOGSUMEXP, EINSUM),
    *(_s.RESHAPE, _s.TRANSPOSE, _s.GETITEM, _s.INDEX_SELECT, _s.CONCAT, _s.STACK, _s.SPLIT, _s.BROADCAST),
    *(_index.GATHER, _index.SCATTER, _index.SCATTER_ADD, _r.CLONE, _r.ROLL, _r.PAD, _r.TRIL, _r.TRIU),
    *(GELU, BIAS_GELU, SILU, SWIGLU, ROPE, LINEAR, EMBEDDING, SOFTMAX, LOG_SOFTMAX, LAYERNORM, ADD_LAYERNORM, RMSNORM),
    *(DROPOUT, ATTENTION, CROSS_ENTROPY),
)

__all__ = [
    "OPS",
    "add",
    "add_layer_norm",
    "addmm",
    "all",
    "allclose",
    "amax",
    "amin",
    "any",
    "attention",
    "baddbmm",
    "bias_gelu",
    "bmm",
    "broadcast_to",
    "cat",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clip",
    "concat",
    "concatenate",
    "cross_entropy",
    "cumprod",
    "cumsum",
    "div",
    "dot",
    "dropout",
    "einsum",
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
    "index_select",
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
    "logsumexp",
    "lt",
    "matmul",
    "mean",
    "mm",
    "mse_loss",
    "mul",
    "mv",
    "ne",
    "neg",
    "norm",
    "outer",
    "permute",
    "pow",
    "prod",
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
    "std",
    "sub",
    "sum",
    "swapaxes",
    "swapdims",
    "swiglu",
    "tanh",
    "to",
    "transpose",
    "var",
    "where",
]
__all__ += _create.__all__
__all__ += _elementwise.__all__
__all__ += _index.__all__
__all__ += _order.__all__
__all__ += _rearrange.__all__


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
# Functions that are methods too, under the same name; each is declared in minillm/methods.py.
_FUNCTIONS = """
    exp log sqrt tanh sigmoid relu pow clip clamp abs absolute sign floor ceil round trunc sin cos log2 log10 log1p
    expm1 exp2 erf square reciprocal rsqrt maximum minimum lerp logit logaddexp sum mean max min amax amin argmax
    argmin prod cumsum var std norm logsumexp count_nonzero sort argsort topk median matmul dot mv mm bmm outer
    addmm baddbmm softmax log_softmax reshape view view_as reshape_as transpose swapaxes swapdims permute movedim t
    flatten ravel unflatten squeeze unsqueeze split chunk unbind broadcast_to expand expand_as repeat tile
    repeat_interleave flip roll tril triu diagonal diag trace clone contiguous to take index_select gather scatter
    scatter_add index_add take_along_dim select narrow masked_fill masked_select nonzero bernoulli multinomial tan
    clamp_min clamp_max cumprod moveaxis
"""
for _name in _FUNCTIONS.split():
    setattr(Tensor, _name, globals()[_name])
for _name, _dtype in {
    **{"float": "float32", "double": "float64", "half": "float16", "bfloat16": "bfloat16"},
    **{"long": "int64", "int": "int32", "bool": "bool"},
}.items():
    setattr(Tensor, _name, lambda x, dtype=_dtype: to(x, dtype))

# Operators, and methods that differ from the function of their name.
_METHODS: dict[str, Any] = {
    **{"add": _i.scaled(add), "sub": _i.scaled(sub), "mul": mul, "div": div, "neg": neg},
    **{"__floordiv__": floor_divide, "__rfloordiv__": _reflected(floor_divide), "floor_divide": floor_divide},
    **{"__mod__": remainder, "__rmod__": _reflected(remainder), "remainder": remainder},
    "__pos__": lambda x: x,
    "__abs__": abs,
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
    setattr(Tensor, f"{_name}_", _i.in_place(f"{_name}_", getattr(Tensor, _name), f"x = x.{_name}(...)"))


def __getattr__(name: str) -> Any:
    raise missing_function(name, "minillm.ops", __all__, Tensor)
