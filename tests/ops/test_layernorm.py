"""Layer normalisation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import ShapeError


def naive(x, weight, bias, eps=1e-5):
    out = np.empty(x.shape)
    for place in np.ndindex(x.shape[:-1]):
        row = x[place].astype(float).tolist()
        mean = math.fsum(row) / len(row)
        variance = math.fsum((one - mean) ** 2 for one in row) / len(row)
        for i, one in enumerate(row):
            out[(*place, i)] = (one - mean) / math.sqrt(variance + eps) * weight[i] + (0 if bias is None else bias[i])
    return out


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5), (2, 3, 1)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_the_definition(shape, with_bias, eps, rng):
    x, weight, bias = rng.normal(2, 3, shape), rng.normal(size=shape[-1]), rng.normal(size=shape[-1])
    bias = bias if with_bias else None
    y = ops.layer_norm(Tensor(x), Tensor(weight), None if bias is None else Tensor(bias), eps)
    np.testing.assert_allclose(y.data, naive(x, weight, bias, eps), rtol=1e-12, atol=1e-13)


def test_float32_is_as_near_as_float32_can_be(rng):
    x = rng.normal(100, 1, (4, 768)).astype(np.float32)
    weight, bias = np.ones(768, np.float32), np.zeros(768, np.float32)
    y = ops.layer_norm(Tensor(x), Tensor(weight), Tensor(bias))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.data, naive(x, weight, bias), atol=2e-5)


def test_rows_have_mean_0_and_variance_1(rng):
    y = ops.layer_norm(Tensor(rng.normal(7, 3, (4, 100))), Tensor(np.ones(100)), Tensor(np.zeros(100)), 1e-12).data
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-14)
    np.testing.assert_allclose(y.var(-1), 1, rtol=1e-10)


def test_shifting_and_scaling_a_row_changes_nothing(rng):
    x, ones = rng.normal(size=(4, 10)), Tensor(np.ones(10))
    before = ops.layer_norm(Tensor(x), ones, eps=1e-12).data
    np.testing.assert_allclose(ops.layer_norm(Tensor(5 * x + 3), ones, eps=1e-12).data, before, atol=1e-10)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e6])
def test_constant_rows_give_the_bias_and_finite_gradients(value, rng):
    x = Tensor(np.full((2, 8), value), requires_grad=True)
    weight, bias = Tensor(rng.normal(size=8), requires_grad=True), Tensor(rng.normal(size=8), requires_grad=True)
    y = ops.layer_norm(x, weight, bias)
    np.testing.assert_array_equal(y.data, np.broadcast_to(bias.data, (2, 8)))
    u = rng.normal(size=(2, 8))
    y.backward(u)
    dnorm = u * weight.data
    np.testing.assert_allclose(x.grad, (dnorm - dnorm.mean(-1, keepdims=True)) / math.sqrt(1e-5), rtol=1e-9, atol=1e-9)
    assert not weight.grad.any()
    np.testing.assert_allclose(bias.grad, u.sum(0))


def test_the_gradient_of_a_row_is_orthogonal_to_1_and_to_the_row(rng):
    """Neither a shift nor a stretch of a row changes the output, so the gradient has no part along either."""
    x = Tensor(rng.normal(size=(3, 6)), requires_grad=True)
    ops.layer_norm(x, Tensor(rng.normal(size=6)), eps=1e-14).backward(rng.normal(size=(3, 6)))
    np.testing.assert_allclose(x.grad.sum(-1), 0, atol=1e-13)
    np.testing.assert_allclose((x.grad * x.data).sum(-1), 0, atol=1e-12)


def test_without_a_bias_there_is_no_gradient_for_one(rng):
    y = ops.layer_norm(Tensor(rng.normal(size=(2, 3)), requires_grad=True), Tensor(np.ones(3)))
    assert y.node.backward(np.ones((2, 3)), y.node.saved)[2] is None


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 768), (512,), (512,)), "layer_norm: weight has C=512, but x has C=768"),
        (((2, 4), (4,), (3,)), "layer_norm: bias has C=3, but x has C=4"),
        (((2, 4), (1, 4), (4,)), r"layer_norm: weight has shape \(1, 4\), expected \(C\)"),
        (((), (4,), (4,)), r"layer_norm: x has shape \(\), expected \(..., C\)"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(ShapeError, match=message):
        ops.layer_norm(*[Tensor(np.ones(shape)) for shape in shapes])


# ---- an independent reference ----------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 64)])
def test_as_in_torch(shape, same_as_torch, rng):
    layer_norm = pytest.importorskip("torch").nn.functional.layer_norm
    x, weight, bias = rng.normal(1, 2, shape), rng.normal(size=shape[-1]), rng.normal(size=shape[-1])
    same_as_torch(ops.layer_norm, lambda x, w, b: layer_norm(x, shape[-1:], w, b), x, weight, bias)
    same_as_torch(lambda x, w: ops.layer_norm(x, w), lambda x, w: layer_norm(x, shape[-1:], w), x, weight)
