"""Attention by kernels/attention.cu, on tensor cores by attention_bf16.cu, and over a KV cache by decode.cu.

The kernels take lengths, causality and dropout, but no mask, no starts and no head of more than 128 channels. Where
there is no kernel for arrays of a GPU, the CPU's pair runs there, a block of queries at a time: the plain pair would
keep all of P.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np

from minillm.backend import Array, contiguous
from minillm.cuda import get_kernel, strides_of
from minillm.device import compute_capability, is_on_gpu
from minillm.engine import current_engine
from minillm.fast import attention as in_blocks
from minillm.ops.attention import Dropout

# The rows that a block of attention_bf16.cu keeps and the rows of the tiles that pass by, for each head size.
TENSOR_CORE_TILES = {
    "attention_forward": {32: (128, 64), 64: (128, 64), 96: (64, 64), 128: (64, 64)},
    "attention_backward_keys": {32: (64, 64), 64: (64, 64), 96: (64, 32), 128: (64, 32)},
    "attention_backward_queries": {32: (64, 64), 64: (64, 64), 96: (64, 32), 128: (64, 32)},
}
LARGEST_HEAD = 128  # channels
SPLIT_KEYS = 64  # fewest keys for a block of attention_decode
DECODE_BLOCKS = 1024  # enough to keep every multiprocessor reading


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    q: Array  # (B, H, Tq, D)
    k: Array  # (B, G, Tk, D)
    v: Array  # (B, G, Tk, D)
    lengths: Array  # (B,), int32
    y: Array  # (B, H, Tq, D)
    lse: Array  # (B, H, Tq), in float32 at least
    causal: bool
    scale: float
    dropout: Dropout | None


def forward(q, k, v, mask, *, lengths, causal, scale, dropout, starts=None):
    """y (B, H, Tq, E) of q (B, H, Tq, D), k (B, G, Tk, D) and v (B, G, Tk, E)."""
    if starts is not None or not _has_kernel(q, k, v, mask, scale, dropout):
        if not is_on_gpu(q) or current_engine() == "require":
            return NotImplemented
        settings = dict(lengths=lengths, causal=causal, scale=scale, dropout=dropout, starts=starts)
        return in_blocks.forward(q, k, v, mask, **settings)
    q, k, v = map(_rows_in_one_piece, (q, k, v))
    if lengths is None:
        lengths = np.full_like(k, k.shape[2], shape=k.shape[:1], dtype=np.int32, order="C")
    lse = np.empty_like(q, shape=q.shape[:3], dtype=np.promote_types(q.dtype, np.float32), order="C")
    if q.shape[2] == 1 and dropout is None and q.shape[3] % 32 == 0 and _are_cached(k, v) and _in_16_bytes(q):
        y = _launch_decode(q, k, v, lengths, lse, scale)
    else:
        y = np.empty_like(q)
        launch("attention_forward", (q, k, v), lengths, (lse,), (y,), causal, scale, dropout)
    return y, Saved(q, k, v, lengths, y, lse, causal, scale, dropout)


def _has_kernel(q: Array, k: Array, v: Array, mask: Array | None, scale: float, dropout: Dropout | None) -> bool:
    if mask is not None or scale <= 0 or q.size == 0 or k.size == 0 or q.shape[3] > LARGEST_HEAD:
        return False
    return q.dtype == k.dtype == v.dtype and k.shape == v.shape and not (dropout and dropout.counter >= 2**63)


def backward(dy, saved):
    """dq, dk and dv, in the shapes of q, k and v; a mask has no gradient."""
    if isinstance(saved, in_blocks.Saved):
        return in_blocks.backward(dy, saved)
    q, k, v, lengths, y, lse, *settings = saved
    dy = _rows_in_one_piece(dy)
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    inputs, sums = (q, k, v, dy), (lse, launch_delta(dy, y, lse))
    launch("attention_backward_keys", inputs, lengths, sums, (dk, dv), *settings)
    launch("attention_backward_queries", inputs, lengths, sums, (dq,), *settings)
    return dq, dk, dv, None


def launch(
    name: str,
    inputs: tuple,
    lengths: Array,
    sums: tuple,
    outputs: tuple,
    causal: bool,
    scale: float,
    dropout: Dropout | None,
) -> None:
    """Launch one of the three kernels, on tensor cores where the GPU, dtype, head size and alignment allow it.

    inputs: q, k, v and, backward, dy; sums: lse and, backward, delta; each block writes rows of the outputs.
    """
    q, k, operands = inputs[0], inputs[1], (*inputs, *outputs)
    (batch, heads, queries, head_size), (_, kv_heads, keys, _) = q.shape, k.shape
    padded = -(-head_size // 32) * 32
    numbers = [np.int32(n) for n in (queries, keys, head_size, heads // kv_heads)]
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
    p, seed, counter, skipped_blocks = dropout or Dropout(0.0, 0, 0)
    stream = np.uint64(seed % 2**64), np.uint64(seed // 2**64), np.uint64(counter), np.uint64(skipped_blocks)
    threshold, real = np.uint32(min(round(p * 2**32), 2**32 - 1)), sums[0].dtype.type
    settings = (*numbers, np.bool_(causal), real(scale), *stream, threshold, real(1 / (1 - p)))
    kernel(grid, threads, (*arrays, *settings, strides_of(*operands)), smem)


def launch_delta(dy: Array, y: Array, lse: Array) -> Array:
    """delta_i = dY_i . Y_i, a number for each query as lse is."""
    delta = np.empty_like(lse)
    batch, heads, queries, head_size = y.shape
    arguments = (_memory(dy), _memory(y), delta, np.int32(queries), np.int32(head_size), strides_of(dy, y))
    get_kernel("attention.cu", "attention_delta", y.dtype)((-(-queries // 4), heads, batch), 128, arguments)
    return delta


def _launch_decode(q: Array, k: Array, v: Array, lengths: Array, lse: Array, scale: float) -> Array:
    """Attention of one query per head and item over the keys of a cache, which several blocks share."""
    (batch, heads, _, head_size), (_, kv_heads, keys, _), real = q.shape, k.shape, lse.dtype
    splits = max(1, min(-(-keys // SPLIT_KEYS), DECODE_BLOCKS // (batch * heads)))
    chunk = -(-keys // splits)
    outs = np.empty_like(q, shape=(batch, heads, splits, head_size), dtype=real, order="C")
    sums = np.empty_like(q, shape=(batch, heads, splits, 2), dtype=real, order="C")
    lengths, q, y = np.minimum(lengths, np.int32(keys)), contiguous(q), np.empty_like(q, order="C")
    capacity = np.int64(k.strides[1] // k.strides[2])
    numbers = (np.int32(heads // kv_heads), np.int32(chunk), capacity, real.type(scale))
    decode = get_kernel("decode.cu", "attention_decode", q.dtype, head_size)
    decode((splits, heads, batch), 128, (q, _memory(k), _memory(v), lengths, outs, sums, *numbers))
    combine = get_kernel("decode.cu", "attention_decode_combine", q.dtype)
    combine((heads, batch), 128, (outs, sums, y, lse, np.int32(splits), np.int32(head_size)))
    return y


def _are_cached(k: Array, v: Array) -> bool:
    """True if k and v (B, G, T, D) are the first rows of arrays (B, G, capacity, D) in one piece, as in a KV cache."""
    (_, kv_heads, _, head_size), (item, head, row, number) = k.shape, k.strides
    in_one_piece = number == k.itemsize and row == head_size * number and head % row == 0 and item == kv_heads * head
    return in_one_piece and k.strides == v.strides and _in_16_bytes(k) and _in_16_bytes(v)


def _rows_in_one_piece(x: Array) -> Array:
    """x, or a copy if the elements of a row of its last axis do not follow each other, or x is stretched.

    An array made in the memory order of a stretched one would have its rows in pieces.
    """
    strides = [stride for size, stride in zip(x.shape, x.strides, strict=True) if size > 1]
    return x if min(strides, default=1) > 0 and x.strides[-1] == x.itemsize else x.copy(order="C")


def _memory(x: Array) -> Array:
    """The memory from the first element of x to the last, as one dimension; with the strides a kernel finds x in it."""
    library = np if isinstance(x, np.ndarray) else sys.modules["cupy"]
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.strides, strict=True))
    return library.lib.stride_tricks.as_strided(x, (last // x.itemsize + 1,), (x.itemsize,))


def _in_16_bytes(x: Array) -> bool:
    """True if every row of x begins at a multiple of 16 bytes."""
    address = x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr
    return address % 16 == 0 and all(stride % 16 == 0 for stride in x.strides[:3])
