"""Attention: the blocks against a formula written with loops, and who may see whom."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from minillm import manual_seed, ops, random
from minillm.autograd import Tensor
from minillm.engine import engine
from minillm.errors import DtypeError, InputError, ShapeError
from minillm.fast import attention as fast_attention


def naive(q, k, v, visible=None, bias=None, scale=None):
    """One query at a time: softmax over the keys it sees; 0 where it sees none."""
    batch, heads, queries, channels = q.shape
    group = heads // k.shape[1]
    full = (batch, heads, queries, k.shape[2])
    visible = np.broadcast_to(True if visible is None else visible, full)
    bias = np.broadcast_to(0.0 if bias is None else bias, full)
    scale = 1 / math.sqrt(channels) if scale is None else scale
    out = np.zeros(q.shape)
    for b, h, i in np.ndindex(batch, heads, queries):
        seen = visible[b, h, i]
        if seen.any():
            scores = scale * k[b, h // group, seen] @ q[b, h, i] + bias[b, h, i, seen]
            weights = np.exp(scores - scores.max())
            out[b, h, i] = weights / weights.sum() @ v[b, h // group, seen]
    return out


def triangle(queries, keys):
    return np.tril(np.ones((queries, keys), bool), keys - queries)


def qkv(rng, batch=2, heads=2, queries=5, channels=3, groups=None, keys=None, dtype=np.float64):
    kv = (batch, groups or heads, queries if keys is None else keys, channels)
    return [rng.normal(size=shape).astype(dtype) for shape in ((batch, heads, queries, channels), kv, kv)]


def ours(q, k, v, *args, **settings):
    return ops.attention(Tensor(q), Tensor(k), Tensor(v), *args, **settings).data


# --- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("causal", [False, True])
def test_blocks_of_queries(length, causal, rng):
    q, k, v = qkv(rng, queries=length)
    expected = naive(q, k, v, triangle(length, length) if causal else None)
    np.testing.assert_allclose(ours(q, k, v, causal), expected, atol=1e-13)


@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (5, 9), (9, 5), (65, 200), (130, 1), (130, 66), (200, 70)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_unequal_lengths_and_grouped_heads(queries, keys, causal, groups, rng):
    q, k, v = qkv(rng, 2, 4, queries, 2, groups, keys)
    expected = naive(q, k, v, triangle(queries, keys) if causal else None)
    np.testing.assert_allclose(ours(q, k, v, causal), expected, atol=1e-13)


def test_a_whole_sequence_is_what_its_queries_give_one_by_one(rng):
    """Causal with fewer queries than keys: what a cache of keys and values needs."""
    q, k, v = qkv(rng, queries=70)
    whole = ours(q, k, v, causal=True)
    for t in (0, 1, 63, 64, 69):
        one = ours(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], causal=True)
        np.testing.assert_allclose(one, whole[:, :, t : t + 1], atol=1e-14)


@pytest.mark.parametrize("length", [3, 66])
def test_the_future_moves_nothing(length, rng):
    q, k, v = qkv(rng, queries=length)
    before = ours(q, k, v, causal=True)
    for t in range(length - 1):
        moved = [x.copy() for x in (q, k, v)]
        for x in moved:
            x[:, :, t + 1 :] += rng.normal(size=x[:, :, t + 1 :].shape)
        after = ours(*moved, causal=True)
        np.testing.assert_allclose(after[:, :, : t + 1], before[:, :, : t + 1], rtol=1e-13, atol=1e-14)
        assert not np.allclose(after[:, :, t + 1], before[:, :, t + 1])


def test_the_past_gets_no_gradient_from_queries_before_it(rng):
    q, k, v = (Tensor(x, requires_grad=True) for x in qkv(rng, queries=66))
    u = np.zeros(q.shape)
    u[:, :, :30] = 1
    ops.attention(q, k, v, causal=True).backward(u)
    for x in (q, k, v):
        assert not x.grad[:, :, 30:].any()
        assert x.grad[:, :, :30].any()


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (5, 1), (2, 1, 1, 7), (1, 4, 5, 7), (2, 4, 5, 7), ()])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_masks_of_every_shape(shape, causal, groups, rng):
    q, k, v = qkv(rng, 2, 4, 5, 3, groups, 7)
    order = triangle(5, 7) if causal else True
    visible = rng.random(shape) < 0.7
    np.testing.assert_allclose(ours(q, k, v, causal, visible), naive(q, k, v, visible & order), atol=1e-14)
    bias = rng.normal(size=shape)
    np.testing.assert_allclose(ours(q, k, v, causal, bias), naive(q, k, v, order, bias), atol=1e-14)
    hiding = np.where(visible, bias, -np.inf)
    np.testing.assert_allclose(ours(q, k, v, causal, hiding), naive(q, k, v, visible & order, bias), atol=1e-14)


def test_a_mask_crosses_blocks_of_queries(rng):
    q, k, v = qkv(rng, queries=130)
    visible = rng.random((2, 1, 130, 130)) < 0.5
    np.testing.assert_allclose(ours(q, k, v, mask=visible), naive(q, k, v, visible), atol=1e-13)


def test_a_mask_may_be_a_tensor_or_a_list(rng):
    q, k, v = qkv(rng, queries=2)
    visible = [[True, False], [True, True]]
    expected = naive(q, k, v, np.array(visible))
    for mask in (visible, Tensor(np.array(visible))):
        np.testing.assert_allclose(ours(q, k, v, mask=mask), expected, atol=1e-14)


def test_a_floating_mask_gets_no_gradient(rng):
    q, k, v = qkv(rng, queries=2)
    mask = Tensor(np.zeros((2, 2)), requires_grad=True)
    ops.attention(Tensor(q, requires_grad=True), Tensor(k), Tensor(v), mask=mask).sum().backward()
    assert mask.grad is None


@pytest.mark.parametrize(("queries", "keys"), [(1, 7), (5, 7), (9, 4), (130, 66)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_lengths_hide_the_keys_from_there_on(queries, keys, causal, groups, rng):
    q, k, v = qkv(rng, 4, 4, queries, 2, groups, keys)
    lengths = np.array([keys, 0, 1, int(rng.integers(2, keys))])
    padding = (np.arange(keys) < lengths[:, None])[:, None, None]
    visible = padding & triangle(queries, keys) if causal else padding
    expected = naive(q, k, v, visible)
    assert not expected[1].any()
    for given in (lengths, lengths.tolist(), lengths.astype(np.uint8), Tensor(lengths), lengths.repeat(2)[::2]):
        np.testing.assert_allclose(ours(q, k, v, causal, lengths=given), expected, atol=1e-13)
    some = rng.random((queries, keys)) < 0.7
    both = ours(q, k, v, causal, some, lengths=lengths)
    np.testing.assert_allclose(both, naive(q, k, v, visible & some), atol=1e-13)


def test_padding_moves_nothing_and_gets_no_gradient(rng):
    q, k, v = qkv(rng, 3, 2, 70, 3)
    lengths = [70, 31, 0]
    before = ours(q, k, v, lengths=lengths)
    for item, length in enumerate(lengths):
        k[item, :, length:], v[item, :, length:] = 9, -9
    np.testing.assert_array_equal(ours(q, k, v, lengths=lengths), before)
    leaves = [Tensor(x, requires_grad=True) for x in (q, k, v)]
    ops.attention(*leaves, lengths=lengths, dropout_p=0.1).backward(rng.normal(size=q.shape))
    for leaf in leaves[1:]:
        assert leaf.grad[0].all(axis=-1).all()
        assert leaf.grad[1, :, :31].any(axis=-1).all()
        assert not leaf.grad[1, :, 31:].any()
    assert all(not leaf.grad[2].any() for leaf in leaves)


@pytest.mark.parametrize("hidden", [np.zeros((1, 1), bool), np.full((1, 1), -np.inf)], ids=["bool", "float"])
def test_queries_that_see_nothing_give_zero_and_pass_no_gradient(hidden, rng):
    q, k, v = (Tensor(x, requires_grad=True) for x in qkv(rng))
    y = ops.attention(q, k, v, mask=hidden)
    assert not y.data.any()
    y.backward(rng.normal(size=y.shape))
    for x in (q, k, v):
        assert not x.grad.any()


def test_more_queries_than_keys_leave_the_first_without_any(rng):
    q, k, v = qkv(rng, queries=70, keys=2)
    y = ours(q, k, v, causal=True)
    assert not y[:, :, :68].any()
    np.testing.assert_allclose(y[:, :, 68], v[:, :, 0], atol=1e-14)


def test_scale(rng):
    q, k, v = qkv(rng)
    np.testing.assert_allclose(ours(q, k, v), ours(q, k, v, scale=1 / math.sqrt(3)), atol=1e-15)
    np.testing.assert_allclose(
        ours(q, k, v, scale=0), np.broadcast_to(v.mean(axis=2, keepdims=True), v.shape), atol=1e-14
    )
    np.testing.assert_allclose(ours(q, k, v, scale=2), naive(q, k, v, scale=2), atol=1e-14)


def test_huge_scores_stay_finite(rng):
    q, k, v = qkv(rng, dtype=np.float32)
    leaves = [Tensor(x, requires_grad=True) for x in (q * 1e4, k * 1e4, v)]
    y = ops.attention(*leaves, causal=True)
    y.backward(np.ones(y.shape))
    assert np.isfinite(y.data).all()
    assert all(np.isfinite(x.grad).all() for x in leaves)
    largest = (q * 1e4 @ (k * 1e4).swapaxes(-1, -2)).argmax(-1)
    chosen = np.take_along_axis(v, largest[..., None], 2)
    np.testing.assert_allclose(ours(q * 1e4, k * 1e4, v), chosen, rtol=1e-5)


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0, "keys": 3}, {"keys": 0}, {"queries": 0}])
def test_nothing_to_do(sizes, rng):
    leaves = [Tensor(x, requires_grad=True) for x in qkv(rng, **sizes)]
    y = ops.attention(*leaves, causal=True)
    assert y.shape == leaves[0].shape
    assert not y.data.any()
    y.backward(np.ones(y.shape))
    for leaf in leaves:
        assert leaf.grad.shape == leaf.shape
        assert not leaf.grad.any()


def test_the_output_keeps_the_memory_order_of_the_queries(rng):
    q = rng.normal(size=(2, 5, 4, 3)).transpose(0, 2, 1, 3)
    with engine("fast"):
        y = ops.attention(Tensor(q), Tensor(q), Tensor(q))
    assert y.data.transpose(0, 2, 1, 3).flags.c_contiguous


# --- dropout -------------------------------------------------------------------------------------------------------


def weights_of(rng, p, queries=70, keys=None, causal=False, seed=5):
    """Attention is linear in v: with v = 1, one key at a time, the output is that key's weight."""
    keys = queries if keys is None else keys
    q, k, _ = qkv(rng, 1, 2, queries, keys, keys=keys)
    v = np.broadcast_to(np.eye(keys), (1, 2, keys, keys)).copy()
    manual_seed(seed)
    leaf = Tensor(v, requires_grad=True)
    y = ops.attention(Tensor(q), Tensor(k), leaf, causal, dropout_p=p)
    return y, leaf


