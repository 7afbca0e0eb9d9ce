"""Picking and writing by index arrays, and masks."""

from __future__ import annotations

import numpy as np
import pytest

import minillm
from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import DtypeError, InputError, ShapeError

X = np.arange(12.0).reshape(3, 4)
IDS = np.array([[1, 0, 1], [2, 2, 0]])


def leaf(x=X) -> Tensor:
    return Tensor(np.array(x), requires_grad=True)


# --- gather, scatter -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "index"), [(0, IDS), (1, IDS), (-1, IDS[:1, :2]), (0, IDS[:, :0])])
def test_gather_by_its_definition(axis, index, rng):
    x = leaf()
    y = x.gather(axis, index)
    expected, slope, u = np.zeros(index.shape), np.zeros(X.shape), rng.normal(size=index.shape)
    for place in np.ndindex(index.shape):
        source = tuple(index[place] if i == axis % 2 else n for i, n in enumerate(place))
        expected[place] = X[source]
        slope[source] += u[place]
    np.testing.assert_array_equal(y.data, expected)
    y.backward(u)
    np.testing.assert_allclose(x.grad, slope, atol=1e-15)


@pytest.mark.parametrize("name", ["scatter", "scatter_add"])
def test_scatter_by_its_definition(name, rng):
    index = np.array([[1, 3], [0, 2]]) if name == "scatter" else np.array([[1, 1], [0, 0]])
    source = rng.normal(size=(2, 3))  # larger than the index: its first part is used
    x, src = leaf(), leaf(source)
    y = getattr(x, name)(1, index, src)
    expected, kept = X.copy(), np.ones(X.shape)
    for place in np.ndindex(index.shape):
        target = (place[0], index[place])
        expected[target] = source[place] + (expected[target] if name == "scatter_add" else 0)
        kept[target] = name == "scatter_add"
    np.testing.assert_allclose(y.data, expected)
    u = rng.normal(size=X.shape)
    y.backward(u)
    np.testing.assert_array_equal(x.grad, u * kept)
    wanted = np.zeros((2, 3))
    wanted[:, :2] = np.take_along_axis(u[:2], index, 1)
    np.testing.assert_array_equal(src.grad, wanted)
    np.testing.assert_array_equal(x.data, X)


def test_scatter_of_a_number_keeps_the_dtype():
    y = minillm.full((2, 3), -np.inf).scatter(1, np.array([[0], [2]]), 1.5)
    assert y.dtype == np.float32
    assert y.data.tolist() == [[1.5, -np.inf, -np.inf], [-np.inf, -np.inf, 1.5]]


def test_index_add(rng):
    x, source = leaf(), leaf(rng.normal(size=(3, 3)))
    y = x.index_add(1, [0, 3, 0], source)
    expected = X.copy()
    np.add.at(expected, (slice(None), [0, 3, 0]), source.data)
    np.testing.assert_allclose(y.data, expected)
    u = rng.normal(size=X.shape)
    y.backward(u)
    np.testing.assert_array_equal(source.grad, u[:, [0, 3, 0]])


def test_an_index_that_is_filled_anew_changes_no_gradient():
    index, x = np.array([[0], [1], [2]]), leaf()
    y = x.gather(1, index)
    index[...] = 3
    y.backward(np.ones((3, 1)))
    np.testing.assert_array_equal(x.grad, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])


# --- take, and others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [[3, -1, 3], [[0, 11], [5, 5]], 7, []], ids=str)
def test_take_counts_through_all_of_x(index, rng):
    x, ids = leaf(), np.array(index, int)
    y = x.take(ids)
    np.testing.assert_array_equal(y.data, X.reshape(-1)[ids])
    u = rng.normal(size=y.shape)
    y.backward(u)
    wanted = np.zeros(12)
    np.add.at(wanted, ids, u)
    np.testing.assert_allclose(x.grad.reshape(-1), wanted, atol=1e-15)


def test_take_along_an_axis_says_what_to_write():
    for call in (lambda: leaf().take([0], 1), lambda: leaf().take([0], axis=1), lambda: ops.take(leaf(), [0], dim=1)):
        with pytest.raises(InputError, match=r"torch.take does; along axis 1 write x.index_select\(1, index\)"):
            call()


def test_take_of_what_is_not_there():
    for index in (12, -13):
        with pytest.raises(InputError, match=r"take: index .* is out of range; expected 0 to 11"):
            leaf().take(index)
    with pytest.raises(DtypeError, match="take: index must be integers, but the array has dtype float64"):
        leaf().take([0.5])


def test_take_along_dim():
    x = leaf()
    np.testing.assert_array_equal(x.take_along_dim(x.argsort(1, descending=True), 1).data, X[:, ::-1])
    np.testing.assert_array_equal(x.take_along_dim(np.array([[-1, 0]]), 1).data, X[:, [-1, 0]])
    np.testing.assert_array_equal(x.take_along_dim(np.array([11, 0])).data, [11, 0])
    with pytest.raises(ShapeError, match=r"take_along_dim: indices have shape \(2, 1\), which does not fit \(3, 4\)"):
        x.take_along_dim(np.array([[0], [0]]), 1)


