"""The layouts and settings of PyTorch's functions that attention, cross-entropy, embedding and the norms take too."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Tensor
from minillm.engine import engine
from minillm.errors import DtypeError, InputError, ShapeError

# Cross-entropy


@pytest.fixture
def pair():
    """The tests of this file choose the engine themselves."""


def weighted_loss(logits, targets, weight, smoothing, reduction):
    """PyTorch's definition, row by row: classes on the last axis."""
    losses, weights = np.zeros(targets.shape), np.zeros(targets.shape)
    for place in np.ndindex(targets.shape):
        t = targets[place]
        if t == -100:
            continue
        x = logits[place]
        log_p = x - np.log(np.exp(x).sum())
        losses[place] = -(1 - smoothing) * weight[t] * log_p[t] - smoothing / len(x) * (weight * log_p).sum()
        weights[place] = weight[t]
    if reduction == "none":
        return losses
    return losses.sum() / (weights.sum() if reduction == "mean" else 1)


@pytest.mark.parametrize("policy", ["plain", "auto", "emulate"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_weights(reduction, smoothing, policy, rng):
    logits, weight = rng.normal(size=(2, 3, 5)), rng.uniform(0.1, 3, size=5)
    targets = rng.integers(0, 5, (2, 3))
    targets[0, 1] = -100
    expected = weighted_loss(logits, targets, weight, smoothing, reduction)
    settings = dict(weight=weight, label_smoothing=smoothing, reduction=reduction)
    with engine(policy):
        loss = ops.cross_entropy(Tensor(logits), targets, **settings)
        np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-12)
        narrow = ops.cross_entropy(Tensor(logits.astype(np.float32)), targets, **settings)
    assert narrow.dtype == np.float32


def test_weights_of_zero_and_rows_that_are_all_ignored_give_zero(rng):
    logits = Tensor(rng.normal(size=(2, 3)), requires_grad=True)
    for targets, weight in ((np.array([1, 1]), [1, 0, 1]), (np.array([-100, -100]), [1, 2, 3])):
        for smoothing in (0.0, 0.1):
            loss = ops.cross_entropy(logits, targets, weight=weight, label_smoothing=smoothing)
            if smoothing == 0 or targets[0] == -100:
                assert loss.item() == 0
            assert np.isfinite(loss.item())
            loss.backward()
            assert np.isfinite(logits.grad).all()


def test_classes_on_axis_1_equal_classes_moved_to_the_end(rng):
    logits, targets = rng.normal(size=(2, 5, 3, 4)), rng.integers(0, 5, (2, 3, 4))
    moved = np.ascontiguousarray(np.moveaxis(logits, 1, -1))
    u = rng.normal(size=(2, 3, 4))
    gradients = []
    for array, settings in ((logits, {}), (logits, {"dim": 1}), (logits, {"dim": -3}), (moved, {"dim": -1})):
        x = Tensor(array, requires_grad=True)
        loss = ops.cross_entropy(x, targets, reduction="none", **settings)
        loss.backward(u)
        gradients.append(x.grad if array is logits else np.moveaxis(x.grad, -1, 1))
        np.testing.assert_allclose(loss.numpy(), weighted_loss(moved, targets, np.ones(5), 0, "none"), rtol=1e-12)
    for gradient in gradients[1:]:
        np.testing.assert_allclose(gradient, gradients[0], rtol=1e-12)


def test_targets_that_fit_two_layouts_are_refused(rng):
    logits = Tensor(rng.normal(size=(2, 3, 3)))
    with pytest.raises(ShapeError, match=r"fit logits of shape .* on the last axis and on axis 1; say dim=-1 or dim=1"):
        ops.cross_entropy(logits, np.zeros((2, 3), int))
    first, second = (ops.cross_entropy(logits, np.zeros((2, 3), int), dim=dim).item() for dim in (1, 2))
    assert first != second


def test_what_cross_entropy_refuses(rng):
    with pytest.raises(ShapeError, match=r"need targets of shape \(2, 3\) or \(2, 4\), not \(2,\)"):
        ops.cross_entropy(Tensor(rng.normal(size=(2, 3, 4))), np.zeros(2, int))
    with pytest.raises(ShapeError, match="have no classes; give at least one"):
        ops.cross_entropy(Tensor(np.zeros((2, 0))), np.zeros(2, int))
    with pytest.raises(ShapeError, match="weight has V=4, but logits has V=3"):
        ops.cross_entropy(Tensor(np.zeros((2, 3))), np.zeros(2, int), weight=np.ones(4))
    with pytest.raises(ShapeError, match="dim is 2, but logits have shape"):
        ops.cross_entropy(Tensor(np.zeros((2, 3))), np.zeros(2, int), dim=2)
    with pytest.raises(DtypeError, match="class weights as weight="):
        ops.cross_entropy(Tensor(np.zeros((2, 3))), np.zeros(2, int), np.ones(3))


@pytest.mark.oracle
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_of_torch(reduction, smoothing, same_as_torch, rng):
    torch = pytest.importorskip("torch")
    weight = rng.uniform(0.1, 3, size=5)
    targets = rng.integers(0, 5, (2, 3))
    targets[0, 1] = -100
    settings = dict(label_smoothing=smoothing, reduction=reduction)

    def theirs(x, t):
        w = torch.tensor(weight, dtype=x.dtype)
        return torch.nn.functional.cross_entropy(x, t, weight=w, **settings)

    same_as_torch(
        lambda x, t: ops.cross_entropy(x, t, weight=weight, **settings), theirs, rng.normal(size=(2, 5, 3)), targets
    )


# Attention


def naive_attention(q, k, v, mask=None):
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    scores = scores if mask is None else np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ v


@pytest.mark.parametrize("policy", ["plain", "auto", "emulate"])
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 2, 2), (2, 1, 1), (2, 2, 1), (1, 1, 3)], ids=str)
@pytest.mark.parametrize("value_size", [1, 4, 6])
def test_value_sizes_and_batches_of_one(sizes, value_size, policy, rng):
    b, c, d = sizes
    q, k, v = (rng.normal(size=s) for s in ((b, 3, 5, 4), (c, 3, 7, 4), (d, 3, 7, value_size)))
    with engine(policy):
        y = ops.attention(Tensor(q), Tensor(k), Tensor(v))
    np.testing.assert_allclose(y.numpy(), naive_attention(q, k, v), atol=1e-12)


