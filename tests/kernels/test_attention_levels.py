"""kernels/levels/attention_*.cu: each level gives what the formula gives, in every order of the warps."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import cuda
from minillm.cuda import Kernel
from minillm.cuda.source import FOLDER

bfloat16 = np.dtype(pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes").bfloat16)
D, HEADS, SCALE = 64, 2, np.float32(0.2)


def blocks(tokens, of):
    return -(-tokens // of)


def level_1(q, k, v):
    tokens = q.shape[1]
    scores, out, n = np.full((HEADS, tokens, tokens), np.nan, np.float32), np.full_like(q, np.nan), np.int32(tokens)
    file = "levels/attention_1_naive.cu"
    Kernel(file, "attention_1_scores")((blocks(tokens, 256), tokens, HEADS), 256, (q, k, scores, n, SCALE))
    Kernel(file, "attention_1_softmax")((tokens, HEADS), 32, (scores, n))
    Kernel(file, "attention_1_product")((tokens, HEADS), 64, (scores, v, out, n))
    return out


def one_kernel(name, rows, threads):
    def run(q, k, v):
        out, tokens = np.full_like(q, np.nan), q.shape[1]
        kernel = Kernel(f"levels/{name}.cu", name)
        kernel((blocks(tokens, rows), HEADS), threads, (q, k, v, out, np.int32(tokens), SCALE))
        return out

    return run


LEVELS = {
    "attention_1_naive": (level_1, np.dtype("float32")),
    "attention_2_online": (one_kernel("attention_2_online", 64, 64), np.dtype("float32")),
    "attention_3_tiles": (one_kernel("attention_3_tiles", 64, 256), np.dtype("float32")),
    "attention_4_tensor_cores": (one_kernel("attention_4_tensor_cores", 64, 128), bfloat16),
}


@pytest.mark.parametrize("tokens", [1, 17, 64, 65, 131])
@pytest.mark.parametrize("level", LEVELS)
def test_level(rng, warp_order, level, tokens):
    run, dtype = LEVELS[level]
    q, k, v = (rng.standard_normal((HEADS, tokens, D)).astype(np.float32).astype(dtype) for _ in range(3))
    s = float(SCALE) * q.astype(float) @ k.astype(float).swapaxes(1, 2)
    s[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    p = np.exp(s - s.max(axis=-1, keepdims=True))
    expected = p / p.sum(axis=-1, keepdims=True) @ v.astype(float)
    received = run(q, k, v).astype(float)
    largest = np.abs(expected).max()
    assert np.abs(received - expected).max() <= (2e-6 if dtype == np.float32 else 2**-7) * largest
    with cuda.emulation(copies="deferred"):
        assert np.array_equal(run(q, k, v).astype(float), received)


@pytest.mark.parametrize("level", LEVELS)
def test_length(level):
    text = (FOLDER / "levels" / f"{level}.cu").read_text()
    assert len(text.splitlines()) < 160
