"""GELU in both forms, and the error function underneath."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import ops
from minillm.autograd import Tensor, no_grad
from minillm.engine import engine
from minillm.erf import erf
from minillm.errors import InputError
from minillm.fast import gelu as fast

GRID = np.concatenate([np.linspace(-7, 7, 20_001), np.linspace(-0.05, 0.05, 2_001), np.arange(-6, 6, 1 / 64)])


def test_erf_is_right_to_the_last_digits():
    expected = np.array([math.erf(x) for x in GRID])
    assert np.abs(erf(GRID) - expected).max() <= 2 * 2**-53  # 2 units in the last place of numbers near 1


def test_erf_in_float32():
    x = GRID.astype(np.float32)
    result = erf(x)
    assert result.dtype == np.float32
    assert np.abs(result - np.array([math.erf(float(one)) for one in x])).max() <= 2 * 2.0**-24


@settings(max_examples=200, deadline=None)
@given(st.floats(-10, 10))
def test_erf_of_any_number(x):
    assert float(erf(np.array([x]))[0]) == pytest.approx(math.erf(x), abs=3e-16)
    assert float(erf(np.array(x))) == float(erf(np.array([x]))[0])


def test_erf_is_odd_and_bounded():
    np.testing.assert_allclose(erf(-GRID), -erf(GRID), atol=3e-16)
    assert (np.abs(erf(GRID)) <= 1).all()
    np.testing.assert_array_equal(erf(np.array([-np.inf, -1e300, 1e300, np.inf, 0.0])), [-1, -1, 1, 1, 0])
    assert np.isnan(erf(np.array([np.nan])))[0]


def test_erf_of_nothing():
    assert erf(np.zeros((0, 3))).shape == (0, 3)


def exact(x):
    return x / 2 * (1 + math.erf(x / math.sqrt(2)))


def by_tanh(x):
    return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(("form", "formula"), [("none", exact), ("tanh", by_tanh)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-7), (np.float64, 5e-16)])
def test_values(form, formula, dtype, tolerance):
    x = GRID.reshape(-1, 1).astype(dtype)
    y = ops.gelu(Tensor(x), form).data
    assert y.dtype == dtype
    expected = np.array([formula(float(one)) for one in x[:, 0]])[:, None]
    assert (np.abs(y - expected) <= tolerance * np.maximum(1, np.abs(x))).all()


@pytest.mark.parametrize("form", ["none", "tanh"])
def test_far_out_it_is_0_or_x(form):
    x = Tensor(np.array([-1e4, -50.0, 0.0, 50.0, 1e4]), requires_grad=True)
    y = ops.gelu(x, form)
    np.testing.assert_allclose(y.data, [0, 0, 0, 50, 1e4], atol=1e-300)
    y.backward(np.ones(5))
    np.testing.assert_allclose(x.grad, [0, 0, 0.5, 1, 1], atol=1e-15)


def test_the_two_forms_are_near_each_other_and_not_the_same():
    difference = np.abs(ops.gelu(Tensor(GRID)).data - ops.gelu(Tensor(GRID), "tanh").data).max()
    assert 1e-4 < difference < 1e-3


def test_the_exact_form_is_the_default():
    np.testing.assert_array_equal(ops.gelu(Tensor(GRID)).data, ops.gelu(Tensor(GRID), approximate="none").data)


def test_a_form_that_does_not_exist():
    with pytest.raises(InputError, match=r"gelu: approximate is 'erf'; choose 'none' \(erf\) or 'tanh'"):
        ops.gelu(Tensor(GRID), "erf")


@pytest.mark.parametrize(("form", "tolerance"), [("none", 4e-7), ("tanh", 3e-6)])
def test_the_slope_in_float32_is_that_in_float64(form, tolerance):
    """In float32 the erf form goes by another formula. In the tanh form 1 - p cancels, and u' grows as x^2."""
    narrow, wide = (Tensor(GRID.astype(np.float32).astype(dtype), requires_grad=True) for dtype in ("f4", "f8"))
    for x in (narrow, wide):
        ops.gelu(x, form).backward(np.ones(GRID.shape, x.dtype))
    assert np.abs(narrow.grad - wide.grad).max() <= tolerance
    assert narrow.grad.min() < -0.1  # below -0.75 the slope is negative


@pytest.mark.parametrize("form", ["none", "tanh"])
def test_what_is_kept_is_the_slope_alone(form, rng):
    x = rng.normal(size=(3, 4))
    before = x.copy()
    with engine("fast"):
        y = ops.gelu(Tensor(x, requires_grad=True), form)
    kept = [array for array in y.node.saved if isinstance(array, np.ndarray)]
    assert [array.shape for array in kept] == [(3, 4)]
    assert not any(np.shares_memory(kept[0], array) for array in (x, y.data))
    y.backward(np.ones((3, 4)))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("form", ["none", "tanh"])
def test_without_gradients_no_slope_is_computed(form, rng):
    x = rng.normal(size=(3, 4)).astype(np.float32)
    recorded, _ = fast.forward(x, approximate=form)
    with no_grad():
        y, saved = fast.forward(x, approximate=form)
    assert saved.slope.size == 0
    np.testing.assert_array_equal(y, recorded)


@pytest.mark.oracle
@pytest.mark.parametrize("form", ["none", "tanh"])
def test_as_in_torch(form, same_as_torch, rng):
    gelu = pytest.importorskip("torch").nn.functional.gelu
    x = 3 * rng.normal(size=(40, 50))
    same_as_torch(lambda x: ops.gelu(x, form), lambda x: gelu(x, approximate=form), x)
