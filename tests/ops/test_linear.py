"""The linear layer."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import ShapeError


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_definition(lead, with_bias, dtype, rng):
    x, weight, bias = (rng.normal(size=shape).astype(dtype) for shape in [(*lead, 4), (5, 4), (5,)])
    y = ops.linear(Tensor(x), Tensor(weight), Tensor(bias) if with_bias else None)
    expected = np.einsum("...i,oi->...o", x, weight) + (bias if with_bias else 0)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.data, expected, rtol=1e-5 if dtype == np.float32 else 1e-13, atol=1e-6)


def test_the_gradients_are_the_three_formulas(rng):
    x, weight, bias = (Tensor(rng.normal(size=shape), requires_grad=True) for shape in [(2, 3, 4), (5, 4), (5,)])
    u = rng.normal(size=(2, 3, 5))
    ops.linear(x, weight, bias).backward(u)
    np.testing.assert_allclose(x.grad, u @ weight.data)
    np.testing.assert_allclose(weight.grad, np.einsum("bto,bti->oi", u, x.data))
    np.testing.assert_allclose(bias.grad, u.sum((0, 1)))


def test_no_inputs_leave_the_bias():
    y = ops.linear(Tensor(np.zeros((2, 0))), Tensor(np.zeros((3, 0))), Tensor(np.arange(3.0)))
    np.testing.assert_array_equal(y.data, [[0, 1, 2], [0, 1, 2]])


def test_the_input_is_not_changed(rng):
    x, bias = rng.normal(size=(2, 4)), rng.normal(size=3)
    before = x.copy(), bias.copy()
    ops.linear(Tensor(x), Tensor(rng.normal(size=(3, 4))), Tensor(bias))
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(bias, before[1])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (5, 4), (5,)), "linear: weight has in=4, but x has in=3"),
        (((2, 4), (5, 4), (4,)), "linear: bias has out=4, but weight has out=5"),
        (((2, 4), (4,), (5,)), r"linear: weight has shape \(4,\), expected \(out, in\)"),
        (((), (5, 4), (5,)), r"linear: x has shape \(\), expected \(..., in\)"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(ShapeError, match=message):
        ops.linear(*[Tensor(np.ones(shape)) for shape in shapes])


@pytest.mark.oracle
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_as_in_torch(lead, same_as_torch, rng):
    linear = pytest.importorskip("torch").nn.functional.linear
    x, weight, bias = (rng.normal(size=shape) for shape in [(*lead, 4), (5, 4), (5,)])
    same_as_torch(ops.linear, linear, x, weight, bias)
    same_as_torch(lambda x, w: ops.linear(x, w), lambda x, w: linear(x, w), x, weight)