def test_one_head_without_its_axis(rng):
    q, k, v = (rng.normal(size=s) for s in ((3, 5, 4), (3, 7, 4), (3, 7, 2)))
    mask = rng.random((3, 5, 7)) < 0.7
    mask[..., 0] = True
    y = ops.attention(Tensor(q), Tensor(k), Tensor(v), mask=mask)
    np.testing.assert_allclose(y.numpy(), naive_attention(q, k, v, mask), atol=1e-12)
    y = ops.attention(Tensor(q), Tensor(k), Tensor(v), lengths=[7, 1, 3])
    visible = np.arange(7) < np.array([7, 1, 3])[:, None, None]
    np.testing.assert_allclose(y.numpy(), naive_attention(q, k, v, visible), atol=1e-12)
    y = ops.attention(Tensor(q[0]), Tensor(k[0]), Tensor(v[0]), mask=mask[0])
    np.testing.assert_allclose(y.numpy(), naive_attention(q[0], k[0], v[0], mask[0]), atol=1e-12)


@pytest.mark.oracle
def test_attention_of_torch(same_as_torch, rng):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.scaled_dot_product_attention
    for shapes in (
        ((2, 3, 5, 4), (1, 3, 7, 4), (2, 3, 7, 6)),
        ((2, 5, 4), (2, 7, 4), (2, 7, 3)),
        ((5, 4), (7, 4), (7, 1)),
    ):
        same_as_torch(lambda *qkv: ops.attention(*qkv), theirs, *(rng.normal(size=shape) for shape in shapes))


# Embedding and the norms


@pytest.mark.parametrize("policy", ["plain", "auto", "emulate"])
@pytest.mark.parametrize("channels", [3, 600])
def test_the_row_of_padding_gets_no_gradient(channels, policy, rng):
    ids, table, u = np.array([[1, 0, 1], [2, 2, 2]]), rng.normal(size=(3, channels)), rng.normal(size=(2, 3, channels))
    u[0, 0, 0] = np.nan  # not by a product with 0
    for padding, rest in ((1, [0, 2]), (-2, [0, 2])):
        weight, plain = (Tensor(table, requires_grad=True) for _ in range(2))
        with engine(policy):
            y = ops.embedding(ids, weight, padding_idx=padding)
            np.testing.assert_array_equal(y.numpy(), table[ids])
            y.backward(u)
            ops.embedding(ids, plain).backward(u)
        assert not weight.grad[1].any()
        np.testing.assert_array_equal(weight.grad[rest], plain.grad[rest])
    with pytest.raises(InputError, match="padding_idx 3 is out of range; expected -3 to 2"):
        ops.embedding(ids, Tensor(table), padding_idx=3)


@pytest.mark.parametrize("policy", ["plain", "auto", "emulate"])
def test_norms_without_a_weight(policy, rng):
    x = rng.normal(size=(3, 4)).astype(np.float32)
    ones, bias = Tensor(np.ones(4, np.float32)), Tensor(rng.normal(size=4).astype(np.float32))
    with engine(policy):
        for plain, weighted in (
            (ops.layer_norm(Tensor(x)), ops.layer_norm(Tensor(x), ones)),
            (ops.layer_norm(Tensor(x), None, bias), ops.layer_norm(Tensor(x), ones, bias)),
            (ops.rms_norm(Tensor(x)), ops.rms_norm(Tensor(x), ones)),
        ):
            np.testing.assert_array_equal(plain.numpy(), weighted.numpy())
            assert plain.dtype == np.float32
            assert plain.numpy().std() > 0.1


@pytest.mark.parametrize("function", [ops.softmax, ops.log_softmax])
@pytest.mark.parametrize(
    ("shape", "axis", "message"),
    [
        ((2, 3), 2, "axis 2 is out of range"),
        ((), None, "axis -1 is out of range"),
        ((2, 0), -1, "axis 1 .* has size 0"),
    ],
)
def test_axes_of_softmax_that_are_not_there(function, shape, axis, message):
    with pytest.raises(ShapeError, match=message):
        function(Tensor(np.zeros(shape)), axis)


@pytest.mark.parametrize("axis", [(0, 1), 0.5, "last", [0]], ids=str)
def test_axes_of_softmax_that_are_none(axis):
    with pytest.raises((ShapeError, DtypeError), match=r"^softmax: "):
        ops.softmax(Tensor(np.zeros((2, 3))), axis)
