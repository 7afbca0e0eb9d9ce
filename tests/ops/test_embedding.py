"""Embedding: rows of a table, and two ways to add their gradients up."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import DtypeError, InputError, ShapeError


@pytest.mark.parametrize("ids", [2, [0, 2, 2], [[1, 0], [2, 2]], [], [[]]], ids=str)
def test_rows_of_the_table(ids, rng):
    weight, ids = rng.normal(size=(3, 4)), np.array(ids, int)
    for given_ids in (ids, Tensor(ids), ids.astype(np.uint16)):
        y = ops.embedding(given_ids, Tensor(weight))
        assert y.shape == (*ids.shape, 4)
        np.testing.assert_array_equal(y.data, weight[ids])


def test_ids_may_be_a_list(rng):
    weight = rng.normal(size=(3, 4)).astype(np.float32)
    y = ops.embedding([1, 1], Tensor(weight))
    np.testing.assert_array_equal(y.data, weight[[1, 1]])
    assert y.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64, np.int64])
def test_gradients_add_up_where_an_id_repeats(dtype, rng):
    weight = Tensor(rng.normal(size=(5, 3)), requires_grad=True)
    ids = np.array([[4, 0, 4], [4, 2, 0]], dtype)
    u = rng.normal(size=(2, 3, 3))
    ops.embedding(ids, weight).backward(u)
    expected = np.zeros((5, 3))
    np.add.at(expected, ids.astype(int), u)
    np.testing.assert_allclose(weight.grad, expected, atol=1e-15)
    assert not weight.grad[[1, 3]].any()


@pytest.mark.parametrize(("ids", "bad"), [([0, 3], 3), ([-1, 0], -1), ([7, -2], -2)])
def test_an_id_outside_the_table(ids, bad):
    with pytest.raises(InputError, match=f"embedding: token id {bad} is out of range; expected 0 to 2"):
        ops.embedding(np.array(ids), Tensor(np.zeros((3, 4))))


def test_ids_that_are_no_integers():
    with pytest.raises(DtypeError, match="embedding: token id must be integers, but the array has dtype float64"):
        ops.embedding(np.array([0.0]), Tensor(np.zeros((3, 4))))


def test_a_table_that_is_none():
    with pytest.raises(ShapeError, match=r"embedding: weight has shape \(3,\), expected \(V, C\)"):
        ops.embedding(np.array([0]), Tensor(np.zeros(3)))


@pytest.mark.oracle
@pytest.mark.parametrize("channels", [4, 600])
def test_as_in_torch(channels, same_as_torch, rng):
    embedding = pytest.importorskip("torch").nn.functional.embedding
    same_as_torch(ops.embedding, embedding, rng.integers(0, 7, (3, 5)), rng.normal(size=(7, channels)))
