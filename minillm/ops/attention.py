"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762), for one head:

    Q (Tq, D), K (Tk, D), V (Tk, E)         Tq queries, Tk keys; D channels of a query or key, E of a value
    S = scale Q K^T + bias     (Tq, Tk)     scale = 1 / sqrt(D); S = -inf where a query may not see a key
    P = softmax(S)             (Tq, Tk)     by rows; 0 for a query that sees no key
    Y = (M P) V                (Tq, E)      M P element by element. M_ij is 0 for a dropped weight and
                                            1/(1 - dropout_p) otherwise; without dropout M = 1

Backward, line by line from the end:

    Y = (M P) V     dV = (M P)^T dY                     dP = M (dY V^T)                     (Tk, E), (Tq, Tk)
    P = softmax(S)  dS_ij = P_ij (dP_ij - delta_i)      delta_i = sum_j P_ij dP_ij          (Tq, Tk), (Tq, 1)
    S = scale Q K^T dQ = scale dS K                     dK = scale dS^T Q                   (Tq, D), (Tk, D)

The arrays below have B batch items and heads in front. Grouped heads (Ainslie et al. 2023, arXiv:2305.13245): H query
heads share G kv heads, H/G neighbours each. So K and V of a kv head serve several query heads, and dK and dV are the
sums over these.

The fast pair and the kernels keep nothing of size (Tq, Tk): delta_i is also dY_i . Y_i, and P can be made again from
one number per row, lse_i = log sum_j exp(S_ij) (FlashAttention, Dao et al. 2022, arXiv:2205.14135). This pair keeps P,
and with dropout M, to be looked at.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minillm import random
from minillm.autograd import Op, Tensor, snapshot
from minillm.backend import Array, as_array, matmul
from minillm.device import like
from minillm.errors import DtypeError, ShapeError, check_floating, check_index, check_shapes
from minillm.ops.broadcast import broadcast_to
from minillm.ops.dropout import check_probability


class Dropout(NamedTuple):
    """The place of the dropout mask M in the random stream.

    A counter block is 8 random numbers (random.py); every row of M begins with a new block.
    """

    p: float  # dropout_p, the probability that a weight is zeroed
    seed: int
    counter: int  # first counter block
    # number of counter blocks to skip after each batch item; they belong to the heads of other processes
    skipped_blocks: int = 0


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    q: Array  # (B, H, Tq, D)
    k: Array  # (B, G, Tk, D)
    v: Array  # (B, G, Tk, E)
    p: Array  # (B, H, Tq, Tk)
    m: Any  # (B, H, Tq, Tk), or 1
    scale: float


def attention_forward(q, k, v, mask, *, lengths, causal, scale, dropout, starts=None):
    k_shared, v_shared = share_heads(k, q), share_heads(v, q)  # (B, H, Tk, D), (B, H, Tk, E)
    visible = visible_keys(q, k, mask, lengths, causal, starts)  # broadcasts to (B, H, Tq, Tk)
    bias = 0 if mask is None or mask.dtype == bool else mask.astype(q.dtype, copy=False)  # (B, H, Tq, Tk) or 0
    m = 1 if dropout is None else dropout_mask(dropout, q, k)  # (B, H, Tq, Tk) or 1
    s = np.where(visible, scale * matmul(q, k_shared.swapaxes(-1, -2)) + bias, -np.inf)  # (B, H, Tq, Tk)
    p = softmax(s)  # (B, H, Tq, Tk)
    y = matmul(m * p, v_shared)  # (B, H, Tq, E)
    return y, Saved(q, k, v, p, m, scale)


def attention_backward(dy, saved):
    q, k, v, p, m, scale = saved
    k_shared, v_shared = share_heads(k, q), share_heads(v, q)  # (B, H, Tk, D), (B, H, Tk, E)
    dv_shared = matmul((m * p).swapaxes(-1, -2), dy)  # (B, H, Tk, E)
    dp = m * matmul(dy, v_shared.swapaxes(-1, -2))  # (B, H, Tq, Tk)
    delta = (p * dp).sum(axis=-1, keepdims=True)  # (B, H, Tq, 1)
    ds = p * (dp - delta)  # (B, H, Tq, Tk)
    dq = scale * matmul(ds, k_shared)  # (B, H, Tq, D)
    dk_shared = scale * matmul(ds.swapaxes(-1, -2), q)  # (B, H, Tk, D)
    dk, dv = sum_heads(dk_shared, k), sum_heads(dv_shared, v)  # (B, G, Tk, D), (B, G, Tk, E)
    return dq, dk, dv, None


