"""Dropout: how much, how scaled, and the same mask in both directions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from minillm import manual_seed, ops, random
from minillm.autograd import Tensor
from minillm.errors import InputError

ONES = np.ones((200, 250))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_dropped_and_the_mean(p):
    manual_seed(0)
    y = ops.dropout(Tensor(ONES), p).data
    deviation = math.sqrt(p * (1 - p) / ONES.size)
    assert abs((y == 0).mean() - p) < 5 * deviation
    assert abs(y.mean() - 1) < 5 * deviation / (1 - p)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - p))


def test_each_element_is_zero_or_scaled(rng):
    x = rng.normal(size=(30, 40))
    y = ops.dropout(Tensor(x), 0.25).data
    assert ((y == 0) | np.isclose(y, x / 0.75)).all()


@pytest.mark.parametrize("shape", [(), (1,), (7,), (200, 250)])
def test_the_backward_draws_the_same_mask(shape, rng):
    manual_seed(3)
    x = Tensor(np.ones(shape), requires_grad=True)
    y = ops.dropout(x, 0.4)
    ops.dropout(x.detach(), 0.4)  # the stream moves on meanwhile
    u = rng.normal(size=shape)
    y.backward(u)
    np.testing.assert_array_equal(x.grad, u * y.data)


def test_masks_differ_from_call_to_call_and_repeat_with_the_seed():
    manual_seed(3)
    first, second = ops.dropout(Tensor(ONES), 0.5).data, ops.dropout(Tensor(ONES), 0.5).data
    assert 0.4 < (first == second).mean() < 0.6
    manual_seed(3)
    np.testing.assert_array_equal(ops.dropout(Tensor(ONES), 0.5).data, first)


def test_a_mask_depends_on_the_place_not_on_the_shape_or_dtype():
    manual_seed(3)
    first = ops.dropout(Tensor(ONES), 0.5).data
    manual_seed(3)
    np.testing.assert_array_equal(ops.dropout(Tensor(ONES.reshape(-1).astype(np.float32)), 0.5).data, first.reshape(-1))


def test_nothing_happens_in_evaluation_or_at_p_0():
    x = Tensor(ONES)
    assert ops.dropout(x, 0.5, training=False) is x
    assert ops.dropout(x, 0.0) is x
    manual_seed(3)
    ops.dropout(x, 0.0)
    ops.dropout(x, 0.5, training=False)
    first = ops.dropout(x, 0.5).data
    manual_seed(3)
    np.testing.assert_array_equal(ops.dropout(x, 0.5).data, first)


def test_nothing_is_saved_but_the_place_in_the_stream():
    y = ops.dropout(Tensor(ONES, requires_grad=True), 0.5)
    assert not any(isinstance(item, np.ndarray) for item in y.node.saved)


@pytest.mark.parametrize("p", [-0.1, 1.0, 2, math.nan])
@pytest.mark.parametrize("training", [True, False])
def test_a_probability_that_is_none(p, training):
    with pytest.raises(InputError, match=f"dropout: p is {p}; give a probability of at least 0 and below 1"):
        ops.dropout(Tensor(ONES), p, training)


@pytest.mark.parametrize("cuts", [[0, 5], [0, 2, 5], [0, 1, 1, 4, 5]], ids=str)
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 7, 11), (5, 16)], ids=str)
def test_rows_of_a_larger_tensor_get_their_part_of_its_mask(shape, cuts, rng):
    """Forward and backward, from any number on; and all go on from where the whole ends."""
    x, u = rng.normal(size=(2, *shape))
    manual_seed(8)
    ops.dropout(Tensor(ONES), 0.3)
    whole = Tensor(x, requires_grad=True)
    expected = ops.dropout(whole, 0.3)
    expected.backward(u)
    place = random.default.state()
    for first, stop in itertools.pairwise(cuts):
        manual_seed(8)
        ops.dropout(Tensor(ONES), 0.3)
        part = Tensor(x[first:stop], requires_grad=True)
        with random.part(rows=(first, 5)):
            y = ops.dropout(part, 0.3)
        y.backward(u[first:stop])
        np.testing.assert_array_equal(y.data, expected.data[first:stop])
        np.testing.assert_array_equal(part.grad, whole.grad[first:stop])
        assert random.default.state() == place


def test_a_tensor_without_rows_is_no_part():
    manual_seed(8)
    expected = ops.dropout(Tensor(np.ones(())), 0.5).data
    manual_seed(8)
    with random.part(rows=(3, 9)):
        assert ops.dropout(Tensor(np.ones(())), 0.5).data == expected
