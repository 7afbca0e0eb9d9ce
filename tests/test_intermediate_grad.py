"""Reading `.grad` of an intermediate tensor gives None, as in PyTorch, and says what to do."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Tensor, no_grad


def test_the_warning_says_which_operation_made_it_and_what_to_do():
    x = Tensor(np.ones(2), requires_grad=True)
    y = ops.exp(x)
    y.sum().backward()
    with pytest.warns(UserWarning, match=r"grad: exp made this tensor at test_intermediate_grad.py:\d+.*retain_grad"):
        assert y.grad is None
    np.testing.assert_allclose(x.grad, np.e)


def test_it_comes_once_a_place():
    x = Tensor(np.ones(2), requires_grad=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            assert (x * 2).grad is None
        assert (x * 2).grad is None
    assert [one.category for one in seen] == [UserWarning] * 2
    assert {one.filename for one in seen} == {__file__}, "the reader's line, not one of minillm's"


def test_a_gradient_that_is_kept_is_read_without_a_warning():
    x = Tensor(np.ones(2), requires_grad=True)
    y = (x * 3).retain_grad()
    assert y.grad is None, "no backward has run yet"
    (y * y).sum().backward()
    np.testing.assert_array_equal(y.grad, [6, 6])
    y.retain_grad()
    np.testing.assert_array_equal(y.grad, [6, 6])


def test_leaves_and_what_needs_no_gradient_are_read_without_a_warning():
    x = Tensor(np.ones(2), requires_grad=True)
    assert x.grad is None
    with no_grad():
        assert (x * 2).grad is None
    assert x.detach().grad is None
    assert x.argmax().grad is None
    assert Tensor(np.ones(2)).exp().grad is None
    assert (x > 0).grad is None


@pytest.mark.oracle
def test_pytorch_warns_too():
    torch = pytest.importorskip("torch")
    y = torch.ones(2, requires_grad=True) * 2
    with pytest.warns(UserWarning, match="not a leaf Tensor"):
        assert y.grad is None