def test_dropout_zeroes_a_share_of_the_weights_and_scales_the_rest():
    y, _ = weights_of(np.random.default_rng(0), 0.3)
    whole, _ = weights_of(np.random.default_rng(0), 0.0)
    kept = y.data != 0
    assert abs(kept.mean() - 0.7) < 5 * math.sqrt(0.3 * 0.7 / kept.size)
    np.testing.assert_allclose(y.data[kept], whole.data[kept] / 0.7, rtol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_dropout_draws_the_same_mask_in_the_backward(causal):
    """With v the identity, y = m P and dv = (m P)^T dy: both show the same zeros."""
    y, v = weights_of(np.random.default_rng(0), 0.5, causal=causal)
    u = np.random.default_rng(1).normal(size=y.shape)
    y.backward(u)
    np.testing.assert_allclose(v.grad, y.data.swapaxes(-1, -2) @ u, atol=1e-12)


@pytest.mark.parametrize("block", [1, 7, 64, 100])
def test_a_dropout_mask_does_not_depend_on_the_blocks(block, monkeypatch):
    expected, _ = weights_of(np.random.default_rng(0), 0.5, keys=9, causal=True)
    monkeypatch.setattr(fast_attention, "QUERY_BLOCK", block)
    y, _ = weights_of(np.random.default_rng(0), 0.5, keys=9, causal=True)
    np.testing.assert_array_equal(y.data == 0, expected.data == 0)
    np.testing.assert_allclose(y.data, expected.data, atol=1e-14)


@pytest.mark.parametrize("heads", [(0, 2), (2, 4), (4, 6)], ids=str)
@pytest.mark.parametrize("rows", [(0, 1), (1, 4), (4, 5)], ids=str)
def test_some_items_and_heads_get_their_part_of_the_mask(rng, rows, heads):
    """Of 5 items with 6 heads on 3 key heads; output, gradients and the end of the stream."""
    q, k, v = qkv(rng, 5, 6, 7, 4, groups=3, keys=9)
    u = rng.normal(size=q.shape)

    def run(items, some, **part):
        groups = slice(some.start // 2, some.stop // 2)
        leaves = [Tensor(x[items, h], requires_grad=True) for x, h in ((q, some), (k, groups), (v, groups))]
        manual_seed(7)
        ops.dropout(Tensor(np.ones(20)), 0.5)
        with random.part(**part):
            y = ops.attention(*leaves, dropout_p=0.4)
        y.backward(u[items, some])
        return [y.data, *(leaf.grad for leaf in leaves)], random.default.state()

    whole, place = run(slice(0, 5), slice(0, 6))
    items, some, groups = slice(*rows), slice(*heads), slice(heads[0] // 2, heads[1] // 2)
    received, other_place = run(items, some, rows=(rows[0], 5), heads=(heads[0], 6))
    assert other_place == place
    for x, y, h in zip(received, whole, (some, some, groups, groups), strict=True):
        np.testing.assert_allclose(x, y[items, h], rtol=0, atol=1e-13)
    by_items, _ = run(items, slice(0, 6), rows=(rows[0], 5))
    np.testing.assert_allclose(by_items[0], whole[0][items], rtol=0, atol=1e-13)
    by_heads, _ = run(slice(0, 5), some, heads=(heads[0], 6))
    np.testing.assert_allclose(by_heads[0], whole[0][:, some], rtol=0, atol=1e-13)


def test_dropout_differs_by_seed_call_batch_and_head(rng):
    q, k, v = qkv(rng, 2, 2, 20, 4)
    q, k = q * 0, k * 0  # all weights equal: only the masks differ
    v = np.broadcast_to(v[:1, :1], v.shape)
    manual_seed(1)
    first, second = ours(q, k, v, dropout_p=0.5), ours(q, k, v, dropout_p=0.5)
    manual_seed(1)
    np.testing.assert_array_equal(ours(q, k, v, dropout_p=0.5), first)
    manual_seed(2)
    third = ours(q, k, v, dropout_p=0.5)
    masks = [*first.reshape(4, -1), *second.reshape(4, -1), *third.reshape(4, -1)]
    assert len({mask.tobytes() for mask in masks}) == 12


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 4)), r"attention: q has shape \(2, 3, 4\), expected \(B, H, Tq, D\)"),
        (((2, 2, 3, 4), (3, 2, 3, 4), (3, 2, 3, 4)), "attention: k has B=3, but q has B=2"),
        (((2, 2, 3, 4), (2, 2, 3, 5), (2, 2, 3, 5)), "attention: k has D=5, but q has D=4"),
        (((2, 2, 3, 4), (2, 2, 3, 4), (2, 2, 5, 4)), "attention: v has Tk=5, but k has Tk=3"),
        (((2, 2, 3, 4), (2, 2, 3, 4), (2, 1, 3, 4)), "attention: v has G=1, but k has G=2"),
        (((2, 3, 3, 4), (2, 2, 3, 4), (2, 2, 3, 4)), "attention: q has H=3 heads, which 2 kv heads do not divide"),
        (((2, 3, 3, 4), (2, 0, 3, 4), (2, 0, 3, 4)), "attention: q has H=3 heads, which 0 kv heads do not divide"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(ShapeError, match=message):
        ops.attention(*[Tensor(np.zeros(shape)) for shape in shapes])


def test_masks_that_do_not_fit(rng):
    q, k, v = (Tensor(x) for x in qkv(rng))
    with pytest.raises(
        ShapeError, match=r"attention: mask has shape \(4, 5\), which does not broadcast to \(2, 2, 5, 5\)"
    ):
        ops.attention(q, k, v, mask=np.ones((4, 5), bool))
    with pytest.raises(DtypeError, match="attention: mask has dtype int64; give bool"):
        ops.attention(q, k, v, mask=np.ones((5, 5), int))


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([3], ShapeError, "attention: lengths has B=1, but q has B=2"),
        ([[3, 3]], ShapeError, r"attention: lengths has shape \(1, 2\), expected \(B\)"),
        ([6, 0], InputError, "attention: lengths 6 is out of range; expected 0 to 5"),
        ([5, -1], InputError, "attention: lengths -1 is out of range; expected 0 to 5"),
        ([1.0, 2.0], DtypeError, "attention: lengths must be integers, but the array has dtype float64"),
        ([True, True], DtypeError, "attention: lengths must be integers, but the array has dtype bool"),
    ],
)
def test_lengths_that_do_not_fit(lengths, error, message, rng):
    with pytest.raises(error, match=message):
        ours(*qkv(rng), lengths=lengths)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, math.nan])
