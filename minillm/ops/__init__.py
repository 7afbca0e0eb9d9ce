"""Differentiable operations. Each file derives its backward, then writes forward and backward as plain functions.

The table at the end is where Tensor gets its operators and methods: the engine knows no operation, and operations
need the engine, so they meet here and nowhere else.
"""

from __future__ import annotations

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.ops import arithmetic as _arithmetic
from minillm.ops import shape as _shape
from minillm.ops.arithmetic import add, clip, div, exp, log, mul, neg, pow, relu, sigmoid, sqrt, sub, tanh, where
from minillm.ops.attention import ATTENTION, attention
from minillm.ops.cross_entropy import CROSS_ENTROPY, cross_entropy
from minillm.ops.dropout import DROPOUT, dropout
from minillm.ops.embedding import EMBEDDING, embedding
from minillm.ops.gelu import GELU, gelu
from minillm.ops.layernorm import ADD_LAYERNORM, LAYERNORM, add_layer_norm, layer_norm
from minillm.ops.linear import LINEAR, linear
from minillm.ops.matmul import MATMUL, matmul
from minillm.ops.mse_loss import mse_loss
from minillm.ops.reduce import MAX, MEAN, SUM, max, mean, sum
from minillm.ops.rmsnorm import RMSNORM, rms_norm
from minillm.ops.rope import ROPE, half_to_interleaved, interleaved_to_half, rope, rope_table
from minillm.ops.shape import broadcast_to, concat, getitem, permute, reshape, split, stack, take, to, transpose
from minillm.ops.silu import SILU, SWIGLU, silu, swiglu
from minillm.ops.softmax import LOG_SOFTMAX, SOFTMAX, log_softmax, softmax

_a, _s = _arithmetic, _shape
# Every operation that computes; `to`, which only moves, has nothing that differences could check.
OPS: tuple[Op, ...] = (
    *(_a.ADD, _a.SUB, _a.MUL, _a.DIV, _a.POW, _a.NEG, _a.EXP, _a.LOG, _a.SQRT, _a.TANH, _a.SIGMOID, _a.RELU),
    *(_a.WHERE, _a.CLIP, SUM, MEAN, MAX, MATMUL),
    *(_s.RESHAPE, _s.TRANSPOSE, _s.GETITEM, _s.TAKE, _s.CONCAT, _s.STACK, _s.SPLIT, _s.BROADCAST),
    *(GELU, SILU, SWIGLU, ROPE, LINEAR, EMBEDDING, SOFTMAX, LOG_SOFTMAX, LAYERNORM, ADD_LAYERNORM, RMSNORM),
    *(DROPOUT, ATTENTION, CROSS_ENTROPY),
)

__all__ = [
    "OPS",
    "add",
    "add_layer_norm",
    "attention",
    "broadcast_to",
    "clip",
    "concat",
    "cross_entropy",
    "div",
    "dropout",
    "embedding",
    "exp",
    "gelu",
    "getitem",
    "half_to_interleaved",
    "interleaved_to_half",
    "layer_norm",
    "linear",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "mean",
    "mse_loss",
    "mul",
    "neg",
    "permute",
    "pow",
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
    "sub",
    "sum",
    "swiglu",
    "take",
    "tanh",
    "to",
    "transpose",
    "where",
]


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
Tensor.exp, Tensor.log, Tensor.sqrt = exp, log, sqrt
Tensor.tanh, Tensor.sigmoid, Tensor.relu = tanh, sigmoid, relu
Tensor.pow, Tensor.clip = pow, clip
Tensor.sum, Tensor.mean, Tensor.max = sum, mean, max
Tensor.matmul = matmul
Tensor.reshape, Tensor.transpose, Tensor.permute = reshape, transpose, permute
Tensor.split, Tensor.take, Tensor.broadcast_to, Tensor.to = split, take, broadcast_to, to
Tensor.softmax, Tensor.log_softmax = softmax, log_softmax
