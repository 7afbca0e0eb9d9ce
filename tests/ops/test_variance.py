"""Variance, standard deviation, norms, and logsumexp."""

from __future__ import annotations

import math

import numpy as np
import pytest

import minillm
from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import DtypeError, InputError, ShapeError

X = np.random.default_rng(0).normal(size=(2, 3, 4))
AXES = [None, 0, -1, (0, 2), (0, 1, 2)]


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", ["var", "std"])
@pytest.mark.parametrize("correction", [0, 1])
def test_spread(name, axis, keep, correction):
    expected = getattr(np, name)(X, axis=axis, keepdims=keep, ddof=correction)
    y = getattr(ops, name)(Tensor(X), axis, correction=correction, keepdim=keep)
    np.testing.assert_allclose(y.data, expected, rtol=1e-13)
    assert y.shape == expected.shape


def test_every_name_of_the_correction():
    x = Tensor(X)
    biased, unbiased = X.var(1), X.var(1, ddof=1)
    for y in (x.var(1, False), x.var(1, unbiased=False), x.var(dim=1, correction=0), x.std(1, False).square()):
        np.testing.assert_allclose(y.data, biased)
    for y in (x.var(1), x.var(1, True), x.var(dim=1, correction=1), x.std(1).square()):
        np.testing.assert_allclose(y.data, unbiased)
    np.testing.assert_allclose(x.var(False).data, X.var())
    assert x.var(1, False, True).shape == (2, 1, 4)


def test_the_gradient_of_a_variance():
    x = Tensor(np.array([1.0, 2, 6]), requires_grad=True)
    x.var().backward(np.array(3.0))
    np.testing.assert_allclose(x.grad, [3 * 2 * (value - 3) / 2 for value in (1, 2, 6)])


def test_the_gradient_of_a_standard_deviation_where_all_are_equal_is_0():
    x = Tensor(np.array([[2.0, 2, 2], [1, 2, 3]]), requires_grad=True)
    y = x.std(1)
    np.testing.assert_array_equal(y.data, [0, 1])
    y.backward(np.array([7.0, 2.0]))
    np.testing.assert_allclose(x.grad, [[0, 0, 0], [-1, 0, 1]])


@pytest.mark.parametrize("name", ["var", "std"])
def test_of_one_element_there_is_none(name):
    x = Tensor(np.array([3.0]), requires_grad=True)
    y = getattr(x, name)()
    assert math.isnan(y.item())
    y.backward()
    assert np.isnan(x.grad).all()
    x.grad = None
    y = getattr(x, name)(correction=0)
    assert y.item() == 0
    y.backward()
    np.testing.assert_array_equal(x.grad, [0])


@pytest.mark.parametrize("p", [1, 2, 3, 1.5, 0.5, -1, math.inf, -math.inf, 0])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_norms(p, axis):
    y = ops.norm(Tensor(X), p, axis)
    expected = np.linalg.norm(X.reshape(-1) if axis is None else X, p, axis=axis)
    np.testing.assert_allclose(y.data, expected, rtol=1e-12)


def test_the_gradient_of_a_norm():
    x = Tensor(np.array([[3.0, -4], [0, 0]]), requires_grad=True)
    y = x.norm(dim=1)
    np.testing.assert_array_equal(y.data, [5, 0])
    y.backward(np.array([10.0, 10.0]))
    np.testing.assert_allclose(x.grad, [[6, -8], [0, 0]])
    x.grad = None
    x.norm(math.inf).backward()
    np.testing.assert_array_equal(x.grad, [[0, -1], [0, 0]])
    x.grad = None
    x.norm(1, dim=(0, 1), keepdim=True).backward(np.array([[2.0]]))
    np.testing.assert_array_equal(x.grad, [[2, -2], [0, 0]])
    x.grad = None
    x.norm(0).backward()
    np.testing.assert_array_equal(x.grad, np.zeros((2, 2)))


def test_fro_is_2_and_dtype_converts():
    x = minillm.tensor([3.0, 4.0])
    assert x.norm("fro").item() == x.norm().item() == 5
    assert x.norm(dtype=np.float64).dtype == np.float64
    assert x.norm().dtype == x.norm(3).dtype == np.float32


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("keep", [False, True])
def test_logsumexp(axis, keep, rng):
    x = Tensor(X, requires_grad=True)
    y = x.logsumexp(axis, keep)
    expected = np.log(np.exp(X).sum(axis=axis, keepdims=keep))
    np.testing.assert_allclose(y.data, expected, rtol=1e-13)
    assert y.shape == expected.shape
    u = rng.normal(size=y.shape)
    y.backward(u)
    whole = u if keep else u.reshape((1,) * 3) if axis is None else np.expand_dims(u, axis)
    softmax = np.exp(X) / np.exp(X).sum(axis=axis, keepdims=True)
    np.testing.assert_allclose(x.grad, whole * softmax, atol=1e-14)


def test_logsumexp_overflows_nowhere():
    x = Tensor(np.array([[1000.0, 1000], [-np.inf, 3], [-np.inf, -np.inf], [np.inf, 0]], np.float32))
    np.testing.assert_allclose(x.logsumexp(1).data, [1000 + math.log(2), 3, -np.inf, np.inf], rtol=1e-6)
    assert minillm.zeros(2, 0).logsumexp(1).data.tolist() == [-np.inf, -np.inf]


def test_many_rows_in_float32():
    """float32 would lose five digits, were the rows added up in it one after the other."""
    x = np.full((1_000_000, 3), 0.1, np.float32) + np.array([0, 1, 2], np.float32)
    wide = x.astype(np.float64)
    for y, expected in [
        (ops.norm(Tensor(x), 2, 0), np.sqrt((wide**2).sum(0))),
        (ops.logsumexp(Tensor(x), 0), np.log(np.exp(wide).sum(0))),
        (ops.var(Tensor(x[:, :1] * [[1]] + np.arange(len(x))[:, None] % 2), 0), np.array([0.25])),
    ]:
        np.testing.assert_allclose(y.data, expected, rtol=1.1e-6)


def test_what_is_refused():
    for name in ("var", "std", "norm", "logsumexp"):
        with pytest.raises(DtypeError, match=f"{name}: x has dtype int64; convert it to float32 or float64"):
            getattr(minillm.tensor([1, 2]), name)()
        with pytest.raises(ShapeError, match=f"{name}: axis 3 is out of range for a tensor with 3 dimensions"):
            getattr(Tensor(X), name)(dim=3)
    with pytest.raises(InputError, match="norm: p is 'nuc'; give a number, inf, or 'fro', which is 2"):
        Tensor(X).norm("nuc")
    with pytest.raises(ShapeError, match=r"norm: the tensor has shape \(0,\), and no elements have no largest"):
        minillm.zeros(0).norm(math.inf)