def test_select_and_narrow():
    np.testing.assert_array_equal(leaf().select(1, -2).data, X[:, -2])
    np.testing.assert_array_equal(leaf().narrow(1, -3, 2).data, X[:, 1:3])
    np.testing.assert_array_equal(leaf().narrow(0, 3, 0).data, X[:0])
    with pytest.raises(InputError, match="select: index 4 is out of range; axis 1 has size 4"):
        leaf().select(1, 4)
    with pytest.raises(ShapeError, match="narrow: 2 from 3 on are no part of axis 1 with size 4"):
        leaf().narrow(1, 3, 2)


# --- masks ---------------------------------------------------------------------------------------------------------


def test_masked_fill():
    x, value = leaf(), leaf(5.0)
    mask = np.array([True, False, False, True])
    y = x.masked_fill(mask, value)
    np.testing.assert_array_equal(y.data, np.where(mask, 5, X))
    y.backward(X)
    np.testing.assert_array_equal(x.grad, np.where(mask, 0, X))
    assert value.grad == X[:, mask].sum()
    assert minillm.ones(2).masked_fill(np.array([True, False]), -np.inf).dtype == np.float32
    assert minillm.ones(2).masked_fill(np.array([[True], [False]]), 0).shape == (2, 2)


def test_masked_select(rng):
    x, mask = leaf(), X % 3 == 0
    y = x.masked_select(minillm.tensor(mask))
    np.testing.assert_array_equal(y.data, X[mask])
    u = rng.normal(size=4)
    y.backward(u)
    np.testing.assert_array_equal(x.grad[mask], u)
    assert not x.grad[~mask].any()


@pytest.mark.parametrize("name", ["masked_fill", "masked_select"])
def test_masks_that_do_not_fit(name):
    rest = (0,) if name == "masked_fill" else ()
    with pytest.raises(DtypeError, match=f"{name}: mask has dtype int64; give booleans"):
        getattr(leaf(), name)(np.ones(4, int), *rest)
    with pytest.raises(ShapeError, match=rf"{name}: mask has shape \(3,\), which does not fit x of shape \(3, 4\)"):
        getattr(leaf(), name)(np.ones(3, bool), *rest)


def test_values_that_do_not_fit():
    mask = np.ones(4, bool)
    with pytest.raises(ShapeError, match=r"masked_fill: value has shape \(4,\); give a number, or use where"):
        leaf().masked_fill(mask, np.ones(4))
    with pytest.raises(DtypeError, match="masked_fill: x has dtype int64, which does not hold -inf; convert x"):
        minillm.arange(4).masked_fill(mask, -np.inf)


def test_nonzero_and_count_nonzero():
    x = minillm.tensor([[0, 2], [3, 0], [0, 0]])
    np.testing.assert_array_equal(x.nonzero().data, [[0, 1], [1, 0]])
    rows, columns = ops.nonzero(x, as_tuple=True)
    np.testing.assert_array_equal(rows.data, [0, 1])
    np.testing.assert_array_equal(columns.data, [1, 0])
    assert x.count_nonzero().item() == 2
    np.testing.assert_array_equal(x.count_nonzero(dim=1).data, [1, 1, 0])
    assert x.count_nonzero(0).dtype == np.int64


def test_one_hot():
    y = ops.one_hot(minillm.tensor([[2, 0]]))
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y.data, [[[0, 0, 1], [1, 0, 0]]])
    assert ops.one_hot(np.array([], int), 3).shape == (0, 3)
    for ids, classes, error, message in [
        ([0, 3], 3, InputError, "one_hot: id 3 is out of range; expected 0 to 2"),
        ([-1], 3, InputError, "one_hot: id -1 is out of range; expected 0 to 2"),
        ([0.5], 3, DtypeError, "one_hot: index must be integers, but the array has dtype float64"),
        ([], -1, InputError, "one_hot: there are no ids to tell the number of classes from; give num_classes"),
    ]:
        with pytest.raises(error) as caught:
            ops.one_hot(ids, classes)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: x.gather(1, [0]), ShapeError, "gather: index has shape (1,), but x has shape (3, 4)"),
        (lambda x: x.gather(1, np.zeros((4, 1), int)), ShapeError, "gather: index has shape (4, 1), but x has"),
        (lambda x: x.gather(1, [[4]]), InputError, "gather: index 4 is out of range; expected 0 to 3"),
        (lambda x: x.gather(1, [[-1]]), InputError, "gather: index -1 is out of range; expected 0 to 3"),
        (lambda x: x.gather(1, [[0.0]]), DtypeError, "gather: index must be integers, but the array has dtype float64"),
        (lambda x: x.gather(2, [[0]]), ShapeError, "gather: axis 2 is out of range for a tensor with 2 dimensions"),
        (lambda x: x.gather(None, [[0]]), DtypeError, "gather: axis is None; give a whole number"),
        (
            lambda x: x.scatter(1, [[0, 1]], minillm.ones(1, 1, dtype=np.float64)),
            ShapeError,
            "scatter: src has shape (1, 1), which does not cover index (1, 2)",
        ),
        (
            lambda x: x.scatter_add(1, [[0, 1]], minillm.ones(1, 2)),
            DtypeError,
            "scatter_add: src has dtype float32, but x has dtype float64; convert one of them",
        ),
    ],
)
def test_what_does_not_fit(call, error, message):
    with pytest.raises(error) as caught:
        call(leaf())
    assert str(caught.value).startswith(message)
