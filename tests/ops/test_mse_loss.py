"""Mean squared error."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import InputError, ShapeError
from minillm.testing import check_gradients


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(3, 4), (1,), (), (0, 2)])
def test_the_definition_and_its_gradients(reduction, shape, rng):
    x, target = rng.normal(size=shape), rng.normal(size=shape)
    if reduction == "mean" and 0 in shape:
        pytest.skip("no elements have no mean")
    squares = (x - target) ** 2
    expected = squares if reduction == "none" else getattr(np, reduction)(squares)
    np.testing.assert_allclose(ops.mse_loss(Tensor(x), Tensor(target), reduction).numpy(), expected, rtol=1e-14)
    check_gradients(lambda x, target: ops.mse_loss(x, target, reduction), x, target)


def test_a_number_and_an_array_as_target(rng):
    x = rng.normal(size=3).astype(np.float32)
    assert ops.mse_loss(Tensor(x[:1].reshape(())), 2).item() == pytest.approx((x[0] - 2) ** 2, rel=1e-6)
    loss = ops.mse_loss(Tensor(x), np.ones(3, np.float32))
    assert loss.dtype == np.float32
    assert loss.item() == pytest.approx(((x - 1) ** 2).mean(), rel=1e-6)


def test_shapes_that_would_be_stretched_are_refused(rng):
    with pytest.raises(ShapeError, match=r"mse_loss: x has shape \(3, 1\), but target has shape \(3,\)"):
        ops.mse_loss(Tensor(rng.normal(size=(3, 1))), rng.normal(size=3))
    with pytest.raises(InputError, match="reduction is 'max'"):
        ops.mse_loss(Tensor(rng.normal(size=3)), rng.normal(size=3), "max")


@pytest.mark.oracle
def test_torch(same_as_torch, rng):
    torch = pytest.importorskip("torch")
    for reduction in ("mean", "sum", "none"):
        same_as_torch(
            lambda x, t, reduction=reduction: ops.mse_loss(x, t, reduction),
            lambda x, t, reduction=reduction: torch.nn.functional.mse_loss(x, t, reduction=reduction),
            *rng.normal(size=(2, 3, 4)),
        )
