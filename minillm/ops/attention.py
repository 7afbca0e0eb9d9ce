"""Scaled dot-product attention (Vaswani et al. 2017), computed a block of queries at a time.

For one head, with queries Q (Tq, D), keys K and values V (Tk, D):

    S = scale Q K^T + mask          (Tq, Tk), scale = 1/sqrt(D)
    P = softmax(S) by rows          P_ij = e^(S_ij - lse_i),  lse_i = log sum_j e^(S_ij)
    Y = P V                         (Tq, D)

Backward. From Y = P V: dV = P^T dY and dP = dY V^T. From the softmax, with delta_i = sum_j P_ij dP_ij:

    dS_ij = P_ij (dP_ij - delta_i),    dQ = scale dS K,    dK = scale dS^T Q

and delta needs no P: delta_i = sum_j P_ij (dY_i . V_j) = dY_i . Y_i. So nothing of size Tq x Tk is kept: the forward
saves lse, and the backward makes P again, block by block (FlashAttention, Dao et al. 2022, arXiv:2205.14135).

- Causal: query i sees keys j <= i + Tk - Tq, so the last query sees every key, which is what a KV cache needs (for
  Tq = Tk this is the usual triangle). Blocks beyond the diagonal are never computed: half the work.
- Grouped heads (Ainslie et al. 2023): with H query heads on H/G key heads, the G query heads of a key head are just
  G times as many rows against the same keys, so dK and dV sum over them in the product itself.
- Padding: of batch item b only the first lengths[b] keys are there.
- A query that may see no key at all gives 0, and passes no gradient.
- Dropout acts on P. With m the mask times its scale, Y = (m P) V, dP = m (dY V^T), dV = (m P)^T dY; delta is unchanged.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import Any, NamedTuple

import numpy as np

from minillm import backend, random
from minillm.autograd import Op, Tensor, snapshot
from minillm.backend import Array
from minillm.cuda import get_kernel, strides_of
from minillm.device import compute_capability, is_on_gpu, like
from minillm.errors import DtypeError, ShapeError, check_floating, check_index, check_shapes
from minillm.ops.dropout import check_probability
from minillm.ops.shape import broadcast_to
from minillm.sums import FEW, row_sums, vecdot

QUERY_BLOCK = 64  # queries at a time
SCORE_BYTES = 512 * 1024  # scores held at a time, on each thread


class Dropout(NamedTuple):
    """The place of P's dropout mask in the random stream; every row of P starts a new counter block."""

    p: float
    seed: int
    counter: int
    elsewhere: int = 0  # blocks that follow those of each batch item, for heads that are not here


class Saved(NamedTuple):
    """Inputs, output, and one number per query."""

    q: Array
    k: Array
    v: Array
    mask: Array | None
    lengths: Array | None  # (B,), int32
    out: Array
    lse: Array  # (B, H, Tq)
    causal: bool
    scale: float
    dropout: Any  # Dropout or None


def attention_forward(q, k, v, mask, *, lengths, causal, scale, dropout):
    # In the memory order of q, so that undoing a (B, T, H, D) transpose is free.
    out = np.empty_like(q, shape=(*q.shape[:3], v.shape[3]))
    lse = np.empty_like(q, shape=q.shape[:3])
    saved = Saved(q, k, v, mask, lengths, out, lse, causal, scale, dropout)
    if q.size == 0 or k.size == 0:  # no query, or no key to see
        out[...] = 0
        return out, saved

    def part(b, h):  # some batch items and key heads
        queries, keys, values = _grouped(q, k)[b, h], k[b, h], v[b, h]
        y, log_sums = _grouped(out, k)[b, h], lse.reshape(*k.shape[:2], -1, q.shape[2])[b, h]
        for rows, visible in backend.blocks_to_run(query_blocks(q.shape[2], k.shape[2], causal)):
            scores, _ = _scores(queries, keys, rows, visible, saved, b, h)
            largest = backend.row_max(scores)
            largest[largest == -np.inf] = 0
            scores -= largest
            weights = np.exp(scores, out=scores)
            total = row_sums(weights)
            sees_none = total == 0
            total[sees_none] = 1
            log_sum = np.log(total) + largest
            log_sum[sees_none] = np.inf  # makes e^(S - lse) = 0 in the backward
            if dropout:
                weights *= _dropout_mask(saved, b, h, rows, visible)
            block = backend.matmul(weights, values[:, :, :visible])
            block /= total
            y[:, :, :, rows] = _ungroup(block, y)
            log_sums[:, :, :, rows] = _ungroup(log_sum, y)[..., 0]

    _for_parts(part, q, k)
    return out, saved


