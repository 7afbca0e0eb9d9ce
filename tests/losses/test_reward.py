"""The loss of a reward model, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minillm import Tensor
from minillm.errors import InputError, ShapeError
from minillm.losses import bradley_terry_loss
from minillm.testing import check_gradients


def test_by_hand() -> None:
    chosen, rejected = np.array([2.0, 0.0, -1.0]), np.array([1.0, 0.0, 3.0])
    expected = [math.log1p(math.exp(-d)) for d in (1.0, 0.0, -4.0)]
    np.testing.assert_allclose(bradley_terry_loss(Tensor(chosen), Tensor(rejected)).data, expected, rtol=1e-12)
    expected = [math.log1p(math.exp(-d)) for d in (0.5, -2.0, -4.0)]
    margin = np.array([0.5, 2.0, 0.0])
    np.testing.assert_allclose(bradley_terry_loss(Tensor(chosen), Tensor(rejected), margin).data, expected, rtol=1e-12)
    centred = bradley_terry_loss(Tensor(chosen), Tensor(rejected), margin, 0.01).data
    np.testing.assert_allclose(centred - expected, [0.09, 0.0, 0.04], rtol=1e-9)


def test_gradients(rng) -> None:
    chosen, rejected, margin = rng.normal(size=(3, 4)) * 3
    check_gradients(lambda w, l: bradley_terry_loss(w, l, margin, 0.1), chosen, rejected)  # noqa: E741
    start = Tensor(np.zeros(1), requires_grad=True)
    bradley_terry_loss(start, Tensor(np.zeros(1)), centering=0.5).sum().backward()
    assert start.grad.tolist() == [-0.5]


def test_far_scores_do_not_overflow() -> None:
    scores = Tensor(np.array([1e4, -1e4], np.float32), requires_grad=True)
    loss = bradley_terry_loss(scores, Tensor(np.zeros(2, np.float32)))
    np.testing.assert_allclose(loss.data, [0, 1e4])
    loss.sum().backward()
    np.testing.assert_allclose(scores.grad, [0, -1])


def test_refusals() -> None:
    x = Tensor(np.zeros(2))
    with pytest.raises(ShapeError, match="bradley_terry_loss: rejected has B=3, but chosen has B=2"):
        bradley_terry_loss(x, Tensor(np.zeros(3)))
    with pytest.raises(InputError, match="bradley_terry_loss: centering is -1; give 0 or a small positive number"):
        bradley_terry_loss(x, x, centering=-1)
