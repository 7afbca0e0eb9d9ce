"""kernels/attention.cu and attention_bf16.cu, emulated, against the formula in float64.

A kernel may be as wrong as NumPy is with the formula in the same dtype, twice over (three times for a gradient); for
bfloat16, with the formula in float32 whose scores, weights and results are rounded to bfloat16, as three passes over
memory would. Errors are root mean squares.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from minillm import Tensor, cuda, manual_seed, ops, random
from minillm.cuda.emulate import COPIES
from minillm.engine import engine
from minillm.testing import check_gradients

pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
sys.path.append(str(Path(__file__).parent))

import attention_launch as launch

DTYPES = {"float32": np.dtype("float32"), "float64": np.dtype("float64"), "bfloat16": launch.BFLOAT16}
NAMES = ("out", "lse", "dq", "dk", "dv")


def problem(rng, dtype, batch, heads, key_heads, queries, keys, d, causal, lengths=None, dropout=None):
    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32).astype(dtype)

    lengths = np.full(batch, keys, np.int32) if lengths is None else np.array(lengths, np.int32)
    q, dout = draw(batch, heads, queries, d), draw(batch, heads, queries, d)
    k, v = draw(batch, key_heads, keys, d), draw(batch, key_heads, keys, d)
    return launch.Problem(q, k, v, dout, lengths, causal, 0.7 / np.sqrt(d), dropout)


def solve(case):
    out, lse = launch.forward(case, np.full_like(case.q, np.nan))
    grads = launch.backward(case, out, lse, [np.full_like(x, np.nan) for x in case[:3]])
    return out, lse, *grads


def check(received, case):
    dtype = case.q.dtype
    expected = launch.formula(case)
    by_numpy = launch.formula(case, np.float64 if dtype == np.float64 else np.float32, DTYPES.get(dtype.name))
    if dtype == np.float64:  # NumPy is then the reference: of longer sums, a few roundings
        by_numpy = [x * (1 + 2**-52) for x in expected]
    for name, x, y, near in zip(NAMES, received, expected, by_numpy, strict=True):
        finite = np.isfinite(y)
        assert np.array_equal(np.isposinf(x.astype(np.float64)), ~finite), name
        real = np.finfo(
            np.float32 if name == "lse" and dtype != np.float64 else np.float64 if dtype == np.float64 else np.float32
        )
        rounding = real.eps * max(1.0, np.abs(y[finite]).max(initial=0)) * (4 if dtype == np.float64 else 1)
        if name != "lse" and dtype.name == "bfloat16":
            rounding = 2**-9 * np.sqrt(np.square(y).mean())
        error, allowed = (np.sqrt(np.square(a.astype(np.float64)[finite] - y[finite]).mean()) for a in (x, near))
        factor = 2 if name in ("out", "lse") else 3
        assert error <= factor * max(allowed, rounding), f"{name}: error {error:.2e}, NumPy {allowed:.2e}"


# (queries, keys, batch, heads, key heads, head size): every edge of a tile, groups of 1 to 4, Tq shorter and longer
SIZES = [
    (1, 1, 2, 3, 3, 64),
    (17, 17, 2, 4, 2, 32),
    (63, 63, 1, 3, 1, 96),
    (64, 64, 1, 4, 1, 64),
    (65, 65, 2, 2, 2, 128),
    (127, 127, 1, 2, 1, 64),
    (128, 128, 1, 1, 1, 32),
    (129, 129, 1, 3, 1, 64),
    (300, 300, 1, 2, 2, 64),
    (300, 300, 1, 1, 1, 128),
    (1, 129, 2, 4, 1, 64),
    (40, 150, 1, 2, 1, 128),
    (150, 40, 1, 2, 1, 32),
]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_formula(rng, dtype, sizes, causal):
    queries, keys, batch, heads, key_heads, d = sizes
    case = problem(rng, DTYPES[dtype], batch, heads, key_heads, queries, keys, d, causal)
    check(solve(case), case)


@pytest.mark.parametrize("d", [1, 5, 40, 80, 127])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_head_size_up_to_128(rng, dtype, d):
    case = problem(rng, DTYPES[dtype], 1, 2, 1, 33, 70, d, True)
    check(solve(case), case)


@pytest.mark.parametrize("p", [0, 0.1])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_is_not_read(rng, dtype, causal, p):
    """Beyond the length of an item lies NaN, which one multiplication by a weight of 0 would carry into the result."""
    lengths = [100, 64, 37, 1, 0]
    case = problem(rng, DTYPES[dtype], 5, 2, 1, 100, 100, 64, causal, lengths, launch.Dropout(p, 1, 0) if p else None)
    for x in (case.k, case.v):
        for item, length in enumerate(lengths):
            x[item, :, length:] = np.nan
    received = solve(case)
    for x in (case.k, case.v):
        x[np.isnan(x)] = 0
    check(received, case)
    for item, length in enumerate(lengths):
        assert not received[3][item, :, length:].astype(float).any()
        assert not received[4][item, :, length:].astype(float).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_length_beyond_the_keys_is_their_number(rng, dtype):
    """On a GPU nobody looks at the lengths; a wrong one must at least read nothing that is not there."""
    case = problem(rng, DTYPES[dtype], 3, 1, 1, 20, 40, 32, False, [41, 2**31 - 1, -1])
    expected = solve(case._replace(lengths=np.array([40, 40, 0], np.int32)))
    for name, x, y in zip(NAMES, solve(case), expected, strict=True):
        assert np.array_equal(x, y), name


# p, then queries, keys, batch, heads, key heads, head size, causal, lengths: rows of P that end inside a block of the
# stream, and every edge of a tile
DROPPED = [
    (0.5, 1, 1, 2, 3, 3, 64, True, None),
    (0.1, 17, 17, 2, 4, 2, 32, True, [17, 9]),
    (0.5, 64, 65, 1, 3, 1, 64, False, None),
    (0.1, 127, 129, 2, 4, 1, 64, True, [129, 0]),
    (0.1, 300, 300, 1, 2, 2, 64, False, None),
    (0.5, 131, 260, 1, 2, 2, 64, True, [259]),
    (0.5, 150, 40, 2, 4, 1, 32, True, [1, 40]),
    (0.1, 33, 70, 1, 2, 1, 40, False, [69]),
]


@pytest.mark.parametrize("sizes", DROPPED, ids=lambda s: "x".join(map(str, s[:7])))
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_against_the_formula(rng, dtype, sizes):
    p, queries, keys, batch, heads, key_heads, d, causal, lengths = sizes
    dropout = launch.Dropout(p, 5, 11)
    case = problem(rng, DTYPES[dtype], batch, heads, key_heads, queries, keys, d, causal, lengths, dropout)
    check(solve(case), case)


@pytest.mark.parametrize("place", [(0, 0), (2**64 - 1, 2**32 - 1), (2**100 + 3, 2**62)], ids=["first", "far", "wide"])
@pytest.mark.parametrize(("dtype", "d"), [("float32", 64), ("float64", 64), ("bfloat16", 64), ("bfloat16", 128)])
def test_the_mask_is_numpys_to_the_bit(rng, dtype, d, place):
    """With V the identity the output is m P, and with dO the identity dV is its transpose: both show the zeros."""
    keys = d - 3
    case = problem(rng, DTYPES[dtype], 2, 4, 2, d, keys, d, False, None, launch.Dropout(0.3, *place))
    case.v[...] = np.eye(keys, d)
    case.dout[...] = np.eye(d)
    out, _, _, _, dv = received = solve(case)
    check(received, case)
    kept = random.keep_scale(*place, (2, 4, d, d), 0.3, np.dtype("float64"))[..., :keys] > 0
    assert 0.69 < kept.mean() < 0.71
    assert np.array_equal(out[..., :keys] != 0, kept)
    by_group = kept.reshape(2, 2, 2, d, keys)
    assert np.array_equal(dv != 0, by_group.any(axis=2).swapaxes(-1, -2))


@pytest.mark.parametrize(("dtype", "d"), [("float32", 64), ("float64", 64), ("bfloat16", 64), ("bfloat16", 128)])
def test_the_mask_of_some_heads_and_items(rng, dtype, d):
    """Of 7 items with 6 heads, items 3 and 4 with heads 2 to 5: their part of the whole mask, forward and backward."""
    keys = d - 3
    whole = random.keep_scale(9, 4, (7, 6, d, d), 0.3, np.dtype("float64"))[..., :keys] > 0
    head = d * d // random.BLOCK
    dropout = launch.Dropout(0.3, 9, 4 + (3 * 6 + 2) * head, (6 - 4) * head)
    case = problem(rng, DTYPES[dtype], 2, 4, 2, d, keys, d, False, None, dropout)
    case.v[...] = np.eye(keys, d)
    case.dout[...] = np.eye(d)
    out, _, _, _, dv = received = solve(case)
    check(received, case)
    kept = whole[3:5, 2:]
    assert np.array_equal(out[..., :keys] != 0, kept)
    assert np.array_equal(dv != 0, kept.reshape(2, 2, 2, d, keys).any(axis=2).swapaxes(-1, -2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_number_at_the_threshold_is_kept(rng, dtype):
    """As likely as 1 in 2^32: p is made from the number of the only weight of a query."""
    number = random.bits(7, 0, 1)[0]
    case = problem(rng, DTYPES[dtype], 1, 1, 1, 1, 1, 32, True, None, launch.Dropout(number / 2**32, 7, 0))
    check(solve(case), case)
    assert case.v.astype(float).all()
    assert solve(case)[0].astype(float).all()
    one_more = case._replace(dropout=launch.Dropout((number + 1) / 2**32, 7, 0))
    assert not solve(one_more)[0].astype(float).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_that_sees_no_key(rng, dtype):
    """More queries than keys, causal: the first Tq - Tk see none. They give 0 and +inf, and pass nothing on."""
    case = problem(rng, DTYPES[dtype], 1, 1, 1, 200, 30, 32, True)
    out, lse, dq, *_ = received = solve(case)
    assert np.isposinf(lse[..., :170]).all()
    assert np.isfinite(lse[..., 170:]).all()
    assert not out[:, :, :170].astype(float).any()
    assert not dq[:, :, :170].astype(float).any()
    check(received, case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_of_one_buffer(rng, dtype):
    """q, k, v and their gradients are views of (B, T, 3, H, D), out and dout of (B, T, H, D); nothing is copied."""
    dtype = DTYPES[dtype]
    batch, tokens, heads, d = 2, 70, 2, 64
    qkv = rng.standard_normal((batch, tokens, 3, heads, d)).astype(np.float32).astype(dtype)
    q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    dout = rng.standard_normal((batch, tokens, heads, d)).astype(np.float32).astype(dtype).transpose(0, 2, 1, 3)
    case = launch.Problem(q, k, v, dout, np.full(batch, tokens, np.int32), True, d**-0.5)
    out = np.full((batch, tokens + 1, heads, d), 7, dtype)
    gradient = np.full((batch, tokens + 1, 3, heads, d), 7, dtype)
    out_view = out[:, :tokens].transpose(0, 2, 1, 3)
    grads = [gradient[:, :tokens, i].transpose(0, 2, 1, 3) for i in range(3)]
    _, lse = launch.forward(case, out_view)
    launch.backward(case, out_view, lse, grads)
    dense = [np.ascontiguousarray(x) for x in case[:4]]
    expected = solve(launch.Problem(*dense, *case[4:]))
    for name, x, y in zip(NAMES, (out_view, lse, *grads), expected, strict=True):
        assert np.array_equal(x, y), name  # to the bit: the order of the sums does not depend on the strides
    assert (out[:, tokens:] == 7).all()
    assert (gradient[:, tokens:] == 7).all()


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [None, launch.Dropout(0.5, 3, 0)], ids=["whole", "dropout"])
def test_same_bits_in_every_order(rng, dropout, dtype, order, copies):
    if dtype == "float32" and copies == "deferred":
        pytest.skip("the plain kernels copy nothing asynchronously")
    case = problem(rng, DTYPES[dtype], 1, 2, 1, 130, 200, 64, True, [190], dropout)
    expected = solve(case)
    with cuda.emulation(order=order, seed=3, copies=copies):
        received = solve(case)
    for name, x, y in zip(NAMES, received, expected, strict=True):
        assert np.array_equal(x, y), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores(rng, dtype):
    """Scores of some hundreds, rising and falling along the keys: e^score would overflow."""
    case = problem(rng, DTYPES[dtype], 1, 1, 1, 70, 140, 32, False)
    ramp = np.where(np.arange(140) % 70 < 35, 20, -20)[:, None]
    q, k = 30 * case.q.astype(np.float32), case.k.astype(np.float32) + ramp
    case = case._replace(q=q.astype(DTYPES[dtype]), k=k.astype(DTYPES[dtype]))
    assert np.abs(launch.formula(case)[1]).max() > 100
    received = solve(case)
    assert all(np.isfinite(x.astype(float)).all() for x in received)
    expected = launch.formula(case)
    tolerance = {"float32": 2e-4, "float64": 1e-12, "bfloat16": 0.05}[dtype]
    for name, x, y in zip(NAMES, received, expected, strict=True):
        assert np.abs(x.astype(float) - y).max() <= tolerance * max(1, np.abs(y).max()), name


def test_nan_is_not_hidden(rng):
    case = problem(rng, DTYPES["bfloat16"], 1, 1, 1, 40, 40, 32, True)
    case.k[0, 0, 20] = np.nan
    out, _, dq, _, _ = solve(case)
    assert np.isfinite(out[:, :, :20].astype(float)).all()
    assert np.isnan(out[:, :, 20:].astype(float)).all()
    assert np.isnan(dq[:, :, 20:].astype(float)).all()


def test_the_kernels_ran(rng, monkeypatch):
    """Tensor cores where dtype, head size and GPU allow it; a copy of its own for dropout."""
    before = cuda.launch_counts()
    solve(problem(rng, DTYPES["bfloat16"], 1, 1, 1, 17, 17, 64, True))
    solve(problem(rng, DTYPES["float32"], 1, 1, 1, 17, 17, 48, True))
    solve(problem(rng, DTYPES["bfloat16"], 1, 1, 1, 17, 17, 32, True, None, launch.Dropout(0.5, 1, 0)))
    monkeypatch.setattr(launch.attention, "compute_capability", lambda array: 75)
    solve(problem(rng, DTYPES["bfloat16"], 1, 1, 1, 17, 17, 64, True, None, launch.Dropout(0.5, 1, 0)))
    versions = ("_bf16<64, false>", "<float, 64, false>", "_bf16<32, true>", "<__nv_bfloat16, 64, true>")
    names = ("attention_forward", "attention_backward_keys", "attention_backward_queries")
    expected = {name + version: 1 for name in names for version in versions}
    expected |= {"attention_delta<__nv_bfloat16>": 3, "attention_delta<float>": 1}
    assert cuda.launch_counts() - before == expected


# ---- the public operation ------------------------------------------------------------------------------------------


SETTINGS = {
    "plain": {},
    "causal": {"causal": True},
    "padded": {"lengths": np.array([37, 0, 20, 0], np.int32)[::2]},
    "dropout": {"dropout_p": 0.4},
    "all": {"causal": True, "lengths": [0, 36], "dropout_p": 0.1},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_op_runs_its_kernels(rng, dtype, settings):
    """Values and all gradients as by the formula; q, k and v are views of one array, as in GPT-2."""
    data = rng.standard_normal((2, 37, 3, 4, 40)).astype(dtype)
    weights = rng.standard_normal((2, 4, 37, 40)).astype(dtype)

    def run(mode):
        manual_seed(9)
        qkv = Tensor(data, requires_grad=True)
        with engine(mode):
            out = ops.attention(*(qkv[:, :, i].transpose(1, 2) for i in range(3)), **settings)
            (out * Tensor(weights)).sum().backward()
        return out.data, qkv.grad

    expected = run("plain")
    before = cuda.launch_counts()
    received = run("emulate")
    ran = {name.split("<")[0] for name in cuda.launch_counts() - before if name.startswith("attention")}
    assert ran == {"attention_forward", "attention_delta", "attention_backward_keys", "attention_backward_queries"}
    for x, y in zip(received, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=(2e-5 if dtype == "float32" else 1e-13))


@pytest.mark.parametrize("part", [{"rows": (3, 8)}, {"heads": (4, 12)}, {"rows": (3, 8), "heads": (4, 12)}], ids=str)
def test_the_op_on_a_part_runs_its_kernels(rng, part):
    data, weights = rng.standard_normal((3, 2, 4, 19, 8)), rng.standard_normal((2, 4, 19, 8))

    def run(mode):
        manual_seed(9)
        leaf = Tensor(data, requires_grad=True)
        with engine(mode), random.part(**part):
            out = ops.attention(leaf[0], leaf[1], leaf[2], causal=True, dropout_p=0.4)
            (out * Tensor(weights)).sum().backward()
        return out.data, leaf.grad

    for x, y in zip(run("require"), run("plain"), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-13)


@pytest.mark.parametrize("settings", [{}, {"dropout_p": 0.3}, {"dropout_p": 0.3, "lengths": [6, 11]}], ids=str)
def test_gradients_of_the_double_kernels(rng, settings):
    def attend(q, k, v):
        manual_seed(2)
        return ops.attention(q, k, v, causal=True, **settings)

    q, k, v = (rng.standard_normal((2, heads, tokens, 3)) for heads, tokens in ((2, 4), (1, 11), (1, 11)))
    with engine("require"):
        check_gradients(attend, q, k, v)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("which", ["q", "k", "v", "qkv"])
@pytest.mark.parametrize("axis", [0, 1])
def test_stretched_arguments(rng, which, axis, dtype):
    """What `broadcast_to` gives has strides of 0, and everything that is made like it another order of axes."""
    arrays = {name: rng.standard_normal((2, 2, 5, 3)).astype(dtype) for name in "qkv"}
    arrays |= {name: np.broadcast_to(arrays[name].take([0], axis), (2, 2, 5, 3)) for name in which}
    results = []
    for copy in (np.asarray, np.ascontiguousarray):
        with engine("require"):
            leaves = [Tensor(copy(x), requires_grad=True) for x in arrays.values()]
            out = ops.attention(*leaves, causal=True)
            out.backward(np.arange(out.numel(), dtype=dtype).reshape(out.shape))
        results.append([out.data, *(leaf.grad for leaf in leaves)])
    for stretched, contiguous in zip(*results, strict=True):
        np.testing.assert_array_equal(stretched, contiguous)
    with engine("plain"):
        expected = ops.attention(*map(Tensor, arrays.values()), causal=True)
    np.testing.assert_allclose(results[0][0], expected.data, rtol=0, atol=1e-5)


def test_what_the_kernels_do_not_do(rng):
    q = Tensor(rng.standard_normal((1, 1, 4, 8)))
    with engine("emulate"):
        by_formula = ops.attention(q, q, q, mask=np.tri(4, dtype=bool))
        by_kernel = ops.attention(q, q, q, causal=True)
        np.testing.assert_allclose(by_formula.data, by_kernel.data, atol=1e-14)
    for settings in ({"mask": np.tri(4, dtype=bool)}, {"scale": -1.0}):
        with engine("require"), pytest.raises(cuda.KernelError, match="attention: no kernel"):
            ops.attention(q, q, q, **settings)