def attention_backward(dout, saved):
    q, k, v, _, _, out, lse, causal, scale, dropout = saved
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    if q.size == 0 or k.size == 0:
        dq[...], dk[...], dv[...] = 0, 0, 0
        return dq, dk, dv, None

    def part(b, h):
        queries, keys, values = _grouped(q, k)[b, h], k[b, h], v[b, h]
        dys, ys, dqueries = (_grouped(array, k)[b, h] for array in (dout, out, dq))
        log_sums = lse.reshape(*k.shape[:2], -1, q.shape[2])[b, h]
        blocks = backend.blocks_to_run(query_blocks(q.shape[2], k.shape[2], causal))
        dkeys, dvalues = dk[b, h], dv[b, h]
        if len(blocks) > FEW:  # that many are added up in float64
            dkeys, dvalues = (np.empty_like(x, dtype=np.promote_types(x.dtype, np.float64)) for x in (dkeys, dvalues))
        last = True
        # From the last block, which sees every key and so writes all of dK and dV, to the first; the others add.
        for rows, visible in reversed(blocks):
            p, q_scaled = _scores(queries, keys, rows, visible, saved, b, h)
            p -= _group(log_sums[:, :, :, rows, None])
            np.exp(p, out=p)
            dy = _group(dys[:, :, :, rows])
            delta = vecdot(dy, _group(ys[:, :, :, rows]))[..., None]
            ds = backend.matmul(dy, values[:, :, :visible].swapaxes(-1, -2))
            if dropout:
                kept = _dropout_mask(saved, b, h, rows, visible)
                ds *= kept
                kept *= p
            ds -= delta
            ds *= p
            dv_block = backend.matmul((kept if dropout else p).swapaxes(-1, -2), dy)
            dk_block = backend.matmul(ds.swapaxes(-1, -2), q_scaled)
            dq_block = backend.matmul(ds, keys[:, :, :visible])
            dq_block *= scale
            dqueries[:, :, :, rows] = _ungroup(dq_block, dqueries)
            if last:
                dkeys[...], dvalues[...] = dk_block, dv_block
            else:
                dkeys[:, :, :visible] += dk_block
                dvalues[:, :, :visible] += dv_block
            last = False
        if len(blocks) > FEW:
            dk[b, h], dv[b, h] = dkeys, dvalues

    _for_parts(part, q, k)
    return dq, dk, dv, None


def attention_forward_cuda(q, k, v, mask, *, lengths, causal, scale, dropout):
    if mask is not None or scale <= 0 or q.size == 0 or k.size == 0 or q.shape[3] > 128:
        return NotImplemented
    if not q.dtype == k.dtype == v.dtype or k.shape != v.shape or (dropout and dropout.counter >= 2**63):
        return NotImplemented
    q, k, v = map(_rows_in_one_piece, (q, k, v))
    if lengths is None:
        lengths = np.full_like(k, k.shape[2], shape=k.shape[:1], dtype=np.int32, order="C")
    out = np.empty_like(q)
    lse = np.empty_like(q, shape=q.shape[:3], dtype=np.promote_types(q.dtype, np.float32), order="C")
    if q.shape[2] == 1 and dropout is None and q.shape[3] % 32 == 0 and _are_cached(k, v) and _in_16_bytes(q):
        out = _launch_decode(q, k, v, lengths, lse, scale)
    else:
        _launch("attention_forward", (q, k, v), lengths, (lse,), (out,), causal, scale, dropout)
    return out, Saved(q, k, v, None, lengths, out, lse, causal, scale, dropout)


def attention_backward_cuda(dout, saved):
    q, k, v, _, lengths, out, lse, *settings = saved
    dout = _rows_in_one_piece(dout)
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    inputs, sums = (q, k, v, dout), (lse, _launch_delta(dout, out, lse))
    _launch("attention_backward_keys", inputs, lengths, sums, (dk, dv), *settings)
    _launch("attention_backward_queries", inputs, lengths, sums, (dq,), *settings)
    return dq, dk, dv, None


