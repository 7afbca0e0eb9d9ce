"""Root-mean-square normalisation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import ShapeError


def naive(x, weight, eps=1e-6):
    out = np.empty(x.shape)
    for place in np.ndindex(x.shape[:-1]):
        row = x[place].astype(float).tolist()
        root = math.sqrt(math.fsum(one * one for one in row) / len(row) + eps)
        out[place] = [one / root * w for one, w in zip(row, weight, strict=True)]
    return out


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5), (2, 3, 1)])
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_the_definition(shape, eps, rng):
    x, weight = rng.normal(2, 3, shape), rng.normal(size=shape[-1])
    np.testing.assert_allclose(ops.rms_norm(Tensor(x), Tensor(weight), eps).data, naive(x, weight, eps), rtol=1e-13)


def test_float32(rng):
    x, weight = rng.normal(size=(4, 768)).astype(np.float32), np.ones(768, np.float32)
    y = ops.rms_norm(Tensor(x), Tensor(weight))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.data, naive(x, weight), rtol=1e-5, atol=1e-6)


def test_the_mean_square_of_a_row_is_1_whatever_its_scale(rng):
    x, ones = rng.normal(3, 1, (4, 50)), Tensor(np.ones(50))
    y = ops.rms_norm(Tensor(x), ones, 1e-14).data
    np.testing.assert_allclose((y**2).mean(-1), 1)
    np.testing.assert_allclose(ops.rms_norm(Tensor(-5 * x), ones, 1e-14).data, -y, rtol=1e-10)


def test_a_row_of_zeros_stays_zero_with_a_finite_gradient(rng):
    x = Tensor(np.zeros((2, 4)), requires_grad=True)
    weight = Tensor(rng.normal(size=4), requires_grad=True)
    y = ops.rms_norm(x, weight)
    assert not y.data.any()
    u = rng.normal(size=(2, 4))
    y.backward(u)
    np.testing.assert_allclose(x.grad, u * weight.data / math.sqrt(1e-6))
    assert not weight.grad.any()


def test_the_gradient_of_a_row_is_orthogonal_to_the_row(rng):
    x = Tensor(rng.normal(size=(3, 6)), requires_grad=True)
    ops.rms_norm(x, Tensor(rng.normal(size=6)), 1e-14).backward(rng.normal(size=(3, 6)))
    np.testing.assert_allclose((x.grad * x.data).sum(-1), 0, atol=1e-12)


def test_on_rows_of_mean_0_it_is_layer_norm(rng):
    x = rng.normal(size=(3, 6))
    x -= x.mean(-1, keepdims=True)
    weight = Tensor(rng.normal(size=6))
    np.testing.assert_allclose(
        ops.rms_norm(Tensor(x), weight, 1e-5).data, ops.layer_norm(Tensor(x), weight).data, rtol=1e-12
    )


def test_shapes_that_do_not_fit():
    with pytest.raises(ShapeError, match="rms_norm: weight has C=3, but x has C=4"):
        ops.rms_norm(Tensor(np.ones((2, 4))), Tensor(np.ones(3)))


@pytest.mark.oracle
@pytest.mark.parametrize("shape", [(5,), (2, 3, 64)])
def test_as_in_torch(shape, same_as_torch, rng):
    rms_norm = pytest.importorskip("torch").nn.functional.rms_norm
    x, weight = rng.normal(1, 2, shape), rng.normal(size=shape[-1])
    same_as_torch(ops.rms_norm, lambda x, w: rms_norm(x, shape[-1:], w, eps=1e-6), x, weight)
