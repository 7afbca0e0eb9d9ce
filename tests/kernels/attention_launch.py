"""Launch the attention kernels on NumPy arrays as minillm.ops does, and the formula that they must agree with."""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np

from minillm import random
from minillm.cuda import attention
from minillm.ops.attention import Dropout

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Problem(NamedTuple):
    """q, dout (B, H, Tq, D); k, v (B, G, Tk, D); lengths (B,)."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    dout: np.ndarray
    lengths: np.ndarray
    causal: bool
    scale: float
    dropout: Dropout | None = None


def forward(problem, out=None):
    q, k, v, _, lengths, *settings = problem
    out = np.empty_like(q) if out is None else out
    lse = np.full(q.shape[:3], np.nan, np.promote_types(q.dtype, np.float32))
    attention.launch("attention_forward", (q, k, v), lengths, (lse,), (out,), *settings)
    return out, lse


def backward_keys(problem, lse, delta, dk, dv):
    sums, outputs = (lse, delta), (dk, dv)
    attention.launch("attention_backward_keys", problem[:4], problem.lengths, sums, outputs, *problem[5:])


def backward_queries(problem, lse, delta, dq):
    sums, outputs = (lse, delta), (dq,)
    attention.launch("attention_backward_queries", problem[:4], problem.lengths, sums, outputs, *problem[5:])


def backward(problem, out, lse, grads):
    dq, dk, dv = grads
    delta = attention.launch_delta(problem.dout, out, lse)
    backward_keys(problem, lse, delta, dk, dv)
    backward_queries(problem, lse, delta, dq)
    return dq, dk, dv


def formula(problem, dtype=np.float64, stored=None):
    """(out, lse, dq, dk, dv) by three passes over all scores, computed in `dtype`; the mask of dropout is NumPy's.

    With `stored`, every array that the passes would keep in memory (S, P, dP, dS) is rounded to it: the formula "in
    bfloat16", as a program without a fused kernel computes it, with products in float32.
    """

    def keep(x):
        return x if stored is None else x.astype(stored).astype(dtype)

    q, k, v, dout = (x.astype(dtype) for x in problem[:4])
    (batch, heads, queries, _), (_, kv_heads, keys, _) = q.shape, k.shape
    group = heads // kv_heads
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    j = np.arange(keys)
    seen = np.broadcast_to((j < problem.lengths[:, None])[:, None, None], (batch, heads, queries, keys))
    if problem.causal:
        seen = seen & (j <= np.arange(queries)[:, None] + keys - queries)
    s = np.where(seen, keep(np.matmul(q, k.swapaxes(-1, -2)) * dtype(problem.scale)), -np.inf)
    largest = s.max(axis=-1, keepdims=True, initial=-np.inf)
    largest[largest == -np.inf] = 0
    p = np.exp(s - largest)
    total = p.sum(axis=-1, keepdims=True)
    none = total == 0
    total[none] = 1
    lse = np.where(none, np.inf, largest + np.log(total))[..., 0]
    p = keep(p / total)
    mask = np.ones((), dtype)
    if problem.dropout:
        chance, seed, counter, elsewhere = problem.dropout
        row = -(-keys // random.BLOCK) * random.BLOCK  # a row begins a block
        item = heads * queries * row + elsewhere * random.BLOCK
        numbers = random.keep_scale(seed, counter, (batch, item), chance, np.dtype(dtype))
        mask = numbers[:, : heads * queries * row].reshape(batch, heads, queries, row)[..., :keys]
    dropped = keep(mask * p)
    out = keep(dropped @ v)
    dv = dropped.swapaxes(-1, -2) @ dout
    dp = mask * keep(dout @ v.swapaxes(-1, -2))
    ds = keep(p * (dp - (dout * out).sum(axis=-1, keepdims=True)))
    dq = ds @ k * dtype(problem.scale)
    dk = ds.swapaxes(-1, -2) @ q * dtype(problem.scale)
    dk, dv = (x.reshape(batch, kv_heads, group, keys, -1).sum(axis=2) for x in (dk, dv))
    return out, lse, keep(dq), keep(dk), keep(dv)
