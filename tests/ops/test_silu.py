"""SiLU alone and as a gate."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Tensor, no_grad
from minillm.errors import ShapeError
from minillm.fast import silu as fast_silu
from minillm.fast import swiglu as fast_swiglu

X = np.linspace(-20, 20, 401).reshape(1, 401)


def naive(x):
    return np.vectorize(lambda one: one / (1 + math.exp(-one)))(x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-7), (np.float64, 1e-15)])
def test_silu(dtype, tolerance):
    y = ops.silu(Tensor(X.astype(dtype))).data
    assert y.dtype == dtype
    np.testing.assert_allclose(y, naive(X.astype(dtype).astype(float)), rtol=10 * tolerance, atol=tolerance)


def test_swiglu_is_silu_of_the_gate_times_up(rng):
    gate, up = rng.normal(size=(2, 3, 4, 5))
    np.testing.assert_allclose(ops.swiglu(Tensor(gate), Tensor(up)).data, naive(gate) * up, rtol=1e-14)


def test_swiglu_is_what_its_parts_give(rng):
    gate, up, u = rng.normal(size=(3, 4, 5))
    whole, parts = ([Tensor(x, requires_grad=True) for x in (gate, up)] for _ in range(2))
    ops.swiglu(*whole).backward(u)
    (ops.silu(parts[0]) * parts[1]).backward(u)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a.grad, b.grad, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_out_it_is_0_or_x(dtype):
    x = Tensor(np.array([-1e4, -200.0, 0.0, 200.0, 1e4], dtype), requires_grad=True)
    y = ops.silu(x)
    np.testing.assert_allclose(y.data, [0, 0, 0, 200, 1e4], atol=1e-37)
    y.backward(np.ones(5))
    np.testing.assert_allclose(x.grad, [0, 0, 0.5, 1, 1], atol=1e-37)


def test_the_slope_at_0_is_one_half_and_the_minimum_is_where_it_is():
    """silu has its minimum, -0.278, at x = -1.278."""
    x = Tensor(np.array([0.0, -1.2784645427610738]), requires_grad=True)
    y = ops.silu(x)
    y.backward(np.ones(2))
    np.testing.assert_allclose(x.grad, [0.5, 0], atol=1e-15)
    assert y.data[1] == pytest.approx(-0.2784645427610738)


def test_without_gradients_no_slope_is_computed(rng):
    gate, up = rng.normal(size=(2, 3, 4))
    recorded = fast_silu.forward(gate)[0], fast_swiglu.forward(gate, up)[0]
    with no_grad():
        (silu, saved), (swiglu, saved_pair) = fast_silu.forward(gate), fast_swiglu.forward(gate, up)
    assert saved.slope.size == saved_pair.gate_slope.size == saved_pair.up_slope.size == 0
    np.testing.assert_array_equal(silu, recorded[0])
    np.testing.assert_array_equal(swiglu, recorded[1])


def test_shapes_that_differ():
    with pytest.raises(ShapeError) as caught:
        ops.swiglu(Tensor(np.ones((2, 3))), Tensor(np.ones(3)))
    assert str(caught.value) == "swiglu: gate has shape (2, 3), but up has shape (3,); both must be the same"


@pytest.mark.oracle
def test_as_in_torch(same_as_torch, rng):
    silu = pytest.importorskip("torch").nn.functional.silu
    x, up = 5 * rng.normal(size=(2, 30, 40))
    same_as_torch(ops.silu, silu, x)
    same_as_torch(ops.swiglu, lambda gate, up: silu(gate) * up, x, up)
