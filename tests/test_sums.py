"""Sums stay right to seven digits: over rows, columns and any axes, of any layout, and to named places."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import backend, ops, sums, tensor
from minillm.autograd import Tensor

BOUND = 1e-6


def wrong_by(received, x: np.ndarray, axis=None, keepdims=False) -> float:
    """The largest error, in relation to the sum of all |x|, and for positive x to the sum."""
    exact = x.astype(np.float64)
    right, scale = exact.sum(axis, keepdims=keepdims), np.abs(exact).sum(axis, keepdims=keepdims)
    assert np.shape(received) == right.shape
    return float((np.abs(np.asarray(received, np.float64) - right) / np.maximum(scale, 1e-300)).max())


def filled(kind: str, shape: tuple[int, ...], rng) -> np.ndarray:
    if kind == "constant":
        return np.full(shape, 1 + rng.random(), np.float32)
    return rng.random(shape, np.float32) if kind == "positive" else rng.standard_normal(shape, np.float32)


KINDS = ("constant", "positive", "normal")


# ---- any axes, any layout -------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4), st.data())
def test_sum_over_is_the_sum(shape, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(size=shape).astype(np.float32).transpose(data.draw(st.permutations(range(len(shape)))))
    x = x[tuple(slice(None, None, data.draw(st.sampled_from([1, -1, 2]))) for _ in x.shape)]
    if data.draw(st.booleans()):
        x = np.broadcast_to(x, (3, *x.shape))
    axes = data.draw(st.none() | st.sets(st.integers(0, max(0, x.ndim - 1))).map(tuple)) if x.ndim else None
    keepdims = data.draw(st.booleans())
    for few in (sums.FEW, 0):  # and with the care that is taken of many
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sums, "FEW", few)
            total = sums.sum_over(x, axes, keepdims)
        assert total.dtype == np.float32
        right = x.astype(np.float64).sum(axes, keepdims=keepdims)
        assert np.shape(total) == right.shape
        np.testing.assert_allclose(total, right, atol=1e-5)


SHAPES = [(10**6,), (10**6, 1), (1, 10**6), (300_000, 3), (40_000, 65), (8192, 768), (33, 5, 3001), (129, 7)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_over_every_axis_and_layout(shape, kind, rng):
    x = filled(kind, shape, rng)
    layouts = {"as it is": x, "transposed": np.asfortranarray(x), "a slice": x[::-2], "a last slice": x[..., 1:]}
    for name, y in layouts.items():
        if not y.size:
            continue
        for axis in (None, *range(y.ndim), *([(0, y.ndim - 1)] if y.ndim > 1 else [])):
            assert wrong_by(sums.sum_over(y, axis), y, axis) < BOUND, f"{name}, over {axis}"
            mean = ops.mean(tensor(y), axis).data * (y.size / max(1, sums.sum_over(y, axis).size))
            assert wrong_by(mean, y, axis) < BOUND, f"mean, {name}, over {axis}"


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 8, 15, 64, 65, 200])
@pytest.mark.parametrize("rows", [1, 31, 33, 64, 100, 255, 256, 257, 1000, 30_011])
def test_column_and_row_sums_of_constants(rows, columns, rng):
    """Constants are the worst: every addition rounds the same way."""
    for constant in 1 + rng.random(3):
        whole = np.full((rows, columns + 3), constant, np.float32)
        for x in (whole[:, :columns].copy(), np.asfortranarray(whole[:, :columns]), whole[:, :columns], whole[:, ::2]):
            assert wrong_by(sums.column_sums(x), x, 0) < BOUND
            assert wrong_by(sums.row_sums(x), x, -1, keepdims=True) < BOUND
            assert wrong_by(sums.row_sums(x.T), x.T, -1, keepdims=True) < BOUND


def test_long_products_of_rows(rng):
    a = np.full((2, 10**6), 1.1, np.float32)
    assert sums.vecdot(a, a) == pytest.approx(np.float64(a[0, 0]) ** 2 * 10**6, rel=BOUND)
    a, b = rng.standard_normal((2, 3, 5000))
    np.testing.assert_allclose(sums.vecdot(a, b), (a * b).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(sums.vecdot(a, b[0]), (a * b[0]).sum(-1), rtol=1e-12)


def test_the_largest_shapes():
    for shape, axis in (((10**7,), 0), ((10**7, 1), 0), ((1, 10**7), 1), ((10**6, 3), 0), ((65536, 768), 0)):
        x = np.full(shape, 1.1, np.float32)
        assert wrong_by(ops.sum(tensor(x), axis).data, x, axis) < BOUND


def test_a_stretched_axis_takes_no_memory():
    x = np.broadcast_to(np.full((1, 3), 1.1, np.float32), (10**9, 3))  # 12 GB
    np.testing.assert_allclose(sums.sum_over(x, 0), np.full(3, 1.1e9), rtol=1e-6)
    np.testing.assert_allclose(sums.sum_over(x), 3.3e9, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_added_up_in_more(dtype):
    dtype = np.dtype(dtype) if dtype == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    x = np.full((5000, 3), 0.1, dtype)
    right = float(x[0, 0]) * 5000
    for y in (ops.sum(tensor(x), 0).data, ops.mean(tensor(x), 0).data.astype(np.float32) * 5000, sums.column_sums(x)):
        np.testing.assert_allclose(np.asarray(y, np.float32), np.full(3, right), rtol=0.01)
    w = tensor(np.zeros(3, dtype), requires_grad=True)
    (w + tensor(x)).backward(x)
    np.testing.assert_allclose(w.grad.astype(np.float32), np.full(3, right), rtol=0.01)
    assert w.grad.dtype == dtype


def test_the_mean_of_many_half_precision_numbers_does_not_overflow():
    x = tensor(np.full(100_000, 10, np.float16), requires_grad=True)
    y = x.mean()
    y.backward()
    assert y.item() == 10
    assert x.grad[0] == np.float16(1e-5)


# ---- to named places ------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 9),
    st.sampled_from([0, 1, 3, 70, 600]),
    st.lists(st.integers(0, 8), max_size=60),
    st.sampled_from([1, 3, 32]),
    st.integers(0, 2**32 - 1),
)
def test_rows_are_added_where_they_belong(size, channels, ids, few, seed):
    """Rows are added correctly for every number of repetitions that counts as few."""
    rng = np.random.default_rng(seed)
    ids = np.array([i % size for i in ids], int)
    rows, start = rng.normal(size=(len(ids), channels)), rng.normal(size=(size, channels))
    expected, table = start.copy(), start.copy()
    np.add.at(expected, ids, rows)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("FEW", few), ("GATHERED", 7)):
            patch.setattr(sums, name, value)
        patch.setattr(backend, "cutting", backend.cutting._replace(parallel_bytes=0))
        sums.add_rows(table, ids, rows)
    np.testing.assert_allclose(table, expected, atol=1e-12)


KEYS = [
    *(np.array([2, 0, 2]), (np.array([1, 1, 0]), np.array([2, 2, 3])), (slice(1, 3), np.array([3, 3, 0]))),
    *((..., np.array([-1, -1])), (None, np.array([[0, 1], [1, 1]])), (np.array([0, 0]), slice(None), np.array([1, 1]))),
    *((np.array([True, False, True]), np.array([1, 1])), (1, np.array([0, 0]), 2), np.int64(1)),
    (np.arange(12).reshape(3, 4) % 2 == 0, np.array([1] * 6)),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_add_at_is_numpys(key, rng):
    array = rng.normal(size=(3, 4, 5))
    values = rng.normal(size=array[key].shape)
    expected = array.copy()
    np.add.at(expected, key, values)
    sums.add_at(array, key, values)
    np.testing.assert_allclose(array, expected, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "channels"), [(10**6, 1), (300_000, 3), (20_000, 65), (20_000, 600)])
def test_one_id_for_all_rows(rows, channels, kind, rng):
    x, ids = filled(kind, (rows, channels), rng), np.full(rows, 2)
    for pick in (
        lambda w: ops.embedding(ids, w),
        lambda w: w[ids],
        lambda w: ops.index_select(w, 0, ids),
        lambda w: w[None, ids][0],
    ):
        table = tensor(np.zeros((4, channels), np.float32), requires_grad=True)
        pick(table).backward(x)
        assert wrong_by(table.grad[2], x, 0) < BOUND
        assert not table.grad[[0, 1, 3]].any()


# ---- every operation that sums rows ---------------------------------------------------------------------------------

ROWS = 200_000


def ones(*shape: int) -> Tensor:
    return tensor(np.ones(shape, np.float32), requires_grad=True)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_what_all_rows_share(kind, rng):
    x, u = filled("normal", (ROWS, 4), rng), filled(kind, (ROWS, 4), rng)
    constant = np.repeat(filled("normal", (1, 4), rng), ROWS, axis=0) if kind == "constant" else x
    condition = rng.random((ROWS, 4)) < 0.5
    for name, call, expected in (
        ("add", lambda b: tensor(x) + b, u),
        ("sub", lambda b: tensor(x) - b, -u),
        ("mul", lambda b: tensor(constant) * b, u * constant),
        ("where", lambda b: ops.where(condition, b, tensor(x)), np.where(condition, u, 0)),
        ("broadcast", lambda b: b.broadcast_to(ROWS, 4), u),
        ("linear", lambda b: ops.linear(tensor(x[:, :2]), ones(4, 2), b), u),
    ):
        b = ones(4)
        call(b).backward(u)
        assert wrong_by(b.grad, expected, 0) < BOUND, name
    for name, call in (
        ("bias_gelu", ops.bias_gelu),
        ("bias_gelu, tanh form", lambda x, b: ops.bias_gelu(x, b, "tanh")),
    ):
        leaf, b = tensor(constant.copy(), requires_grad=True), ones(4)
        call(leaf, b).backward(u)
        assert wrong_by(b.grad, leaf.grad, 0) < BOUND, name


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_normalisation_weights(kind, rng):
    x, u = filled("normal", (ROWS, 4), rng), filled(kind, (ROWS, 4), rng)
    if kind == "constant":
        x = np.repeat(x[:1], ROWS, axis=0)
    for name, call in (
        ("layernorm", ops.layer_norm),
        ("add_layernorm", lambda x, w, b: ops.add_layer_norm(x, x * 0, w, b)[1]),
        ("rmsnorm", lambda x, w, b: ops.rms_norm(x, w) + b * 0),
    ):
        weight, bias = ones(4), tensor(np.zeros(4, np.float32), requires_grad=True)
        y = call(tensor(x), weight, bias)
        y.backward(u)
        assert wrong_by(weight.grad, u.astype(np.float64) * y.data, 0) < BOUND, name
        if name != "rmsnorm":
            assert wrong_by(bias.grad, u, 0) < BOUND, name


def test_softmax_and_losses_of_long_rows_and_many():
    x = np.full((1, 10**6), 1.1, np.float32)
    x[0, 0] = 2
    exact = np.exp(x.astype(np.float64) - 2)
    for function, right in ((ops.softmax, exact / exact.sum()), (ops.log_softmax, np.log(exact / exact.sum()))):
        np.testing.assert_allclose(function(tensor(x)).data, right, rtol=BOUND)
    loss = ops.cross_entropy(tensor(x), np.array([0]))
    assert loss.item() == pytest.approx(np.log(exact.sum()), rel=BOUND)
    many = ops.cross_entropy(tensor(np.repeat(x[:, :4], ROWS, axis=0)), np.ones(ROWS, int))
    assert many.item() == pytest.approx(np.log(exact[0, :4].sum()) + 2 - np.float64(x[0, 1]), rel=BOUND)


def test_attention_adds_up_many_queries():
    u = np.full((1, 1, 10**5, 2), 1.1, np.float32)
    q, k, v = (tensor(np.ones((1, 1, n, 2), np.float32), requires_grad=True) for n in (10**5, 1, 1))
    ops.attention(q, k, v).backward(u)
    np.testing.assert_allclose(v.grad[0, 0, 0], np.full(2, np.float64(u[0, 0, 0, 0]) * 10**5), rtol=BOUND)


@pytest.mark.parametrize("threads", [1, 2])
def test_sums_over_many_blocks(threads, monkeypatch):
    monkeypatch.setattr(backend, "cutting", backend.cutting._replace(threads=threads))
    monkeypatch.setattr(backend, "CACHE_BYTES", 64)
    x = np.full((100_000, 4), 1.1, np.float32)
    (total,) = backend.sum_over_blocks(lambda rows: (x[rows].sum(axis=0),), x)
    assert total.dtype == np.float32
    assert wrong_by(total, x, 0) < BOUND
