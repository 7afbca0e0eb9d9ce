"""Products over an axis, and running sums."""

from __future__ import annotations

import numpy as np
import pytest

import minillm
from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import DtypeError, ShapeError

X = np.random.default_rng(0).normal(size=(2, 3, 4))


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("keep", [False, True])
def test_prod(axis, keep):
    expected = np.prod(X, axis=axis, keepdims=keep)
    for y in (ops.prod(Tensor(X), axis, keep), Tensor(X).prod(dim=axis, keepdim=keep)):
        np.testing.assert_allclose(y.data, expected, rtol=1e-14)
        assert y.shape == expected.shape


def test_the_gradient_of_a_product_is_the_product_of_the_others():
    rows = np.array([[2.0, 3, 4], [2, 0, 4], [0, 0, 4], [0, 0, 0]])
    x = Tensor(rows, requires_grad=True)
    x.prod(1).backward(np.array([1.0, 10, 100, 1000]))
    np.testing.assert_array_equal(x.grad, [[12, 8, 6], [0, 80, 0], [0, 0, 0], [0, 0, 0]])


def test_a_nan_reaches_the_others_not_itself():
    """PyTorch's gradient of the NaN is NaN too, because it divides; the product of the others is 6."""
    x = Tensor(np.array([2.0, np.nan, 3]), requires_grad=True)
    x.prod().backward()
    np.testing.assert_array_equal(x.grad, [np.nan, 6, np.nan])


def test_the_product_of_nothing_is_1():
    assert minillm.zeros(0).prod().item() == 1
    np.testing.assert_array_equal(minillm.zeros(0, 2).prod(0).data, [1, 1])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_cumsum_and_its_gradient(axis, rng):
    x = Tensor(X, requires_grad=True)
    y = x.cumsum(axis)
    np.testing.assert_allclose(y.data, np.cumsum(X, axis), rtol=1e-14)
    u = rng.normal(size=X.shape)
    y.backward(u)
    expected = u.sum(axis, keepdims=True) - np.cumsum(u, axis) + u
    np.testing.assert_allclose(x.grad, expected, atol=1e-14)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_cumprod_and_its_gradient(axis, rng):
    """Each y_j without x_i, one after the other, zeros among them."""
    rows = X.copy()
    rows[0, 1, 2] = rows[1, 1, 2] = rows[1, 2, 0] = rows[1, 2, 3] = 0
    x = Tensor(rows, requires_grad=True)
    y = x.cumprod(axis)
    np.testing.assert_allclose(y.data, np.cumprod(rows, axis), rtol=1e-14)
    u = rng.normal(size=X.shape)
    y.backward(u)
    expected = np.zeros(X.shape)
    for i in range(X.shape[axis]):
        others = np.moveaxis(rows.copy(), axis, 0)
        others[i] = 1
        slopes = np.cumprod(others, 0)[i:]
        np.moveaxis(expected, axis, 0)[i] = (np.moveaxis(u, axis, 0)[i:] * slopes).sum(0)
    np.testing.assert_allclose(x.grad, expected, atol=1e-14)


def test_a_zero_before_products_that_overflow_float32_leaves_a_gradient_of_zero():
    """All products are 0, and so is the slope in every x_i after the 0: 0 times a sum beyond float32, never NaN."""
    x = Tensor(np.array([0, 7e19, 1e20, 2e20], np.float32), requires_grad=True)
    y = x.cumprod(0)
    np.testing.assert_array_equal(y.data, np.zeros(4))
    y.backward(np.array([-1.5, 1.25, 0.75, -1], np.float32))
    assert x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad[1:], np.zeros(3))


def test_many_numbers_in_float32():
    count = 1_000_000
    x = minillm.full((count,), 0.1, requires_grad=True)
    total = x.cumsum(0)
    assert abs(total.data[-1] / (count * np.float32(0.1).item()) - 1) < 1e-7
    total.backward(np.full(count, 0.1, np.float32))
    assert abs(x.grad[0] / (count * np.float32(0.1).item()) - 1) < 1e-7


def test_whole_numbers_add_up_in_int64():
    x = minillm.tensor([True, True, False])
    assert x.cumsum(0).dtype == np.int64
    np.testing.assert_array_equal(x.cumsum(0).data, [1, 2, 2])
    assert minillm.tensor([3, 4], dtype=np.int32).prod().dtype == np.int64
    assert minillm.tensor([3, 4]).prod(dtype=np.float32).dtype == np.float32
    assert minillm.tensor([3, 4]).cumsum(0, dtype="float64").dtype == np.float64


def test_what_is_refused():
    with pytest.raises(DtypeError, match="cumsum: axis is None; give a whole number"):
        ops.cumsum(Tensor(X))
    with pytest.raises(ShapeError, match="cumsum: axis 3 is out of range for a tensor with 3 dimensions"):
        ops.cumsum(Tensor(X), 3)
    with pytest.raises(ShapeError, match="prod: axis -4 is out of range"):
        ops.prod(Tensor(X), -4)
