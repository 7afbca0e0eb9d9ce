"""kernels/decode.cu, emulated: attention of one query over a cache, and a matrix times a few rows, against float64."""

from __future__ import annotations

import re

import numpy as np
import pytest

import minillm
from minillm import cuda, ops
from minillm.autograd import Tensor, no_grad
from minillm.cuda import get_kernel
from minillm.cuda.source import FOLDER
from minillm.engine import engine
from minillm.models.gpt2 import GPT2, GPT2Config

bfloat16 = np.dtype(pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes").bfloat16)
DTYPES = {"float32": np.dtype("float32"), "float64": np.dtype("float64"), "bfloat16": bfloat16}
ROUNDING = {"float32": 2**-24, "float64": 2**-53, "bfloat16": 2**-9}


def decode(q, k, v, lengths, scale, chunk):
    (batch, heads, d), (_, key_heads, capacity, _) = q.shape, k.shape
    real = np.float64 if q.dtype == np.float64 else np.float32
    splits = max(1, -(-int(lengths.max()) // chunk))
    partial_out = np.full((batch, heads, splits, d), np.nan, real)
    partial_sums = np.full((batch, heads, splits, 2), np.nan, real)
    out, lse = np.full_like(q, np.nan), np.full((batch, heads), np.nan, real)
    args = (q, k, v, lengths, partial_out, partial_sums, np.int32(heads // key_heads), np.int32(chunk))
    get_kernel("decode.cu", "attention_decode", q.dtype, d)(
        (splits, heads, batch), 128, (*args, np.int64(capacity), real(scale))
    )
    get_kernel("decode.cu", "attention_decode_combine", q.dtype)(
        (heads, batch), 128, (partial_out, partial_sums, out, lse, np.int32(splits), np.int32(d))
    )
    return out


def formula(q, k, v, lengths, scale):
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for b, length in enumerate(lengths):
        for h in range(q.shape[1]):
            if length:
                s = scale * k[b, h // group, :length] @ q[b, h]
                p = np.exp(s - s.max())
                out[b, h] = p / p.sum() @ v[b, h // group, :length]
    return out


def draw(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(np.float32).astype(dtype)


def near(received, expected, dtype, factor):
    """Whether the root mean square error is within `factor` roundings of the largest value."""
    error = np.sqrt(np.square(received.astype(np.float64) - expected).mean())
    return error <= factor * ROUNDING[dtype] * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("chunk", [16, 50, 4096])
@pytest.mark.parametrize(("d", "group"), [(32, 1), (64, 3), (96, 2), (128, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention(rng, dtype, d, group, chunk):
    lengths = np.array([1, 17, 130, 0, 63], np.int32)
    q = draw(rng, DTYPES[dtype], 5, 2 * group, d)
    k, v = (draw(rng, DTYPES[dtype], 5, 2, 140, d) for _ in range(2))
    expected = formula(q, k, v, lengths, 0.3)
    for b, length in enumerate(lengths):  # what lies beyond is not read
        k[b, :, length:] = v[b, :, length:] = np.nan
    out = decode(q, k, v, lengths, 0.3, chunk)
    assert near(out, expected, dtype, 2)
    assert not out[3].astype(float).any()


def test_attention_same_bits_in_every_order(rng, warp_order):
    lengths = np.array([90], np.int32)
    q, k, v = draw(rng, bfloat16, 1, 2, 64), draw(rng, bfloat16, 1, 1, 90, 64), draw(rng, bfloat16, 1, 1, 90, 64)
    out = decode(q, k, v, lengths, 0.2, 32)
    with cuda.emulation():
        assert np.array_equal(out, decode(q, k, v, lengths, 0.2, 32))


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@pytest.mark.parametrize(("outputs", "inner"), [(1, 1), (17, 1023), (5, 64), (130, 768), (3, 40)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gemv(rng, dtype, outputs, inner, rows):
    x, weight = draw(rng, DTYPES[dtype], rows, inner), draw(rng, DTYPES[dtype], outputs, inner)
    y = np.full((rows, outputs), np.nan, DTYPES[dtype])
    before = cuda.launch_counts()
    kernel = get_kernel("decode.cu", "gemv", y.dtype, rows)
    kernel(-(-outputs // 4), 128, (x, weight, y, np.int32(outputs), np.int32(inner)))
    assert sum((cuda.launch_counts() - before).values()) == 1
    expected = x.astype(np.longdouble) @ weight.astype(np.longdouble).T
    wide = np.float64 if dtype == "float64" else np.float32
    by_numpy = (x.astype(wide) @ weight.astype(wide).T).astype(y.dtype)
    error, allowed = (np.sqrt(np.square(a.astype(np.longdouble) - expected).mean()) for a in (y, by_numpy))
    assert error <= 2 * max(allowed, ROUNDING[dtype] * np.abs(expected).max())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    __syncthreads();\n\n    A block_largest", "\n    A block_largest"),
        ("const bool mine = key0 + key_group < end;", "const bool mine = true;"),
        ("sum = sum * factor + p;", "sum = sum + p;"),
        ("min(lengths[batch], first + chunk)", "min(lengths[batch] + 1, first + chunk)"),
        ("score += __shfl_xor_sync(FULL_WARP, score, d)", "score += __shfl_xor_sync(FULL_WARP, score, 1)"),
    ],
    ids=["barrier", "a key twice", "sum not rescaled", "one key too many", "shuffle"],
)
def test_faults_are_caught(rng, tmp_path, monkeypatch, old, new):
    text = (FOLDER / "decode.cu").read_text()
    assert text.count(old) == 1
    broken = tmp_path / "decode.cu"
    text = re.sub(r"^// instances.*\n", "", text.replace(old, new), flags=re.MULTILINE)
    broken.write_text(
        text + "// instances: attention_decode<__nv_bfloat16, 64> attention_decode_combine<__nv_bfloat16>\n"
    )
    lengths = np.array([77, 20], np.int32)
    q, k, v = draw(rng, bfloat16, 2, 2, 64), draw(rng, bfloat16, 2, 1, 90, 64), draw(rng, bfloat16, 2, 1, 90, 64)
    expected = formula(q, k, v, lengths, 0.5)
    k[0, :, 77:] = v[0, :, 77:] = np.nan
    assert near(decode(q, k, v, lengths, 0.5, 32), expected, "bfloat16", 2)
    monkeypatch.setitem(globals(), "get_kernel", lambda _, *name: cuda.get_kernel(broken, *name))
    caught = False
    for order in ("forward", "reverse"):
        with cuda.emulation(order=order):
            caught |= not near(decode(q, k, v, lengths, 0.5, 32), expected, "bfloat16", 2)
    assert caught


# ---- where operations launch them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [1, 63, 200])
def test_attention_of_one_query_over_a_cache(rng, dtype, keys):
    """The op decodes where the keys lie in a cache, and its backward goes on from the decoder's log-sum-exp."""
    q = draw(rng, DTYPES[dtype], 2, 1, 4, 32).transpose(0, 2, 1, 3)
    cache = draw(rng, DTYPES[dtype], 2, 2, 2, 210, 32)
    k, v = cache[0][:, :, :keys], cache[1][:, :, :keys]
    dout, lengths = draw(rng, DTYPES[dtype], 2, 4, 1, 32), np.array([keys, max(1, keys - 5)])

    def run(mode, wide):
        leaves = [Tensor(x.astype(np.float64) if wide else x, requires_grad=True) for x in (q, k, v)]
        with engine(mode):
            y = ops.attention(*leaves, causal=True, lengths=lengths)
            y.backward(dout.astype(y.dtype))
        return [y.data, *(leaf.grad for leaf in leaves)]

    before = cuda.launch_counts()
    received = run("require", wide=False)
    ran = " ".join(cuda.launch_counts() - before)
    assert "attention_decode<" in ran
    assert "attention_decode_combine<" in ran
    assert "attention_forward" not in ran
    for given, expected in zip(received, run("plain", wide=True), strict=True):
        assert near(given, expected, dtype, 8)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 9])
def test_the_linear_layer_of_a_few_rows(rng, rows):
    x, weight, bias = rng.normal(size=(rows, 40)), rng.normal(size=(17, 40)), rng.normal(size=17)
    before = cuda.launch_counts()
    with engine("require"):
        y = ops.linear(Tensor(x), Tensor(weight), Tensor(bias))
    assert (cuda.launch_counts() - before) == ({f"gemv<double, {rows}>": 1} if rows in (1, 2, 4, 8) else {})
    np.testing.assert_allclose(y.data, x @ weight.T + bias, rtol=1e-12)


def test_a_text_is_generated_by_the_decoder():
    """Token by token with the cache, by kernels: the logits of the formulas without one."""
    minillm.manual_seed(1)
    model = GPT2(GPT2Config(vocab_size=11, context=12, layers=2, heads=2, channels=64)).eval()
    ids = np.random.default_rng(0).integers(0, 11, (1, 12))
    expected = model(ids).data
    before = cuda.launch_counts()
    with no_grad(), engine("require"):
        cache = model.new_cache()
        model.next_logits(ids[:, :6], cache)
        for t in range(6, 12):
            np.testing.assert_allclose(model.next_logits(ids[:, t : t + 1], cache).data, expected[:, t], atol=1e-5)
    ran = cuda.launch_counts() - before
    assert ran["attention_decode<float, 32>"] == 2 * 6
    assert ran["gemv<float, 1>"] == 6 * 9 + 1