def softmax(s: Array) -> Array:
    """exp(s) / sum(exp(s)) by rows; 0 in a row that is -inf throughout, or empty."""
    if s.shape[-1] == 0:
        return s
    largest = s.max(axis=-1, keepdims=True)  # (..., Tq, 1)
    e = np.exp(s - np.where(largest == -np.inf, 0, largest))  # (..., Tq, Tk), at most 1: exp does not overflow
    total = e.sum(axis=-1, keepdims=True)  # (..., Tq, 1)
    return e / np.where(total == 0, 1, total)  # (..., Tq, Tk)


def share_heads(x: Array, q: Array) -> Array:
    """Keys (B, G, Tk, D), each kv head repeated for the query heads that share it: (B, H, Tk, D); values likewise."""
    return np.repeat(x, q.shape[1] // x.shape[1], axis=1)


def sum_heads(dx: Array, x: Array) -> Array:
    """Gradients (B, H, Tk, D or E), summed over the query heads that share a kv head, in the shape of x."""
    batch, kv_heads, keys, channels = x.shape
    return dx.reshape(batch, kv_heads, dx.shape[1] // kv_heads, keys, channels).sum(axis=2)  # (B, G, Tk, D or E)


def visible_keys(
    q: Array, k: Array, mask: Array | None, lengths: Array | None, causal: bool, starts: Array | None
) -> Array:
    """True where a query may see a key, in a shape that broadcasts to (B, H, Tq, Tk)."""
    i = np.arange(q.shape[2], like=q)[:, None]  # (Tq, 1), the numbers of the queries
    j = np.arange(k.shape[2], like=q)  # (Tk,), the numbers of the keys
    visible = np.ones_like(q, shape=(q.shape[2], k.shape[2]), dtype=bool)  # (Tq, Tk)
    if causal:  # the last query sees every key, also where a cache holds more keys than there are queries
        visible = visible & (j <= i + len(j) - len(i))  # (Tq, Tk)
    if lengths is not None:
        visible = visible & (j < lengths[:, None, None, None])  # (B, 1, Tq, Tk)
    if starts is not None:
        visible = visible & (j >= starts[:, None, :, None])  # (B, 1, Tq, Tk)
    if mask is not None and mask.dtype == bool:
        visible = visible & mask  # (B, H, Tq, Tk)
    return visible


def dropout_mask(dropout: Dropout, q: Array, k: Array) -> Array:
    """M, (B, H, Tq, Tk). The random numbers of other processes' heads are skipped."""
    (batch, heads, queries, _), keys = q.shape, k.shape[2]
    row = -(-keys // random.BLOCK) * random.BLOCK  # random numbers for a row of M, which begins with a new block
    item = heads * queries * row  # random numbers for a batch item
    shape = (batch, item + dropout.skipped_blocks * random.BLOCK)
    factors = random.keep_scale(dropout.seed, dropout.counter, shape, dropout.p, q.dtype)  # 0 or 1/(1 - p)
    return like(factors[:, :item].reshape(batch, heads, queries, row)[..., :keys], q)  # (B, H, Tq, Tk)


ATTENTION = Op("attention", attention_forward, attention_backward)  # faster pairs: fast/attention.py, cuda/attention.py


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    mask: Any = None,
    *,
    lengths: Any = None,
    starts: Any = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax(scale Q K^T + mask) V for every head.

    Shapes: q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, E) with G dividing H; result (B, H, Tq, E). A tensor with
        B = 1 is broadcast over the batch. Where all three are (B, T, D) or (T, D), there is one head.
    mask: broadcastable to (B, H, Tq, Tk). Boolean: True where a query may see a key. Floating: added to the scores;
        it gets no gradient.
    causal: query i sees keys up to i + Tk - Tq. scale: 1/sqrt(D) by default.
    lengths: (B,), whole numbers from 0 to Tk: the queries of batch item b see its first lengths[b] keys only, and the
        rest is padding. A mask (B, 1, 1, Tk) could say that too, but kernels take lengths, and no mask.
    starts: (B, Tq), whole numbers from 0 to Tk: query i of batch item b sees no key before starts[b, i]. Several texts
        in one sequence are kept apart, where each query has the first position of its own text and attention is causal.
        The fast pair leaves out the keys that no query of a block sees; kernels do not take starts.
    dropout_p: the probability with which each weight is zeroed; the others are scaled by 1/(1 - dropout_p).
    Saves: references to q, k, v, mask and the output, and one number per query. The plain pair keeps q, k, v and P, and
        with dropout M.
    Raises: ShapeError for sizes that do not fit; DtypeError for a mask that is neither boolean nor floating, or
        lengths or starts that are no integers; InputError for one outside 0 to Tk (not looked for on a GPU, where more
        than Tk counts as Tk), dropout_p outside [0, 1), or more batch items or heads than random.part declared.
    Source: Vaswani et al. 2017, equation 1; Dao et al. 2022, algorithm 4 for the backward.
    """
    mask, lengths, starts = (x.data if isinstance(x, Tensor) else _as_optional(x) for x in (mask, lengths, starts))
    if q.ndim == k.ndim == v.ndim and q.ndim in (2, 3):  # one head
        if mask is not None and mask.ndim == 3:
            mask = mask[:, None]  # (B, 1, Tq, Tk)
        q4, k4, v4 = (x.reshape(*x.shape[:-2], *(1,) * (4 - x.ndim), *x.shape[-2:]) for x in (q, k, v))  # (B, 1, T, D)
        hidden = dict(lengths=lengths, starts=starts)
        y = attention(q4, k4, v4, causal, mask, **hidden, scale=scale, dropout_p=dropout_p)  # (B, 1, Tq, E)
        return y.reshape(*y.shape[: q.ndim - 2], *y.shape[2:])  # (B, Tq, E) or (Tq, E)
    q, k, v = _with_one_batch(q, k, v)
    hidden = dict(lengths=("B", lengths), starts=("B Tq", starts))
    sizes = check_shapes("attention", q=("B H Tq D", q), k=("B G Tk D", k), v=("B G Tk E", v), **hidden)
    if sizes["G"] == 0 or sizes["H"] % sizes["G"]:
        raise ShapeError(f"attention: q has H={sizes['H']} heads, which {sizes['G']} kv heads do not divide")
    check_floating("attention", q=q, k=k, v=v)
    if sizes["D"] == 0 or sizes["E"] == 0:
        raise ShapeError(f"attention: q has D={sizes['D']} and v E={sizes['E']} channels per head; give at least one")
    if mask is not None:
        mask = _checked_mask(mask, q.data, tuple(sizes[name] for name in ("B", "H", "Tq", "Tk")))
    lengths, starts = (
        _checked_places(name, x, sizes["Tk"], q.data) for name, x in (("lengths", lengths), ("starts", starts))
    )
    check_probability("attention", dropout_p)
    dropout = _reserve_mask(q.shape, sizes["Tk"], dropout_p) if dropout_p else None
    scale = 1 / math.sqrt(sizes["D"]) if scale is None else float(scale)
    return ATTENTION(q, k, v, mask, lengths=lengths, causal=causal, scale=scale, dropout=dropout, starts=starts)


def _as_optional(x: Any) -> Array | None:
    """The array of x; None if x is None."""
    return None if x is None else as_array(x)


def _checked_places(name: str, places: Array | None, most: int, q: Array) -> Array | None:
    """Whole numbers from 0 to `most`, where q is, as kernels take them; None if there are none."""
    if places is None:
        return None
    check_index("attention", places, most + 1, name)
    return like(places.astype(np.int32, order="C"), q)


def _with_one_batch(*tensors: Tensor) -> list[Tensor]:
    """The tensors, each with the batch of the largest; a tensor with B = 1 is broadcast."""
    batch = max((x.shape[0] for x in tensors if x.ndim == 4), default=1)
    return [broadcast_to(x, batch, *x.shape[1:]) if x.ndim == 4 and x.shape[0] == 1 < batch else x for x in tensors]


def _checked_mask(mask: Array, q: Array, wanted: tuple[int, ...]) -> Array:
    """The mask, where q is, stretched to (B, H, Tq, Tk)."""
    if mask.dtype.kind not in "bf":
        raise DtypeError(f"attention: mask has dtype {mask.dtype}; give bool (True = visible) or a float bias")
    mask = like(snapshot(mask), q)  # copied while it is small: stretched, it is as large as P
    try:
        mask = np.broadcast_to(mask, wanted)
    except ValueError:
        raise ShapeError(f"attention: mask has shape {mask.shape}, which does not broadcast to {wanted}") from None
    return mask


def _reserve_mask(shape: tuple[int, ...], keys: int, p: float) -> Dropout:
    """Reserve the random numbers of M, (B, H, Tq, Tk), for queries of this shape (B, H, Tq, D).

    Inside random.part, this reserves those of the whole M and returns the place of this part.
    """
    first_item, items = random.default.rows_of("attention", shape)
    first_head, heads = random.default.heads_of(shape)
    head_blocks = shape[2] * -(-keys // random.BLOCK)  # counter blocks for a head
    seed, counter = random.default.reserve(items * heads * head_blocks * random.BLOCK)
    counter += (first_item * heads + first_head) * head_blocks
    return Dropout(p, seed, counter, skipped_blocks=(heads - shape[1]) * head_blocks)