def test_a_probability_that_is_none(p, rng):
    with pytest.raises(InputError, match=f"attention: p is {p}; give a probability of at least 0 and below 1"):
        ours(*qkv(rng), dropout_p=p)


# --- oracle --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("length", [5, 70])
def test_as_in_torch(causal, groups, length, same_as_torch, rng):
    attention = pytest.importorskip("torch").nn.functional.scaled_dot_product_attention
    same_as_torch(
        lambda q, k, v: ops.attention(q, k, v, causal),
        lambda q, k, v: attention(q, k, v, is_causal=causal, enable_gqa=True),
        *qkv(rng, 2, 4, length, 8, groups),
    )


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_as_in_torch(kind, same_as_torch, rng):
    torch = pytest.importorskip("torch")
    attention = torch.nn.functional.scaled_dot_product_attention
    mask = rng.random((2, 1, 5, 7)) < 0.7
    mask[..., 0] = True  # torch gives NaN for queries that see nothing
    mask = mask if kind == "bool" else np.where(mask, rng.normal(size=mask.shape), -1e9)

    def theirs(q, k, v):
        twin = torch.tensor(mask)
        return attention(q, k, v, attn_mask=twin if kind == "bool" else twin.to(q.dtype), scale=0.3)

    same_as_torch(lambda q, k, v: ops.attention(q, k, v, mask=mask, scale=0.3), theirs, *qkv(rng, 2, 4, 5, 8, keys=7))


