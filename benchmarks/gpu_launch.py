"""Kernels that no operation launches: their grids, as the .cu files ask for them, and the levels from naive to fast.

Every function takes arrays of one device, allocates what it returns there, and waits for nothing.
"""

from __future__ import annotations

import numpy as np

from minillm.backend import Array
from minillm.cuda import get_kernel
from minillm.cuda.launch import threads_of_row


def blocks(count: int, of: int) -> int:
    """Number of blocks of `of` elements that hold `count`."""
    return -(-count // of)


def accumulator(x: Array) -> np.dtype:
    """The dtype in which kernels compute: float64 for float64, else float32."""
    return np.promote_types(x.dtype, np.float32)


# ---- decoding -------------------------------------------------------------------------------------------------------


def decode_attention(q: Array, k: Array, v: Array, lengths: Array, longest: int, scale: float, chunk: int) -> Array:
    """q (B, H, D) over caches k, v (B, G, capacity, D) filled up to lengths (B,), of which `longest` is the largest."""
    (batch, heads, d), (_, key_heads, capacity, _) = q.shape, k.shape
    splits, real = max(1, blocks(longest, chunk)), accumulator(q)
    outs = np.empty_like(q, shape=(batch, heads, splits, d), dtype=real)
    sums = np.empty_like(q, shape=(batch, heads, splits, 2), dtype=real)
    out, lse = np.empty_like(q), np.empty_like(q, shape=(batch, heads), dtype=real)
    sizes = (np.int32(heads // key_heads), np.int32(chunk), np.int64(capacity), real.type(scale))
    decode = get_kernel("decode.cu", "attention_decode", q.dtype, d)
    decode((splits, heads, batch), 128, (q, k, v, lengths, outs, sums, *sizes))
    combine = get_kernel("decode.cu", "attention_decode_combine", q.dtype)
    combine((heads, batch), 128, (outs, sums, out, lse, np.int32(splits), np.int32(d)))
    return out


def gemv(x: Array, weight: Array) -> Array:
    """x W^T for 1, 2, 4 or 8 rows of x."""
    (rows, inner), outputs = x.shape, len(weight)
    y = np.empty_like(x, shape=(rows, outputs))
    kernel = get_kernel("decode.cu", "gemv", x.dtype, rows)
    kernel(blocks(outputs, 4), 128, (x, weight, y, np.int32(outputs), np.int32(inner)))
    return y


# ---- the loss --------------------------------------------------------------------------------------------------------


def cross_entropy_in_place(logits: Array, targets: Array, dloss: Array, ignore_index: int = -100) -> Array:
    """The loss of each row; its gradient times dloss is written over the logits."""
    rows, classes = logits.shape
    loss = np.empty_like(dloss)
    sizes = (np.int64(rows), np.int32(classes), np.int64(ignore_index), loss.dtype.type(0))
    kernel = get_kernel("cross_entropy.cu", "cross_entropy_with_gradient", logits.dtype)
    kernel(min(rows, 1 << 20), threads_of_row(logits), (logits, targets, dloss, loss, logits, *sizes))
    return loss


# ---- the levels -----------------------------------------------------------------------------------------------------

SOFTMAX_LEVELS = ("softmax_1_naive", "softmax_2_coalesced", "softmax_3_online", "softmax_4_registers")
MATMUL_LEVELS = (
    *("matmul_1_naive", "matmul_2_coalesced", "matmul_3_shared_tiles", "matmul_4_register_tiles"),
    *("matmul_5_vectorised", "matmul_6_tensor_cores"),
)
ATTENTION_LEVELS = ("attention_1_naive", "attention_2_online", "attention_3_tiles", "attention_4_tensor_cores")
MATMUL_BLOCKS = {"matmul_1_naive": (32, 8), "matmul_2_coalesced": (32, 8), "matmul_3_shared_tiles": (32, 32)}


def softmax_level(level: str, x: Array) -> Array:
    """Softmax of the rows of x; the last level knows 128, 1024 and 2048 columns."""
    (rows, columns), y = x.shape, np.empty_like(x)
    in_registers = level == "softmax_4_registers"
    kernel = get_kernel(f"levels/{level}.cu", level, *([columns] if in_registers else []))
    sizes = [np.int32(rows)] if in_registers else [np.int32(rows), np.int32(columns)]
    kernel(blocks(rows, 256 if level == "softmax_1_naive" else 8), 256, (x, y, *sizes))
    return y


def matmul_level(level: str, a: Array, b: Array) -> Array:
    """A B; of bfloat16 at the last level."""
    (M, K), N = a.shape, b.shape[1]
    c = np.empty_like(a, shape=(M, N))
    x, y = MATMUL_BLOCKS.get(level, (128, 128))  # the part of C that a block makes
    across, down = (M, N) if level == "matmul_1_naive" else (N, M)
    arguments = (a, b, c, *map(np.int32, (M, N, K)))
    grid, kernel = (blocks(across, x), blocks(down, y)), get_kernel(f"levels/{level}.cu", level)
    kernel(grid, MATMUL_BLOCKS.get(level, 256), arguments)
    return c


def attention_level(level: str, q: Array, k: Array, v: Array, scale: float) -> Array:
    """Causal attention of q, k, v (heads, tokens, 64); of bfloat16 at the last level."""
    (heads, tokens, d), out = q.shape, np.empty_like(q)
    n, s, file = np.int32(tokens), np.float32(scale), f"levels/{level}.cu"
    if level == "attention_1_naive":
        scores = np.empty_like(q, shape=(heads, tokens, tokens))
        get_kernel(file, "attention_1_scores")((blocks(tokens, 256), tokens, heads), 256, (q, k, scores, n, s))
        get_kernel(file, "attention_1_softmax")((tokens, heads), 32, (scores, n))
        get_kernel(file, "attention_1_product")((tokens, heads), d, (scores, v, out, n))
    else:
        threads = {"attention_2_online": 64, "attention_3_tiles": 256, "attention_4_tensor_cores": 128}[level]
        get_kernel(file, level)((blocks(tokens, 64), heads), threads, (q, k, v, out, n, s))
    return out