ATTENTION = Op(
    "attention", attention_forward, attention_backward, cuda=(attention_forward_cuda, attention_backward_cuda)
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    mask: Any = None,
    *,
    lengths: Any = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax(scale Q K^T + mask) V for every head.

    Shapes: q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, E) with G dividing H; result (B, H, Tq, E). Where a batch
        has size 1, it serves all items. Where all three are (B, T, D) or (T, D), there is one head.
    mask: broadcastable to (B, H, Tq, Tk). Boolean: True where a query may see a key. Floating: added to the scores;
        it gets no gradient.
    causal: query i sees keys up to i + Tk - Tq. scale: 1/sqrt(D) by default.
    lengths: (B,), whole numbers from 0 to Tk: of batch item b the queries see the first lengths[b] keys only, and the
        rest is padding. What a mask (B, 1, 1, Tk) could say too, but kernels take lengths, and no mask.
    dropout_p: the probability with which each weight is zeroed; the others are scaled by 1/(1 - dropout_p).
    Saves: references to q, k, v and the output, and one number per query.
    Raises: ShapeError for sizes that do not fit; DtypeError for a mask that is neither boolean nor floating, or
        lengths that are no integers; InputError for a length outside 0 to Tk (not looked for on a GPU, where more than
        Tk counts as Tk), dropout_p outside [0, 1), or more items or heads than `random.part` tells of.
    Source: Vaswani et al. 2017, equation 1; Dao et al. 2022, algorithm 4 for the backward.
    """
    if mask is not None:
        mask = mask.data if isinstance(mask, Tensor) else backend.as_array(mask)
    if q.ndim == k.ndim == v.ndim and q.ndim in (2, 3):  # one head
        if mask is not None and mask.ndim == 3:
            mask = mask[:, None]  # (B, 1, Tq, Tk)
        q4, k4, v4 = (x.reshape(*x.shape[:-2], *(1,) * (4 - x.ndim), *x.shape[-2:]) for x in (q, k, v))
        y = attention(q4, k4, v4, causal, mask, lengths=lengths, scale=scale, dropout_p=dropout_p)
        return y.reshape(*y.shape[: q.ndim - 2], *y.shape[2:])
    if lengths is not None:
        lengths = lengths.data if isinstance(lengths, Tensor) else backend.as_array(lengths)
    q, k, v = _with_one_batch(q, k, v)
    sizes = check_shapes("attention", q=("B H Tq D", q), k=("B G Tk D", k), v=("B G Tk E", v), lengths=("B", lengths))
    if sizes["G"] == 0 or sizes["H"] % sizes["G"]:
        raise ShapeError(f"attention: q has H={sizes['H']} heads, which {sizes['G']} key heads do not divide")
    check_floating("attention", q=q, k=k, v=v)
    if sizes["D"] == 0 or sizes["E"] == 0:
        raise ShapeError(f"attention: q has D={sizes['D']} and v E={sizes['E']} channels per head; give at least one")
    if mask is not None:
        mask = like(snapshot(mask), q.data)  # while it is small: stretched, it is as large as P
        if mask.dtype.kind not in "bf":
            raise DtypeError(f"attention: mask has dtype {mask.dtype}; give bool (True = visible) or a float bias")
        wanted = tuple(sizes[name] for name in ("B", "H", "Tq", "Tk"))
        try:
            mask = np.broadcast_to(mask, wanted)
        except ValueError:
            raise ShapeError(f"attention: mask has shape {mask.shape}, which does not broadcast to {wanted}") from None
    if lengths is not None:
        check_index("attention", lengths, sizes["Tk"] + 1, "lengths")
        lengths = like(lengths.astype(np.int32, order="C"), q.data)
    check_probability("attention", dropout_p)
    dropout = None
    if dropout_p:
        dropout = _place_of_mask(q.shape, sizes["Tk"], dropout_p)
    scale = 1 / math.sqrt(sizes["D"]) if scale is None else float(scale)
    return ATTENTION(q, k, v, mask, lengths=lengths, causal=causal, scale=scale, dropout=dropout)


def _with_one_batch(*tensors: Tensor) -> list[Tensor]:
    """The tensors, those with a batch of 1 stretched to the batch of the others."""
    batch = max((x.shape[0] for x in tensors if x.ndim == 4), default=1)
    return [broadcast_to(x, batch, *x.shape[1:]) if x.ndim == 4 and x.shape[0] == 1 < batch else x for x in tensors]


def _place_of_mask(shape: tuple[int, ...], keys: int, p: float) -> Dropout:
    """Set random numbers aside for P (B, H, Tq, Tk), or for the larger P that this is a part of (random.part)."""
    (first_item, items), (first_head, heads) = (
        random.default.rows_of("attention", shape),
        random.default.heads_of(shape),
    )
    head = shape[2] * -(-keys // random.BLOCK)  # counter blocks of a head
    seed, counter = random.default.reserve(items * heads * head * random.BLOCK)
    counter += (first_item * heads + first_head) * head
    return Dropout(p, seed, counter, (heads - shape[1]) * head)


# --- the pieces that forward and backward share --------------------------------------------------------------------


def _grouped(x: Array, k: Array) -> Array:
    """(B, H, T, D) as (B, key heads, query heads per key head, T, D), without a copy."""
    return x.reshape(x.shape[0], k.shape[1], -1, *x.shape[2:])


def _group(x: Array) -> Array:
    """(b, h, G, rows, D) as (b, h, G rows, D): the query heads of a key head become more rows."""
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], x.shape[-1])


def _ungroup(x: Array, like: Array) -> Array:
    """(b, h, G rows, D) as (b, h, G, rows, D)."""
    return x.reshape(*x.shape[:2], like.shape[2], x.shape[2] // like.shape[2], x.shape[-1])


def query_blocks(queries: int, keys: int, causal: bool) -> list[tuple[slice, int]]:
    """Each block of queries, with the number of keys that its last query sees, but 1 at least."""
    edges = [(start, min(start + QUERY_BLOCK, queries)) for start in range(0, queries, QUERY_BLOCK)]
    return [(slice(start, stop), min(keys, max(1, stop + keys - queries)) if causal else keys) for start, stop in edges]


def _scores(queries, keys, rows, visible, saved: Saved, b: slice, h: slice) -> tuple[Array, Array]:
    """S for one block of queries against the visible keys, and the scaled queries: (b, h, G rows, visible), (.., D)."""
    q_scaled = _group(queries[:, :, :, rows] * saved.scale)
    scores = backend.matmul(q_scaled, keys[:, :, :visible].swapaxes(-1, -2))
    by_head = _ungroup(scores, queries)
    if saved.causal:
        # Only from the last key that the first query sees: a square, which is faster than one column less.
        last = rows.start + keys.shape[2] - queries.shape[3]
        first = max(0, last)
        hidden = _triangle(rows.stop - rows.start, visible - first, last - first, scores.dtype)
        square = by_head[..., first:]
        np.fmin(square, like(hidden, keys), out=square)  # also where a hidden key made NaN, which fmin passes over
    if saved.lengths is not None:
        padding = np.arange(visible, like=keys) >= saved.lengths[b, None]
        np.copyto(by_head, -np.inf, where=padding[:, None, None, None])
    if saved.mask is not None:
        mask = _grouped(saved.mask, saved.k)[b, h, :, rows, :visible]
        if mask.dtype == bool:
            np.copyto(by_head, -np.inf, where=~mask)
        else:
            by_head += mask
    return scores, q_scaled


@functools.lru_cache(maxsize=64)
def _triangle(rows: int, columns: int, diagonal: int, dtype: np.dtype) -> Array:
    """-inf above a diagonal (as in np.tri), inf elsewhere: what scores may be at most."""
    return np.where(np.tri(rows, columns, diagonal, bool), np.inf, -np.inf).astype(dtype)


def _dropout_mask(saved: Saved, b: slice, h: slice, rows: slice, visible: int) -> Array:
    """The dropout mask of one block of P, times its scale: (b, h, G rows, visible)."""
    p, seed, counter, elsewhere = saved.dropout
    batch, heads, queries, _ = saved.q.shape
    keys = saved.k.shape[2]
    group = heads // saved.k.shape[1]
    blocks = -(-keys // random.BLOCK)  # counter blocks per row of P
    count = rows.stop - rows.start
    masks = [
        random.keep_scale(
            seed,
            counter + ((item * heads + head) * queries + rows.start) * blocks + item * elsewhere,
            (count, blocks * random.BLOCK),
            p,
            saved.q.dtype,
        )[:, :visible]
        for item in range(*b.indices(batch))
        for head in range(h.start * group, h.stop * group)
    ]
    mask = np.stack(masks).reshape(b.stop - b.start, h.stop - h.start, group * count, visible)
    return like(mask, saved.q)


def _for_parts(part, q: Array, k: Array) -> None:
    """Call part(batch slice, key-head slice) over all heads, each with scores that stay in cache, on every thread."""
    batch, key_heads = k.shape[:2]
    if is_on_gpu(q):
        part(slice(0, batch), slice(0, key_heads))
        return
    threads = backend.threads if q.size * k.shape[2] * 4 >= backend.PARALLEL_FLOPS else 1
    head_bytes = q.shape[1] // key_heads * min(QUERY_BLOCK, q.shape[2]) * k.shape[2] * q.itemsize
    heads_at_once = min(key_heads, max(1, SCORE_BYTES // max(1, head_bytes)))
    if batch < threads:
        heads_at_once = min(heads_at_once, -(-batch * key_heads // threads))
    items_at_once = max(1, SCORE_BYTES // max(1, head_bytes * key_heads)) if heads_at_once == key_heads else 1
    # As many items at once as fit, but a whole number of rounds of all threads, so that none waits at the end.
    rounds = -(-batch // (items_at_once * threads))
    items_at_once = max(1, -(-batch // (rounds * threads)))
    parts = [
        (slice(b, min(b + items_at_once, batch)), slice(h, min(h + heads_at_once, key_heads)))
        for b in range(0, batch, items_at_once)
        for h in range(0, key_heads, heads_at_once)
    ]

    def run(start: int, stop: int) -> None:
        for b, h in parts[start:stop]:
            part(b, h)

    if threads == 1:
        run(0, len(parts))
    else:
        backend.parallel(run, len(parts))


# --- launching kernels/attention.cu and kernels/attention_bf16.cu ---------------------------------------------------

# The rows that a block of attention_bf16.cu keeps and the rows of the tiles that pass by, for each head size.
TENSOR_CORE_TILES = {
    "attention_forward": {32: (128, 64), 64: (128, 64), 96: (64, 64), 128: (64, 64)},
    "attention_backward_keys": {32: (64, 64), 64: (64, 64), 96: (64, 32), 128: (64, 32)},
    "attention_backward_queries": {32: (64, 64), 64: (64, 64), 96: (64, 32), 128: (64, 32)},
}


def _launch(
    name: str,
    inputs: tuple,
    lengths: Array,
    sums: tuple,
    outputs: tuple,
    causal: bool,
    scale: float,
    dropout: Dropout | None,
) -> None:
    """One of the three kernels, on tensor cores where the GPU, dtype, head size and alignment allow it.

    inputs: q, k, v and, backward, dout; sums: lse and, backward, delta; each block writes rows of the outputs.
    """
    q, k, operands = inputs[0], inputs[1], (*inputs, *outputs)
    (batch, heads, queries, head_size), (_, key_heads, keys, _) = q.shape, k.shape
    padded = -(-head_size // 32) * 32
    numbers = [np.int32(n) for n in (queries, keys, head_size, heads // key_heads)]
    drops = "true" if dropout else "false"
    aligned = head_size == padded and all(map(_in_16_bytes, operands))
    if q.dtype.name == "bfloat16" and aligned and compute_capability(q) >= 80:
        rows, columns = TENSOR_CORE_TILES[name][padded]
        smem = 2 * padded * ((1 if name == "attention_forward" else 2) * rows + 4 * columns)
        smem += 16 * columns if name == "attention_backward_keys" else 0
        kernel, threads = get_kernel("attention_bf16.cu", name + "_bf16", padded, drops), 128
        del numbers[2]
    else:
        size = sums[0].itemsize
        if name == "attention_forward":
            rows, columns = 256 // size, 128 // size
            smem = size * ((rows + columns) * (padded + 1) + rows * (columns + 1))
        else:
            rows, columns = 128 // size, 16
            smem = size * (2 * (rows + columns) * (padded + 1) + len(outputs) * rows * (columns + 1))
        kernel, threads = get_kernel("attention.cu", name, q.dtype, padded, drops), 256
    grid = (-(-outputs[0].shape[2] // rows), outputs[0].shape[1], batch)
    arrays = (*map(_memory, inputs), lengths, *sums, *map(_memory, outputs))
    p, seed, counter, elsewhere = dropout or Dropout(0.0, 0, 0)
    stream = np.uint64(seed % 2**64), np.uint64(seed // 2**64), np.uint64(counter), np.uint64(elsewhere)
    threshold, real = np.uint32(min(round(p * 2**32), 2**32 - 1)), sums[0].dtype.type
    settings = (*numbers, np.bool_(causal), real(scale), *stream, threshold, real(1 / (1 - p)))
    kernel(grid, threads, (*arrays, *settings, strides_of(*operands)), smem)


SPLIT_KEYS = 64  # fewest keys for a block of attention_decode
DECODE_BLOCKS = 1024  # enough to keep every multiprocessor reading


def _launch_decode(q: Array, k: Array, v: Array, lengths: Array, lse: Array, scale: float) -> Array:
    """One query for each head and item, over the keys of a cache, which several blocks share."""
    (batch, heads, _, head_size), (_, key_heads, keys, _), real = q.shape, k.shape, lse.dtype
    splits = max(1, min(-(-keys // SPLIT_KEYS), DECODE_BLOCKS // (batch * heads)))
    chunk = -(-keys // splits)
    outs = np.empty_like(q, shape=(batch, heads, splits, head_size), dtype=real, order="C")
    sums = np.empty_like(q, shape=(batch, heads, splits, 2), dtype=real, order="C")
    lengths, q, out = np.minimum(lengths, np.int32(keys)), backend.contiguous(q), np.empty_like(q, order="C")
    capacity = np.int64(k.strides[1] // k.strides[2])
    numbers = (np.int32(heads // key_heads), np.int32(chunk), capacity, real.type(scale))
    decode = get_kernel("decode.cu", "attention_decode", q.dtype, head_size)
    decode((splits, heads, batch), 128, (q, _memory(k), _memory(v), lengths, outs, sums, *numbers))
    combine = get_kernel("decode.cu", "attention_decode_combine", q.dtype)
    combine((heads, batch), 128, (outs, sums, out, lse, np.int32(splits), np.int32(head_size)))
    return out


def _are_cached(k: Array, v: Array) -> bool:
    """Whether k and v (B, G, T, D) are the first rows of arrays (B, G, capacity, D) in one piece, as in a KV cache."""
    (_, key_heads, _, head_size), (item, head, row, number) = k.shape, k.strides
    in_one_piece = number == k.itemsize and row == head_size * number and head % row == 0 and item == key_heads * head
    return in_one_piece and k.strides == v.strides and _in_16_bytes(k) and _in_16_bytes(v)


def _launch_delta(dout: Array, out: Array, lse: Array) -> Array:
    """delta_i = dY_i . Y_i, a number for each query as lse is."""
    delta = np.empty_like(lse)
    batch, heads, queries, head_size = out.shape
    arguments = (_memory(dout), _memory(out), delta, np.int32(queries), np.int32(head_size), strides_of(dout, out))
    get_kernel("attention.cu", "attention_delta", out.dtype)((-(-queries // 4), heads, batch), 128, arguments)
    return delta


def _rows_in_one_piece(x: Array) -> Array:
    """x, or a copy if the numbers of a row of its last axis do not follow each other, or x is stretched.

    An array made in the memory order of a stretched one would have its rows in pieces.
    """
    strides = [stride for size, stride in zip(x.shape, x.strides, strict=True) if size > 1]
    return x if min(strides, default=1) > 0 and x.strides[-1] == x.itemsize else x.copy(order="C")


def _memory(x: Array) -> Array:
    """The memory from the first number of x to the last, as one dimension; with the strides, a kernel finds x there."""
    library = np if isinstance(x, np.ndarray) else sys.modules["cupy"]
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.strides, strict=True))
    return library.lib.stride_tricks.as_strided(x, (last // x.itemsize + 1,), (x.itemsize,))


def _in_16_bytes(x: Array) -> bool:
    """Whether every row of x begins at a multiple of 16 bytes."""
    address = x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr
    return address % 16 == 0 and all(stride % 16 == 0 for stride in x.strides[:3])
