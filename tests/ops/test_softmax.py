"""Softmax and its logarithm."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import ShapeError


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_definition(axis, dtype, rng):
    x = rng.normal(size=(2, 3, 4)).astype(dtype)
    p = np.exp(x) / np.exp(x).sum(axis=-1 if axis is None else axis, keepdims=True)
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    for result, expected in (
        (ops.softmax(Tensor(x), axis), p),
        (ops.softmax(Tensor(x), dim=axis), p),
        (Tensor(x).softmax(axis), p),
        (ops.log_softmax(Tensor(x), axis), np.log(p)),
        (ops.log_softmax(Tensor(x), dim=axis), np.log(p)),
    ):
        assert result.dtype == dtype
        np.testing.assert_allclose(result.data, expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(hnp.array_shapes(min_dims=1, max_dims=3), st.floats(-1e5, 1e5), st.floats(0, 1e4), st.integers(0, 2**32 - 1))
def test_probabilities_sum_to_one_and_a_shift_changes_nothing(shape, shift, scale, seed):
    x = scale * np.random.default_rng(seed).normal(size=shape)
    p = ops.softmax(Tensor(x)).data
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-13)
    np.testing.assert_allclose(ops.softmax(Tensor(x + shift)).data, p, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits_stay_finite(dtype):
    x = Tensor(np.array([[1e30, 0, -1e30], [-1e30, -1e30, -1e30], [80, 800, 8000]], dtype), requires_grad=True)
    third = 1 / 3
    np.testing.assert_allclose(ops.softmax(x).data, [[1, 0, 0], [third] * 3, [0, 0, 1]], rtol=1e-6)
    log_p = ops.log_softmax(x)
    np.testing.assert_allclose(log_p.data[1:], [[-math.log(3)] * 3, [-7920, -7200, 0]], rtol=1e-6)
    for y in (ops.softmax(x), log_p):
        y.backward(np.ones(x.shape))
    assert np.isfinite(x.grad).all()


def test_log_softmax_keeps_the_digits_of_small_probabilities():
    log_p = ops.log_softmax(Tensor(np.array([0.0, 1000.0]))).data
    np.testing.assert_array_equal(log_p, [-1000, 0])
    small = ops.log_softmax(Tensor(np.array([0.0, -30.0]))).data[0]
    assert small == pytest.approx(-math.exp(-30), rel=1e-2)


def test_minus_infinity_hides_an_element():
    x = np.array([[1.0, -np.inf, 2.0]])
    np.testing.assert_allclose(ops.softmax(Tensor(x)).data, [[1 / (1 + math.e), 0, math.e / (1 + math.e)]])


def test_gradients_along_the_axis_sum_to_zero(rng):
    x = Tensor(rng.normal(size=(3, 4, 5)), requires_grad=True)
    ops.softmax(x, 1).backward(rng.normal(size=(3, 4, 5)))
    np.testing.assert_allclose(x.grad.sum(1), 0, atol=1e-15)
    assert abs(x.grad).max() > 0.01


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_an_axis_that_cannot_be(name):
    function = getattr(ops, name)
    with pytest.raises(ShapeError, match=rf"{name}: axis 1 of shape \(2, 0\) has size 0"):
        function(Tensor(np.zeros((2, 0))))
    with pytest.raises(ShapeError, match=f"{name}: axis 2 is out of range for a tensor with 2 dimensions"):
        function(Tensor(np.zeros((2, 2))), 2)
    with pytest.raises(ShapeError, match=f"{name}: axis -1 is out of range for a tensor with 0 dimensions"):
        function(Tensor(np.array(1.0)))
    with pytest.raises(ShapeError, match=f"{name}: both axis=0 and dim=1 were given"):
        function(Tensor(np.zeros((2, 2))), 0, dim=1)


@pytest.mark.oracle
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_as_in_torch(dim, same_as_torch, rng):
    torch = pytest.importorskip("torch")
    x = 3 * rng.normal(size=(5, 6, 7))
    for name in ("softmax", "log_softmax"):
        ours, theirs = getattr(ops, name), getattr(torch, name)
        same_as_torch(lambda x, f=ours: f(x, dim=dim), lambda x, f=theirs: f(x, dim=dim), x)
