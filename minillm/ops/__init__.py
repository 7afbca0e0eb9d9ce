"""Differentiable operations. Each file derives its backward, then writes forward and backward as plain functions.

The table at the end is where Tensor gets its operators and methods: the engine knows no operation, and operations
need the engine, so they meet here and nowhere else.
"""

from __future__ import annotations

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.ops import arithmetic as _arithmetic
from minillm.ops import create as _create
from minillm.ops import elementwise as _elementwise
from minillm.ops import index as _index
from minillm.ops import order as _order
from minillm.ops import rearrange as _rearrange
from minillm.ops import shape as _shape
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
from minillm.ops.create import *  # noqa: F403
from minillm.ops.cross_entropy import CROSS_ENTROPY, cross_entropy
from minillm.ops.cumulative import CUMPROD, CUMSUM, PROD, cumprod, cumsum, prod
from minillm.ops.dropout import DROPOUT, dropout
from minillm.ops.einsum import EINSUM, einsum
from minillm.ops.elementwise import *  # noqa: F403
from minillm.ops.embedding import EMBEDDING, embedding
from minillm.ops.gelu import GELU, gelu
from minillm.ops.index import *  # noqa: F403
from minillm.ops.layernorm import ADD_LAYERNORM, LAYERNORM, add_layer_norm, layer_norm
from minillm.ops.linear import LINEAR, linear
from minillm.ops.matmul import MATMUL, addmm, baddbmm, bmm, dot, matmul, mm, mv, outer
from minillm.ops.order import *  # noqa: F403
from minillm.ops.rearrange import *  # noqa: F403
from minillm.ops.reduce import AMAX, AMIN, MEAN, SUM, amax, amin, mean, sum
from minillm.ops.rmsnorm import RMSNORM, rms_norm
from minillm.ops.rope import ROPE, half_to_interleaved, interleaved_to_half, rope, rope_table
from minillm.ops.shape import broadcast_to, concat, getitem, index_select, permute, reshape, split, stack, to, transpose
from minillm.ops.silu import SILU, SWIGLU, silu, swiglu
from minillm.ops.softmax import LOG_SOFTMAX, SOFTMAX, log_softmax, softmax
from minillm.ops.variance import LOGSUMEXP, NORM, STD, VAR, logsumexp, norm, std, var

clamp, cat, concatenate, swapaxes, swapdims = clip, concat, concat, transpose, transpose

_a, _s, _e, _r = _arithmetic, _shape, _elementwise, _rearrange
# Every operation that computes; `to`, which only moves, has nothing that differences could check.
OPS: tuple[Op, ...] = (
    *(_a.ADD, _a.SUB, _a.MUL, _a.DIV, _a.POW, _a.NEG, _a.EXP, _a.LOG, _a.SQRT, _a.TANH, _a.SIGMOID, _a.RELU),
    *(_a.WHERE, _a.CLIP, SUM, MEAN, AMAX, AMIN, MATMUL),
    *(_e.ABS, _e.SIGN, _e.FLOOR, _e.CEIL, _e.ROUND, _e.TRUNC, _e.SIN, _e.COS, _e.LOG2, _e.LOG10, _e.LOG1P, _e.EXPM1),
    *(_e.ERF, _e.SOFTPLUS, _e.MAXIMUM, _e.MINIMUM, CUMSUM, CUMPROD, PROD, VAR, STD, NORM, LOGSUMEXP, EINSUM),
    *(_s.RESHAPE, _s.TRANSPOSE, _s.GETITEM, _s.INDEX_SELECT, _s.CONCAT, _s.STACK, _s.SPLIT, _s.BROADCAST),
    *(_index.GATHER, _index.SCATTER, _index.SCATTER_ADD, _r.CLONE, _r.ROLL, _r.PAD, _r.TRIL, _r.TRIU),
    *(GELU, SILU, SWIGLU, ROPE, LINEAR, EMBEDDING, SOFTMAX, LOG_SOFTMAX, LAYERNORM, ADD_LAYERNORM, RMSNORM),
    *(DROPOUT, ATTENTION, CROSS_ENTROPY),
)

__all__ = [
    "OPS",
    "add",
    "add_layer_norm",
    "addmm",
    "amax",
    "amin",
    "attention",
    "baddbmm",
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
    "exp",
    "gelu",
    "getitem",
    "half_to_interleaved",
    "index_select",
    "interleaved_to_half",
    "layer_norm",
    "linear",
    "log",
    "log_softmax",
    "logsumexp",
    "matmul",
    "mean",
    "mm",
    "mul",
    "mv",
    "neg",
    "norm",
    "outer",
    "permute",
    "pow",
    "prod",
    "relu",
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


def _reflected_sub(y, x):
    return _a.SUB(*_a.operands(x, y))


def _reflected_div(y, x):
    return _a.DIV(*_a.operands(x, y))


def _reflected_pow(y, x):
    return _a.POW(*_a.operands(x, y))


def _reflected_matmul(b, a):
    a, b = _a.operands(a, b)
    return MATMUL(Tensor(a), b)


def _compare(function):
    def compare(x, y):
        x, y = _a.operands(x, y)
        return Tensor(function(x.data, y.data if isinstance(y, Tensor) else y))

    return compare


Tensor.__add__ = Tensor.__radd__ = add
Tensor.__sub__, Tensor.__rsub__ = sub, _reflected_sub
Tensor.__mul__ = Tensor.__rmul__ = mul
Tensor.__truediv__, Tensor.__rtruediv__ = div, _reflected_div
Tensor.__pow__, Tensor.__rpow__ = pow, _reflected_pow
Tensor.__matmul__, Tensor.__rmatmul__ = matmul, _reflected_matmul
Tensor.__neg__ = neg
Tensor.__getitem__ = getitem
Tensor.__gt__, Tensor.__ge__ = _compare(np.greater), _compare(np.greater_equal)
Tensor.__lt__, Tensor.__le__ = _compare(np.less), _compare(np.less_equal)
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