# --- texts that share a sequence -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("queries", "keys"), [(1, 7), (5, 7), (9, 4), (130, 66), (140, 140)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_starts_hide_the_keys_before_them(queries, keys, causal, groups, rng):
    q, k, v = qkv(rng, 3, 4, queries, 2, groups, keys)
    starts = rng.integers(0, keys + 1, (3, queries))
    seen = (np.arange(keys) >= starts[..., None])[:, None]
    order = triangle(queries, keys) if causal else True
    for given in (starts, starts.tolist(), starts.astype(np.uint8), Tensor(starts), starts.repeat(2, 1)[:, ::2]):
        np.testing.assert_allclose(ours(q, k, v, causal, starts=given), naive(q, k, v, seen & order), atol=1e-13)
    some, lengths = rng.random((3, 4, queries, keys)) < 0.7, rng.integers(0, keys + 1, 3)
    every = seen & order & some & (np.arange(keys) < lengths[:, None])[:, None, None]
    both = ours(q, k, v, causal, some, lengths=lengths, starts=starts)
    np.testing.assert_allclose(both, naive(q, k, v, every), atol=1e-13)


TEXTS = (30, 40, 1, 65)  # lengths of the texts that share a sequence, over three blocks of queries


@pytest.mark.parametrize("run", ["plain", "fast"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_text_is_computed_as_if_it_stood_alone(run, dtype, rng):
    q, k, v = qkv(rng, 1, 4, sum(TEXTS), 8, 2, dtype=dtype)
    u = rng.normal(size=q.shape).astype(dtype)
    edges = np.cumsum((0, *TEXTS))
    starts = np.repeat(edges[:-1], TEXTS)[None]
    leaves = [Tensor(x, requires_grad=True) for x in (q, k, v)]
    with engine(run):
        y = ops.attention(*leaves, causal=True, starts=starts)
        y.backward(u)
        close = dict(rtol=0, atol=1e-13 if dtype == np.float64 else 1e-5)
        for begin, end in itertools.pairwise(edges):
            alone = [Tensor(x[:, :, begin:end], requires_grad=True) for x in (q, k, v)]
            y_alone = ops.attention(*alone, causal=True)
            y_alone.backward(u[:, :, begin:end])
            np.testing.assert_allclose(y.data[:, :, begin:end], y_alone.data, **close)
            for leaf, one in zip(leaves, alone, strict=True):
                np.testing.assert_allclose(leaf.grad[:, :, begin:end], one.grad, **close)


@pytest.mark.parametrize("run", ["plain", "fast"])
def test_what_another_text_says_changes_no_bit(run, rng):
    q, k, v = qkv(rng, 1, 4, sum(TEXTS), 8, 2, dtype=np.float32)
    u = rng.normal(size=q.shape).astype(np.float32)
    starts = np.repeat(np.cumsum((0, *TEXTS))[:-1], TEXTS)[None]

    def computed() -> list[np.ndarray]:
        leaves = [Tensor(x.copy(), requires_grad=True) for x in (q, k, v)]
        with engine(run):
            y = ops.attention(*leaves, causal=True, starts=starts)
            y.backward(u)
        return [y.data, *(leaf.grad for leaf in leaves)]

    before = computed()
    changed = slice(30, 70)
    for x in (q, k, v, u):
        x[:, :, changed] = rng.normal(size=x[:, :, changed].shape) * 100
    for was, now in zip(before, computed(), strict=True):
        assert not np.array_equal(was[:, :, changed], now[:, :, changed])
        for rest in (slice(0, 30), slice(70, None)):
            np.testing.assert_array_equal(was[:, :, rest], now[:, :, rest])


@pytest.mark.parametrize(
    ("starts", "error", "message"),
    [
        ([[0, 0]], ShapeError, "attention: starts has B=1, but q has B=2"),
        ([0, 0], ShapeError, r"attention: starts has shape \(2,\), expected \(B, Tq\)"),
        ([[6] * 5] * 2, InputError, "attention: starts 6 is out of range; expected 0 to 5"),
        ([[0.0] * 5] * 2, DtypeError, "attention: starts must be integers, but the array has dtype float64"),
    ],
)
def test_starts_that_do_not_fit(starts, error, message, rng):
    with pytest.raises(error, match=message):
        ours(*qkv(rng), starts=starts)
