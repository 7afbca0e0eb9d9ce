"""Sums, means and maxima."""

from __future__ import annotations

import numpy as np
import pytest

import minillm
from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import DtypeError, ShapeError

X = np.random.default_rng(0).normal(size=(2, 3, 4))
AXES = [None, 0, -1, 1, (0, 2), (-1, 0), [0, 1], (0, 1, 2)]


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin"])
def test_values_are_numpys_under_both_names_of_the_axis(name, axis, keep):
    expected = getattr(np, name)(X, axis=tuple(axis) if isinstance(axis, list) else axis, keepdims=keep)
    for y in (
        getattr(ops, name)(Tensor(X), axis, keep),
        getattr(ops, name)(Tensor(X), axis=axis, keepdims=keep),
        getattr(ops, name)(Tensor(X), dim=axis, keepdim=keep),
        getattr(Tensor(X), name)(axis, keepdims=keep),
    ):
        np.testing.assert_array_equal(y.data, expected)
        assert y.shape == expected.shape


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin"])
def test_dtypes_and_numbers(name):
    function = getattr(ops, name)
    assert function(Tensor(X.astype(np.float32))).dtype == np.float32
    assert function(Tensor(X.astype(np.float32)), 1).dtype == np.float32
    assert function(Tensor(np.array(2.5))).item() == 2.5


def test_integers():
    ids = minillm.tensor([[3, 1], [2, 7]])
    assert ids.max().item() == 7
    assert ids.max().dtype == np.int64
    assert ids.sum().item() == 13
    assert ids.mean(dtype=np.float32).item() == 3.25
    with pytest.raises(DtypeError, match=r"mean: x holds integers .* give dtype=np.float32"):
        ids.mean()


def test_equal_maxima_share_the_gradient():
    x = Tensor(np.array([[1.0, 5.0, 5.0], [2.0, 2.0, 2.0], [0.0, 3.0, 1.0]]), requires_grad=True)
    x.amax(axis=1).backward(np.array([1.0, 3.0, 5.0]))
    np.testing.assert_allclose(x.grad, [[0, 0.5, 0.5], [1, 1, 1], [0, 5, 0]])
    x.grad = None
    x.max().backward()
    np.testing.assert_allclose(x.grad, [[0, 0.5, 0.5], [0, 0, 0], [0, 0, 0]])


def test_the_gradient_of_a_mean_sums_to_one():
    x = Tensor(X, requires_grad=True)
    x.mean().backward()
    np.testing.assert_allclose(x.grad, 1 / 24)
    x.grad = None
    x.mean(axis=(0, 2), keepdims=True).backward(np.ones((1, 3, 1)))
    np.testing.assert_allclose(x.grad, 1 / 8)


def test_the_sum_of_nothing_is_zero():
    assert ops.sum(Tensor(np.zeros((0, 3)))).item() == 0
    np.testing.assert_array_equal(ops.sum(Tensor(np.zeros((0, 3))), 0).data, [0, 0, 0])


@pytest.mark.parametrize("name", ["mean", "maximum", "minimum"])
def test_nothing_has_no_mean_and_no_maximum(name):
    function = {"mean": "mean", "maximum": "amax", "minimum": "amin"}[name]
    nothing = Tensor(np.zeros((0, 3)))
    for axis in (None, 0, (0, 1)):
        message = rf"{function}: the tensor has shape \(0, 3\), and no elements have no {name}"
        with pytest.raises(ShapeError, match=message):
            getattr(ops, function)(nothing, axis)
    assert getattr(ops, function)(nothing, 1).shape == (0,)


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin"])
@pytest.mark.parametrize("axis", [3, -4, (0, 5)])
def test_an_axis_out_of_range(name, axis):
    with pytest.raises(ShapeError, match=rf"{name}: axis -?\d is out of range for a tensor with 3 dimensions"):
        getattr(ops, name)(Tensor(X), axis)


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin"])
def test_axis_and_dim_together(name):
    with pytest.raises(ShapeError, match=f"{name}: both axis=0 and dim=1 were given; give one of them"):
        getattr(ops, name)(Tensor(X), 0, dim=1)


@pytest.mark.oracle
@pytest.mark.parametrize("axis", [0, -1, (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("keep", [False, True])
def test_reductions_as_in_torch(axis, keep, same_as_torch):
    torch = pytest.importorskip("torch")
    for name, theirs in [("sum", torch.sum), ("mean", torch.mean), ("amax", torch.amax), ("amin", torch.amin)]:
        ours = getattr(ops, name)
        same_as_torch(
            lambda x, f=ours: f(x, dim=axis, keepdim=keep), lambda x, f=theirs: f(x, dim=axis, keepdim=keep), X
        )


@pytest.mark.oracle
def test_ties_as_in_torch(same_as_torch):
    torch = pytest.importorskip("torch")
    same_as_torch(lambda x: x.amax(axis=1), lambda x: torch.amax(x, 1), np.array([[1.0, 5.0, 5.0], [2.0, 2.0, 2.0]]))
