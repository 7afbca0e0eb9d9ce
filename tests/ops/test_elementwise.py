"""Functions of one element, and the larger or smaller of two. The values in torch are in test_same_call.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

import minillm
from minillm import ops
from minillm.autograd import Tensor

X = np.random.default_rng(0).uniform(0.2, 3, (3, 4))
SLOPES = {
    "abs": (np.abs, np.sign),
    "sin": (np.sin, np.cos),
    "cos": (np.cos, lambda x: -np.sin(x)),
    "log2": (np.log2, lambda x: 1 / (x * np.log(2))),
    "log10": (np.log10, lambda x: 1 / (x * np.log(10))),
    "log1p": (np.log1p, lambda x: 1 / (1 + x)),
    "expm1": (np.expm1, np.exp),
    "exp2": (np.exp2, lambda x: np.log(2) * 2**x),
    "erf": (np.vectorize(math.erf), lambda x: 2 / np.sqrt(np.pi) * np.exp(-x * x)),
    "softplus": (lambda x: np.log(1 + np.exp(x)), lambda x: 1 / (1 + np.exp(-x))),
    "logsigmoid": (lambda x: -np.log(1 + np.exp(-x)), lambda x: 1 / (1 + np.exp(x))),
    "square": (np.square, lambda x: 2 * x),
    "reciprocal": (np.reciprocal, lambda x: -1 / x**2),
    "rsqrt": (lambda x: x**-0.5, lambda x: -0.5 * x**-1.5),
    "sign": (np.sign, np.zeros_like),
    "floor": (np.floor, np.zeros_like),
    "ceil": (np.ceil, np.zeros_like),
    "round": (np.round, np.zeros_like),
    "trunc": (np.trunc, np.zeros_like),
}


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_values_and_slopes(name, dtype, rng):
    value, slope = SLOPES[name]
    signed = name not in ("log2", "log10", "log1p", "rsqrt")
    numbers = (X * rng.choice([-1, 1], X.shape) if signed else X).astype(dtype)
    x = Tensor(numbers, requires_grad=True)
    y = getattr(ops, name)(x)
    tolerance = 1e-12 if dtype == np.float64 else 2e-6
    assert y.dtype == dtype
    np.testing.assert_allclose(y.data, value(numbers.astype(np.float64)), rtol=tolerance, atol=tolerance)
    u = rng.normal(size=X.shape)
    y.backward(u)
    assert x.grad.dtype == dtype
    np.testing.assert_allclose(x.grad, u * slope(numbers.astype(np.float64)), rtol=10 * tolerance, atol=tolerance)


def test_small_numbers_keep_their_digits():
    small = np.array([1e-12, -3e-17, 1e-30])
    for function in (ops.log1p, ops.expm1):
        np.testing.assert_allclose(function(Tensor(small)).data, small, rtol=1e-11)
    assert ops.log2(Tensor(np.array(8.0, np.float32))).item() == 3
    assert ops.log10(Tensor(np.array(1000.0))).item() == 3


def test_a_half_rounds_to_the_even_neighbour():
    np.testing.assert_array_equal(ops.round(minillm.tensor([0.5, 1.5, 2.5, -0.5])).data, [0, 2, 2, 0])
    np.testing.assert_allclose(ops.round(minillm.tensor([1.234, 5.678]), decimals=1).data, [1.2, 5.7], rtol=1e-6)


def test_steps_have_a_gradient_of_zero_not_none():
    x = minillm.tensor([1.5, -2.5], requires_grad=True)
    for name in ("sign", "floor", "ceil", "round", "trunc"):
        x.grad = None
        getattr(x, name)().sum().backward()
        np.testing.assert_array_equal(x.grad, [0, 0])


def test_softplus_and_logsigmoid_far_from_0():
    x = Tensor(np.array([-1000.0, 1000.0]), requires_grad=True)
    y = ops.softplus(x)
    np.testing.assert_array_equal(y.data, [0, 1000])
    y.backward(np.array([3.0, 5.0]))
    np.testing.assert_array_equal(x.grad, [0, 5])
    np.testing.assert_array_equal(ops.logsigmoid(Tensor(np.array([-1000.0, 1000.0]))).data, [-1000, 0])
    beta = ops.softplus(Tensor(np.array([0.3])), beta=2)
    np.testing.assert_allclose(beta.data, np.log(1 + np.exp(0.6)) / 2)


def test_the_larger_gets_the_gradient_and_equal_ones_share_it():
    x = Tensor(np.array([[1.0, 2], [4, 4]]), requires_grad=True)
    y = Tensor(np.array([1.0, 3]), requires_grad=True)
    u = np.array([[1.0, 10], [100, 1000]])
    out = ops.maximum(x, y)
    np.testing.assert_array_equal(out.data, [[1, 3], [4, 4]])
    out.backward(u)
    np.testing.assert_array_equal(x.grad, [[0.5, 0], [100, 1000]])
    np.testing.assert_array_equal(y.grad, [0.5, 10])
    x.grad = y.grad = None
    x.minimum(y).backward(u)
    np.testing.assert_array_equal(x.grad, [[0.5, 10], [0, 0]])
    np.testing.assert_array_equal(y.grad, [100.5, 1000])


def test_beside_nan_neither_loses():
    x, y = (Tensor(np.array(values), requires_grad=True) for values in ([1.0, np.nan], [np.nan, 1.0]))
    out = ops.maximum(x, y)
    assert np.isnan(out.data).all()
    out.backward(np.array([2.0, 3.0]))
    np.testing.assert_array_equal([x.grad, y.grad], [[2, 3], [2, 3]])


def test_numbers_and_integers_leave_float32_alone():
    x = minillm.tensor([1.5, -2.0])
    for y in (ops.maximum(x, 0.1), ops.minimum(x, 3), x.maximum(minillm.tensor([1, 2])), x.clamp(np.array([0, 0]))):
        assert y.dtype == np.float32
    assert ops.sin(minillm.tensor([1, 2])).dtype == np.float32
    assert ops.abs(minillm.tensor([-1, 2])).dtype == np.int64
    assert ops.floor(minillm.tensor([-1, 2])).dtype == np.int64


def test_what_is_made_of_others():
    x, y = minillm.tensor([-2.0, 0, 3]), minillm.tensor([1.0, 1, -1])
    np.testing.assert_allclose(ops.leaky_relu(x, 0.1).data, [-0.2, 0, 3], rtol=1e-6)
    np.testing.assert_allclose(ops.lerp(x, y, 0.25).data, [-1.25, 0.25, 2])
    np.testing.assert_allclose(ops.logaddexp(x, y).data, np.logaddexp(x.data, y.data), rtol=1e-6)
    np.testing.assert_allclose(ops.logit(minillm.tensor([0.2, 0.5])).data, [np.log(0.25), 0], rtol=1e-6, atol=1e-7)


# --- clip with limits of all kinds ---------------------------------------------------------------------------------


def test_limits_get_the_gradient_of_what_they_cut_off():
    x = Tensor(np.array([[-5.0, 0, 5], [-1, 1, 2]]), requires_grad=True)
    low, high = Tensor(np.array([-1.0, -1, -1]), requires_grad=True), Tensor(np.array([[1.0], [2]]), requires_grad=True)
    out = x.clamp(low, high)
    np.testing.assert_array_equal(out.data, [[-1, 0, 1], [-1, 1, 2]])
    out.backward(np.array([[1.0, 2, 4], [8, 16, 32]]))
    np.testing.assert_array_equal(x.grad, [[0, 2, 0], [8, 16, 32]])
    np.testing.assert_array_equal(low.grad, [1, 0, 0])
    np.testing.assert_array_equal(high.grad, [[4], [0]])


def test_crossed_limits_give_the_upper_one():
    x, low, high = (Tensor(np.array(values), requires_grad=True) for values in ([0.0, 3, 9], [5.0, 5, 5], [2.0, 2, 2]))
    out = ops.clip(x, low, high)
    np.testing.assert_array_equal(out.data, [2, 2, 2])
    out.backward(np.array([1.0, 2, 3]))
    np.testing.assert_array_equal(x.grad, [0, 0, 0])
    np.testing.assert_array_equal(low.grad, [0, 0, 0])
    np.testing.assert_array_equal(high.grad, [1, 2, 3])


def test_one_limit_an_array_or_a_number():
    x = minillm.tensor([1.0, 5.0], requires_grad=True)
    out = x.clip(min=np.array([2.0, 2.0]), max=4)
    np.testing.assert_array_equal(out.data, [2, 4])
    out.sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 0])
    assert minillm.tensor([1, 5]).clip(2, 4).dtype == np.int64
    np.testing.assert_array_equal(minillm.tensor([1, 5]).clip(max=2.5).data, np.array([1, 2.5], np.float32))
