"""The largest and the smallest, and sorting."""

from __future__ import annotations

import numpy as np
import pytest

import minillm
from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import DtypeError, ShapeError

X = np.random.default_rng(0).permutation(24).reshape(2, 3, 4).astype(np.float64)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", ["max", "min"])
def test_along_an_axis_values_and_indices(name, axis, keep, rng):
    x = Tensor(X, requires_grad=True)
    result = getattr(x, name)(axis, keep)
    values, indices = result
    assert result.values is values
    assert result.indices is indices
    np.testing.assert_array_equal(values.data, getattr(np, name)(X, axis=axis, keepdims=keep))
    np.testing.assert_array_equal(indices.data, getattr(np, f"arg{name}")(X, axis=axis, keepdims=keep))
    assert indices.dtype == np.int64
    u = rng.normal(size=values.shape)
    values.backward(u)
    picked = getattr(np, name)(X, axis=axis, keepdims=True) == X
    np.testing.assert_array_equal(x.grad, picked * (u if keep else np.expand_dims(u, axis)))
    again = getattr(ops, name)(Tensor(X), dim=axis, keepdim=keep)
    np.testing.assert_array_equal(again.values.data, values.data)


def test_without_an_axis_one_tensor_and_a_shared_gradient():
    x = Tensor(np.array([[1.0, 5], [5, 0]]), requires_grad=True)
    x.max().backward()
    np.testing.assert_array_equal(x.grad, [[0, 0.5], [0.5, 0]])
    assert x.min().item() == 0
    assert ops.max(x, keepdim=True).shape == (1, 1)


def test_of_equal_ones_along_an_axis_the_first_gets_the_gradient():
    x = Tensor(np.array([[5.0, 5], [1, 1]]), requires_grad=True)
    values, indices = x.max(1)
    np.testing.assert_array_equal(indices.data, [0, 0])
    values.sum().backward()
    np.testing.assert_array_equal(x.grad, [[1, 0], [1, 0]])


def test_of_two_tensors():
    x, y = minillm.tensor([1.0, 4]), minillm.tensor([2.0, 3])
    assert x.max(y).data.tolist() == [2, 4]
    assert ops.min(x, y).data.tolist() == [1, 3]


def test_over_several_axes_amax_is_meant():
    with pytest.raises(ShapeError, match=r"max: over several axes there is no one index; write amax\(x, \(0, 1\)\)"):
        Tensor(X).max((0, 1))
    with pytest.raises(ShapeError, match=r"min: .*; write amin\(x, \(0, 1\)\)"):
        Tensor(X).min(dim=(0, 1))


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_where_it_is(name):
    x = Tensor(X)
    assert getattr(x, name)().item() == getattr(np, name)(X)
    assert getattr(x, name)().shape == ()
    assert getattr(x, name)(keepdim=True).shape == (1, 1, 1)
    np.testing.assert_array_equal(getattr(x, name)(-1).data, getattr(np, name)(X, -1))
    np.testing.assert_array_equal(getattr(x, name)(dim=0, keepdim=True).data, getattr(np, name)(X, 0, keepdims=True))
    assert getattr(minillm.tensor([2.0, np.nan, 3.0]), name)().item() == 1
    assert getattr(minillm.tensor(3.0), name)(0).item() == 0
    assert getattr(minillm.zeros(0, 3), name)(1).shape == (0,)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("down", [False, True])
def test_sort(axis, down, rng):
    x = Tensor(X, requires_grad=True)
    values, indices = x.sort(axis, down)
    expected = np.sort(X, axis)
    expected = np.flip(expected, axis) if down else expected
    np.testing.assert_array_equal(values.data, expected)
    np.testing.assert_array_equal(np.take_along_axis(X, indices.data, axis), expected)
    np.testing.assert_array_equal(x.argsort(axis, down).data, indices.data)
    u = rng.normal(size=X.shape)
    values.backward(u)
    np.testing.assert_array_equal(np.take_along_axis(x.grad, indices.data, axis), u)


def test_equal_ones_keep_their_order_and_nan_is_the_largest():
    x = minillm.tensor([2.0, np.nan, 1, 2, np.inf])
    np.testing.assert_array_equal(x.argsort().data, [2, 0, 3, 4, 1])
    np.testing.assert_array_equal(x.argsort(descending=True).data, [1, 4, 0, 3, 2])
    assert x.topk(2).indices.data.tolist() == [1, 4]
    assert minillm.tensor([3, 1, 3]).topk(3).indices.data.tolist() == [0, 2, 1]


def test_topk(rng):
    x = Tensor(X, requires_grad=True)
    values, indices = x.topk(2, dim=1)
    np.testing.assert_array_equal(values.data, np.flip(np.sort(X, 1), 1)[:, :2])
    u = rng.normal(size=values.shape)
    values.backward(u)
    np.testing.assert_array_equal(np.take_along_axis(x.grad, indices.data, 1), u)
    assert (x.grad != 0).sum() == values.numel()
    np.testing.assert_array_equal(x.topk(1, largest=False).values.data[..., 0], X.min(-1))
    assert x.topk(0).values.shape == (2, 3, 0)
    for k in (5, -1):
        with pytest.raises(ShapeError, match=f"topk: k is {k}, but axis 2 has size 4; give 0 to 4"):
            x.topk(k)
    with pytest.raises(DtypeError, match=r"topk: k is 2.0; give a whole number"):
        x.topk(2.0)


def test_median_is_the_lower_of_two():
    assert minillm.tensor([4.0, 1, 3, 2]).median().item() == 2
    values, indices = Tensor(X).median(1)
    np.testing.assert_array_equal(values.data, np.median(X, 1))
    np.testing.assert_array_equal(np.take_along_axis(X, indices.data[:, None], 1)[:, 0], values.data)
    assert np.isnan(minillm.tensor([1.0, np.nan, 0]).median().item())


@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin"])
def test_nothing_has_no_largest(name):
    with pytest.raises(ShapeError, match=rf"{name}: the tensor has shape \(0, 3\), and no elements have no m..imum"):
        getattr(minillm.zeros(0, 3), name)()
    with pytest.raises(ShapeError, match=rf"{name}: the tensor has shape \(0, 3\)"):
        getattr(minillm.zeros(0, 3), name)(0)
    with pytest.raises(ShapeError, match=f"{name}: axis 3 is out of range for a tensor with 3 dimensions"):
        getattr(Tensor(X), name)(3)
