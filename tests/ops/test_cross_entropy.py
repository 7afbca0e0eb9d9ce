"""Cross-entropy against the definition, and at the ends of its range."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import ops
from minillm.autograd import Tensor
from minillm.engine import engine
from minillm.errors import DtypeError, GraphError, InputError, ShapeError


def naive(logits, targets, ignore_index=-100, smoothing=0.0, reduction="mean"):
    """-sum_i q_i log p_i for each row, with the target distribution q written out."""
    losses, counted = np.zeros(targets.shape), np.zeros(targets.shape, bool)
    classes = logits.shape[-1]
    for place in np.ndindex(targets.shape):
        if targets[place] == ignore_index:
            continue
        x = logits[place].astype(np.float64)
        log_p = x - x.max() - math.log(np.exp(x - x.max()).sum())
        q = np.full(classes, smoothing / classes)
        q[targets[place]] += 1 - smoothing
        losses[place], counted[place] = -(q * log_p).sum(), True
    if reduction == "none":
        return losses
    return losses.sum() / (max(1, counted.sum()) if reduction == "mean" else 1)


def ours(logits, targets, **settings):
    return ops.cross_entropy(Tensor(logits), targets, **settings).data


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (0,), (2, 2, 2)])
@pytest.mark.parametrize("ignored", [0, 1, 100])
def test_the_definition(reduction, smoothing, shape, ignored, rng):
    logits = rng.normal(size=(*shape, 5))
    targets = rng.integers(0, 5, shape)
    targets.reshape(-1)[:ignored] = -100
    expected = naive(logits, targets, smoothing=smoothing, reduction=reduction)
    result = ours(logits, targets, label_smoothing=smoothing, reduction=reduction)
    assert result.shape == np.shape(expected)
    np.testing.assert_allclose(result, expected, rtol=1e-13, atol=1e-14)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 1000), st.floats(-1e3, 1e3), st.floats(0, 1))
def test_uniform_logits_give_log_v(classes, level, smoothing):
    logits = np.full((2, classes), level)
    result = ours(logits, np.array([0, classes - 1]), label_smoothing=smoothing)
    np.testing.assert_allclose(result, math.log(classes), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits_stay_finite(dtype):
    logits = Tensor(np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0]], dtype), requires_grad=True)
    loss = ops.cross_entropy(logits, np.array([0, 0]), reduction="none")
    np.testing.assert_allclose(loss.data, [0, 2e4])
    loss.backward(np.ones(2))
    np.testing.assert_allclose(logits.grad, [[0, 0, 0], [-1, 1, 0]], atol=1e-30)


def test_a_confident_and_right_row_keeps_its_small_loss():
    """log(1 + e^-30) = 9.4e-14: lse - x_target, computed from shifted logits, does not cancel to 0."""
    assert ours(np.array([[1000.0, 970.0]]), np.array([0])) == pytest.approx(math.log1p(math.exp(-30)), rel=1e-2)


def test_gradient_is_probabilities_minus_targets(rng):
    logits = Tensor(rng.normal(size=(4, 5)), requires_grad=True)
    targets = np.array([0, 4, -100, 2])
    ops.cross_entropy(logits, targets, label_smoothing=0.1).backward(np.array(6.0))
    p = np.exp(logits.data) / np.exp(logits.data).sum(-1, keepdims=True)
    q = np.full((4, 5), 0.02)
    for row, target in enumerate(targets):
        if target >= 0:
            q[row, target] += 0.9
    expected = 6 / 3 * (p - q)
    expected[2] = 0
    np.testing.assert_allclose(logits.grad, expected, atol=1e-15)


def test_rows_of_gradients_sum_to_zero(rng):
    logits = Tensor(rng.normal(size=(2, 3, 7)), requires_grad=True)
    ops.cross_entropy(logits, rng.integers(0, 7, (2, 3)), reduction="none").backward(rng.normal(size=(2, 3)))
    np.testing.assert_allclose(logits.grad.sum(-1), 0, atol=1e-15)


def test_all_ignored_gives_zero_and_no_gradient(rng):
    logits = Tensor(rng.normal(size=(3, 4)), requires_grad=True)
    loss = ops.cross_entropy(logits, np.full(3, -100))
    assert loss.item() == 0
    loss.backward()
    assert not logits.grad.any()


def test_another_ignore_index_may_be_a_class(rng):
    logits, targets = rng.normal(size=(6, 4)), np.array([0, 1, 2, 3, 2, 1])
    result = ours(logits, targets, ignore_index=2)
    np.testing.assert_allclose(result, naive(logits, targets, ignore_index=2))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_targets_of_any_integer_type(dtype, rng):
    logits, targets = rng.normal(size=(3, 4)), np.array([0, 3, 1], dtype)
    np.testing.assert_allclose(ours(logits, targets), naive(logits, targets.astype(int)))
    np.testing.assert_allclose(ours(logits, targets.tolist()), naive(logits, targets.astype(int)))
    np.testing.assert_allclose(ours(logits, Tensor(targets)), naive(logits, targets.astype(int)))


def test_neither_logits_nor_targets_are_changed(rng):
    logits, targets = rng.normal(size=(3, 4)), np.array([0, -100, 1])
    before = logits.copy()
    leaf = Tensor(logits, requires_grad=True)
    ops.cross_entropy(leaf, targets).backward()
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(targets, [0, -100, 1])


# --- errors --------------------------------------------------------------------------------------------------------


def test_shapes_that_do_not_fit():
    message = r"cross_entropy: logits of shape \(2, 3, 5\) need targets.* \(2, 3\) or \(2, 5\), not \(2, 4\)"
    with pytest.raises(ShapeError, match=message):
        ours(np.zeros((2, 3, 5)), np.zeros((2, 4), int))
    with pytest.raises(ShapeError, match="cross_entropy: logits of shape"):
        ours(np.float64(3), np.zeros((), int))


@pytest.mark.parametrize("target", [5, -1, -99])
def test_a_target_that_is_no_class(target):
    with pytest.raises(InputError, match=f"cross_entropy: target {target} is out of range; expected 0 to 4"):
        ours(np.zeros((2, 5)), np.array([0, target]))


def test_types_that_do_not_fit():
    with pytest.raises(DtypeError, match="cross_entropy: target must be integers, but the array has dtype float64"):
        ours(np.zeros((2, 5)), np.array([0.0, 1.0]))
    with pytest.raises(DtypeError, match="cross_entropy: logits have dtype int64; give floats"):
        ours(np.zeros((2, 5), int), np.array([0, 1]))


def test_settings_that_do_not_exist():
    with pytest.raises(InputError, match="cross_entropy: reduction is 'avg'; choose 'mean', 'sum' or 'none'"):
        ours(np.zeros((2, 5)), np.array([0, 1]), reduction="avg")
    for smoothing in (-0.1, 1.1):
        with pytest.raises(
            InputError, match=f"cross_entropy: label_smoothing is {smoothing}; give a number from 0 to 1"
        ):
            ours(np.zeros((2, 5)), np.array([0, 1]), label_smoothing=smoothing)


# --- oracle --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("ignored", [0, 3])
def test_as_in_torch(reduction, smoothing, ignored, same_as_torch, rng):
    cross_entropy = pytest.importorskip("torch").nn.functional.cross_entropy
    targets = rng.integers(0, 11, 8)
    targets[:ignored] = -100
    settings = {"reduction": reduction, "label_smoothing": smoothing}
    same_as_torch(
        lambda logits, targets: ops.cross_entropy(logits, targets, **settings),
        lambda logits, targets: cross_entropy(logits, targets, **settings),
        rng.normal(size=(8, 11)),
        targets,
    )


def test_an_ignored_row_costs_nothing_even_where_a_class_is_impossible():
    logits = Tensor([[-np.inf, 1.0, 2.0], [0.5, 1.0, 2.0]])
    loss = ops.cross_entropy(logits, np.array([-100, 1]))
    assert loss.item() == ops.cross_entropy(logits[1:], np.array([1])).item()


@pytest.mark.parametrize("mode", ["fast", "require"])
def test_the_gradient_may_be_written_over_the_logits(rng, mode):
    """The same numbers, in the memory of the logits; a second backward would take gradients for logits: it raises."""
    x, targets = rng.normal(size=(5, 2, 19)), rng.integers(0, 19, (5, 2))
    targets[1, 1] = -100
    expected = minillm.tensor(x, requires_grad=True)
    ops.cross_entropy(expected * 2, targets, label_smoothing=0.1).backward()
    leaf = minillm.tensor(x, requires_grad=True)
    logits = leaf * 2
    memory = logits.data
    with engine(mode):
        loss = ops.cross_entropy(logits.retain_grad(), targets, label_smoothing=0.1, overwrite=True)
        before = memory.copy()
        loss.backward(keep_graph=True)
    np.testing.assert_allclose(leaf.grad, expected.grad, rtol=1e-12)
    assert not np.array_equal(memory, before)
    np.testing.assert_array_equal(memory, logits.grad)
    with pytest.raises(GraphError, match="cross_entropy: overwrite=True lets a graph have one backward"):
        loss.backward()


def test_logits_that_are_not_in_one_piece_are_left_alone(rng):
    leaf = minillm.tensor(rng.normal(size=(19, 4)), requires_grad=True)
    logits = leaf.transpose(0, 1)
    before = leaf.data.copy()
    ops.cross_entropy(logits, rng.integers(0, 19, 4), overwrite=True).backward()
    np.testing.assert_array_equal(leaf.data, before)
