"""Attention, a block of queries at a time, so that nothing of size (Tq, Tk) is ever kept.

The forward saves one number per query, lse_i = log sum_j exp(S_ij), and the backward makes P again from it, block by
block: P_ij = exp(S_ij - lse_i). Nor does delta need P: delta_i = sum_j P_ij M_ij (dY_i . V_j) = dY_i . Y_i, with M = 1
without dropout (FlashAttention, Dao et al. 2022, arXiv:2205.14135). The formulas are those of ops/attention.py. These
things differ:

- Causal: blocks beyond the diagonal are never computed: half the work.
- Grouped heads: N query heads that share a kv head are N times as many rows against the same keys, so the products that
  make dK and dV sum over them. A block has the shape (b, g, N rows, ...) for b batch items and g kv heads.
- The dropout mask M is drawn again in the backward.
- With starts, a block leaves out the keys before the first that one of its queries sees: texts that share a sequence
  cost what they would cost apart.

It runs on a GPU too, where there is no kernel (cuda/attention.py): all heads at once, queries in blocks still.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minillm import backend, random
from minillm.backend import Array
from minillm.device import is_on_gpu, like
from minillm.ops.attention import Dropout
from minillm.sums import FEW, row_sums, vecdot

QUERY_BLOCK = 64  # queries at a time
SCORE_BYTES = 512 * 1024  # scores held at a time, on each thread


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    q: Array  # (B, H, Tq, D)
    k: Array  # (B, G, Tk, D)
    v: Array  # (B, G, Tk, E)
    mask: Array | None  # (B, H, Tq, Tk)
    lengths: Array | None  # (B,), int32
    y: Array  # (B, H, Tq, E)
    lse: Array  # (B, H, Tq); infinity for a query that sees no key, so that its P is 0
    causal: bool
    scale: float
    dropout: Dropout | None
    starts: Array | None  # (B, Tq), int32


class Part(NamedTuple):
    """Some batch items and kv heads, and of each array what belongs to them, query heads by their kv head."""

    items: slice
    kv_heads: slice
    k: Array  # (b, g, Tk, D)
    v: Array  # (b, g, Tk, E)
    by_query: tuple[Array, ...]  # arrays (B, H, Tq, ...) as (b, g, N, Tq, ...)


def forward(q, k, v, mask, *, lengths, causal, scale, dropout, starts=None):
    """y (B, H, Tq, E) of q (B, H, Tq, D), k (B, G, Tk, D) and v (B, G, Tk, E)."""
    y = np.empty_like(q, shape=(*q.shape[:3], v.shape[3]))  # in the memory order of q: undoing a transpose is free
    lse = np.empty_like(q, shape=q.shape[:3])
    saved = Saved(q, k, v, mask, lengths, y, lse, causal, scale, dropout, starts)
    if q.size == 0 or k.size == 0:  # no query, or no key to see
        y[...] = 0
        return y, saved
    for_parts(functools.partial(_forward_of_part, saved), saved, (q, y, lse))
    return y, saved


def _forward_of_part(saved: Saved, part: Part) -> None:
    """Fill y and lse for the batch items and the heads of a part, one block of queries after another."""
    queries, y, lse = part.by_query  # (b, g, N, Tq, D), (b, g, N, Tq, E), (b, g, N, Tq)
    for rows, visible in _blocks_of(saved):  # R = N rows: a block's queries, for all query heads of a kv head
        keys = seen_keys(saved, part, rows, visible)  # some of them
        s, _ = scores(saved, part, queries, rows, keys)  # (b, g, R, keys)
        largest = backend.row_max(s)  # (b, g, R, 1)
        largest[largest == -np.inf] = 0
        shifted = np.subtract(s, largest, out=s)
        e = np.exp(shifted, out=shifted)  # (b, g, R, keys)
        total = row_sums(e)  # (b, g, R, 1)
        sees_none = total == 0  # (b, g, R, 1)
        total[sees_none] = 1
        lse_of_rows = np.log(total) + largest  # (b, g, R, 1)
        lse_of_rows[sees_none] = np.inf
        dropped = np.multiply(e, dropout_mask(saved, part, rows, keys), out=e) if saved.dropout else e
        weighted_sum = backend.matmul(dropped, part.v[:, :, keys])  # (b, g, R, E)
        y_of_rows = np.divide(weighted_sum, total, out=weighted_sum)
        y[:, :, :, rows] = by_head(y_of_rows, y)  # (b, g, N, rows, E)
        lse[:, :, :, rows] = by_head(lse_of_rows, y)[..., 0]


def backward(dy, saved):
    """dq, dk and dv, in the shapes of q, k and v; a mask has no gradient."""
    q, k, v, _, _, y, lse, *_ = saved
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    if q.size == 0 or k.size == 0:
        dq[...], dk[...], dv[...] = 0, 0, 0
        return dq, dk, dv, None
    for_parts(functools.partial(_backward_of_part, saved, dk, dv), saved, (q, y, lse, dy, dq))
    return dq, dk, dv, None


def _backward_of_part(saved: Saved, dk: Array, dv: Array, part: Part) -> None:
    """Fill dq, dk and dv for the batch items and the heads of a part, one block of queries after another."""
    queries, y, lse, dy, dq = part.by_query  # (b, g, N, Tq, ...)
    blocks = _blocks_of(saved)
    # (b, g, Tk, D) and (b, g, Tk, E)
    dk_of_part, dv_of_part = dk[part.items, part.kv_heads], dv[part.items, part.kv_heads]
    dk_sum, dv_sum = dk_of_part, dv_of_part
    if len(blocks) > FEW:  # that many are added up in float64
        dk_sum, dv_sum = (np.empty_like(x, dtype=np.promote_types(x.dtype, np.float64)) for x in (dk_sum, dv_sum))
    if saved.starts is not None:
        dk_sum[...], dv_sum[...] = 0, 0
    # From the last block to the first: without starts, the last sees every key, and so writes all of dK and dV.
    for number, (rows, visible) in enumerate(reversed(blocks)):
        keys = seen_keys(saved, part, rows, visible)
        s, q_scaled = scores(saved, part, queries, rows, keys)  # (b, g, R, keys), (b, g, R, D), R = N rows
        log_p = np.subtract(s, as_rows_of_kv_head(lse[:, :, :, rows, None]), out=s)  # (b, g, R, keys)
        p = np.exp(log_p, out=log_p)  # (b, g, R, keys)
        dy_of_rows = as_rows_of_kv_head(dy[:, :, :, rows])  # (b, g, R, E)
        delta = vecdot(dy_of_rows, as_rows_of_kv_head(y[:, :, :, rows]))[..., None]  # (b, g, R, 1)
        ddropped = backend.matmul(dy_of_rows, part.v[:, :, keys].swapaxes(-1, -2))  # (b, g, R, keys)
        dp, dropped = ddropped, p
        if saved.dropout:
            m = dropout_mask(saved, part, rows, keys)  # (b, g, R, keys)
            dp = np.multiply(ddropped, m, out=ddropped)
            dropped = np.multiply(p, m, out=m)
        centred = np.subtract(dp, delta, out=dp)
        ds = np.multiply(centred, p, out=centred)  # (b, g, R, keys)
        dv_of_rows = backend.matmul(dropped.swapaxes(-1, -2), dy_of_rows)  # (b, g, keys, E)
        dk_of_rows = backend.matmul(ds.swapaxes(-1, -2), q_scaled)  # (b, g, keys, D)
        dq_scaled = backend.matmul(ds, part.k[:, :, keys])  # (b, g, R, D)
        dq_of_rows = np.multiply(dq_scaled, saved.scale, out=dq_scaled)
        dq[:, :, :, rows] = by_head(dq_of_rows, dq)  # (b, g, N, rows, D)
        if number == 0 and saved.starts is None:
            dk_sum[...], dv_sum[...] = dk_of_rows, dv_of_rows
        else:
            dk_sum[:, :, keys] += dk_of_rows
            dv_sum[:, :, keys] += dv_of_rows
    if len(blocks) > FEW:
        dk_of_part[...], dv_of_part[...] = dk_sum, dv_sum


# --- the scores of a block, and its dropout mask --------------------------------------------------------------------


def query_blocks(queries: int, keys: int, causal: bool) -> list[tuple[slice, int]]:
    """Each block of queries, with the number of keys that its last query sees, but 1 at least."""
    edges = [(start, min(start + QUERY_BLOCK, queries)) for start in range(0, queries, QUERY_BLOCK)]
    return [(slice(start, stop), min(keys, max(1, stop + keys - queries)) if causal else keys) for start, stop in edges]


def _blocks_of(saved: Saved) -> Sequence[tuple[slice, int]]:
    """The blocks of queries that run: all of them, or some where only memory is measured."""
    return backend.blocks_to_run(query_blocks(saved.q.shape[2], saved.k.shape[2], saved.causal))


def seen_keys(saved: Saved, part: Part, rows: slice, visible: int) -> slice:
    """The keys that a block of queries may see: from the first that a query starts with, up to `visible`."""
    if saved.starts is None or is_on_gpu(saved.starts):  # where nobody waits to look at them
        return slice(0, visible)
    return slice(min(int(saved.starts[part.items, rows].min()), visible - 1), visible)


def scores(saved: Saved, part: Part, queries: Array, rows: slice, keys: slice) -> tuple[Array, Array]:
    """S for a block of queries against some keys, (b, g, N rows, keys), and scale Q, (b, g, N rows, D)."""
    q_scaled = as_rows_of_kv_head(queries[:, :, :, rows] * saved.scale)
    s = backend.matmul(q_scaled, part.k[:, :, keys].swapaxes(-1, -2))
    s_by_head = by_head(s, queries)
    if saved.causal:
        # Only from the last key that the first query sees: a square, which is faster than one column less.
        last = rows.start + part.k.shape[2] - queries.shape[3]
        first = max(keys.start, last)
        limit = _triangle(rows.stop - rows.start, keys.stop - first, last - first, s.dtype)
        square = s_by_head[..., first - keys.start :]
        np.fmin(square, like(limit, s), out=square)  # also where a hidden key made NaN, which fmin passes over
    if saved.lengths is not None:
        padding = np.arange(keys.start, keys.stop, like=s) >= saved.lengths[part.items, None]
        np.copyto(s_by_head, -np.inf, where=padding[:, None, None, None])
    if saved.starts is not None:
        earlier = np.arange(keys.start, keys.stop, like=s) < saved.starts[part.items, rows, None]  # (b, rows, keys)
        np.copyto(s_by_head, -np.inf, where=earlier[:, None, None])
    if saved.mask is not None:
        mask = by_kv_head(saved.mask, saved.k)[part.items, part.kv_heads, :, rows, keys]
        if mask.dtype == bool:
            np.copyto(s_by_head, -np.inf, where=~mask)
        else:
            s_by_head += mask
    return s, q_scaled


@functools.lru_cache(maxsize=64)
def _triangle(rows: int, columns: int, diagonal: int, dtype: np.dtype) -> Array:
    """-inf above a diagonal (as in np.tri), inf elsewhere: the most that scores may be."""
    return np.where(np.tri(rows, columns, diagonal, bool), np.inf, -np.inf).astype(dtype)


def dropout_mask(saved: Saved, part: Part, rows: slice, seen: slice) -> Array:
    """M for a block of queries against the keys that it may see: (b, g, N rows, seen)."""
    assert saved.dropout is not None
    dropout_p, seed, counter, skipped_blocks = saved.dropout
    (batch, heads, queries, _), (_, kv_heads, keys, _) = saved.q.shape, saved.k.shape
    shared_by = heads // kv_heads
    blocks = -(-keys // random.BLOCK)  # counter blocks for a row of M
    count = rows.stop - rows.start
    masks = [
        random.keep_scale(
            seed,
            counter + ((item * heads + head) * queries + rows.start) * blocks + item * skipped_blocks,
            (count, blocks * random.BLOCK),
            dropout_p,
            saved.q.dtype,
        )[:, seen]
        for item in range(*part.items.indices(batch))
        for head in range(part.kv_heads.start * shared_by, part.kv_heads.stop * shared_by)
    ]
    m = np.stack(masks).reshape(*part.k.shape[:2], shared_by * count, seen.stop - seen.start)
    return like(m, saved.q)


# --- heads, and how they are handed to the threads ------------------------------------------------------------------


def by_kv_head(x: Array, k: Array) -> Array:
    """(B, H, T, ...) as (B, G, N, T, ...), without a copy: the N query heads of each kv head."""
    return x.reshape(x.shape[0], k.shape[1], -1, *x.shape[2:])


def as_rows_of_kv_head(x: Array) -> Array:
    """(b, g, N, rows, D) as (b, g, N rows, D): the query heads of a kv head become more rows."""
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], x.shape[-1])


def by_head(x: Array, grouped: Array) -> Array:
    """(b, g, N rows, D) as (b, g, N, rows, D), where `grouped` has the shape (b, g, N, ...)."""
    return x.reshape(*x.shape[:2], grouped.shape[2], x.shape[2] // grouped.shape[2], x.shape[-1])


def for_parts(work: Callable[[Part], Any], saved: Saved, arrays: tuple[Array, ...]) -> None:
    """Call work(part) over all heads, each part with scores that stay in cache, on every thread.

    arrays: those with queries, (B, H, Tq, ...), which the parts show by kv head.
    """
    q, k, v = saved.q, saved.k, saved.v
    grouped = [by_kv_head(array, k) for array in arrays]

    def run_part(b: slice, g: slice) -> None:
        work(Part(b, g, k[b, g], v[b, g], tuple(array[b, g] for array in grouped)))

    if is_on_gpu(q):
        run_part(slice(0, k.shape[0]), slice(0, k.shape[1]))
        return
    threads = backend.cutting.threads if q.size * k.shape[2] * 4 >= backend.cutting.parallel_flops else 1
    parts = _parts(q, k, threads)

    def run(start: int, stop: int) -> None:
        for b, g in parts[start:stop]:
            run_part(b, g)

    if threads == 1:
        run(0, len(parts))
    else:
        backend.parallel(run, len(parts))


def _parts(q: Array, k: Array, threads: int) -> list[tuple[slice, slice]]:
    """Batch items and kv heads of each part."""
    batch, kv_heads = k.shape[:2]
    head_bytes = q.shape[1] // kv_heads * min(QUERY_BLOCK, q.shape[2]) * k.shape[2] * q.itemsize
    heads_at_once = min(kv_heads, max(1, SCORE_BYTES // max(1, head_bytes)))
    if batch < threads:
        heads_at_once = min(heads_at_once, -(-batch * kv_heads // threads))
    items_at_once = max(1, SCORE_BYTES // max(1, head_bytes * kv_heads)) if heads_at_once == kv_heads else 1
    # As many items at once as fit, but a whole number of rounds of all threads, so that none waits at the end.
    rounds = -(-batch // (items_at_once * threads))
    items_at_once = max(1, -(-batch // (rounds * threads)))
    return [
        (slice(b, min(b + items_at_once, batch)), slice(g, min(g + heads_at_once, kv_heads)))
        for b in range(0, batch, items_at_once)
        for g in range(0, kv_heads, heads_at_once)
    ]
