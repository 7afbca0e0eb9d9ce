"""The low-rank update of a linear layer's output, and the linear layer whose weights are frozen."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Tensor, observe
from minillm.errors import ShapeError


def leaves(rng, *shapes, dtype=np.float64):
    return [Tensor(rng.normal(size=shape).astype(dtype), requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("start", [0, 2, 4])
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_definition_and_the_formulas(lead, start, overwrite, dtype, rng):
    """The output has the product with W + s B A in some channels, and the gradients are those of the notes."""
    base, x, a, b = leaves(rng, (*lead, 7), (*lead, 4), (2, 4), (3, 2), dtype=dtype)
    u = rng.normal(size=(*lead, 7)).astype(dtype)
    z = ops.add_low_rank(base * 1, x, a, b, 0.5, start, overwrite)
    z.backward(u)
    part, tolerance = u[..., start : start + 3], dict(rtol=1e-4 if dtype == np.float32 else 1e-12, atol=1e-5)
    change = np.zeros((*lead, 7))
    change[..., start : start + 3] = 0.5 * (x.data @ (b.data @ a.data).T)
    assert {array.dtype for array in (z.data, base.grad, x.grad, a.grad, b.grad)} == {np.dtype(dtype)}
    np.testing.assert_allclose(z.data, base.data + change, **tolerance)
    np.testing.assert_array_equal(base.grad, u)
    np.testing.assert_allclose(x.grad, 0.5 * part @ b.data @ a.data, **tolerance)
    rows, x_rows = part.reshape(-1, 3), x.data.reshape(-1, 4)
    np.testing.assert_allclose(b.grad, 0.5 * rows.T @ x_rows @ a.data.T, **tolerance)
    np.testing.assert_allclose(a.grad, 0.5 * (rows @ b.data).T @ x_rows, **tolerance)


def test_y_is_kept_unless_its_memory_is_given_away(rng):
    y, x, a, b = (Tensor(rng.normal(size=shape)) for shape in ((3, 5), (3, 4), (2, 4), (5, 2)))
    before = y.data.copy()
    ops.add_low_rank(y, x, a, b)
    np.testing.assert_array_equal(y.data, before)
    assert ops.add_low_rank(y, x, a, b, overwrite=True).data is y.data


def test_at_first_only_b_gets_a_gradient(rng):
    x, a, b = leaves(rng, (3, 4), (2, 4), (5, 2))
    b.data[...] = 0
    ops.add_low_rank(Tensor(np.zeros((3, 5))), x, a, b).backward(rng.normal(size=(3, 5)))
    assert not x.grad.any()
    assert not a.grad.any()
    assert b.grad.all()


@pytest.mark.parametrize(
    ("shapes", "start", "message"),
    [
        (((3, 5), (3, 4), (2, 3), (5, 2)), 0, "add_low_rank: a has in=3, but x has in=4"),
        (((3, 5), (3, 4), (2, 4), (5, 1)), 0, "add_low_rank: b has r=1, but a has r=2"),
        (((3, 5), (3, 4), (2, 4), (4, 2)), 2, "b has out=4, which does not fit into y's C=5 from start=2 on"),
        (((3, 5), (3, 4), (2, 4), (4, 2)), -1, "from start=-1 on"),
        (((2, 5), (3, 4), (2, 4), (5, 2)), 0, "give one row of y for each of x"),
        (((5,), (3, 4), (2, 4), (5, 2)), 0, "give one row of y for each of x"),
    ],
)
def test_shapes_that_do_not_fit(shapes, start, message):
    with pytest.raises(ShapeError, match=message):
        ops.add_low_rank(*[Tensor(np.ones(shape)) for shape in shapes], start=start)


@pytest.mark.parametrize("trained", ["weight", "bias", "neither"])
def test_frozen_weights_get_no_gradient_and_no_product(trained, rng):
    """A layer without trained weights keeps its weight alone; with one of them it is the usual one."""
    x, weight, bias = leaves(rng, (2, 3, 4), (5, 4), (5,))
    weight.requires_grad_(trained == "weight")
    bias.requires_grad_(trained == "bias")
    calls: list = []
    with observe(on_forward=calls.append):
        y = ops.linear(x, weight, bias)
    u = rng.normal(size=(2, 3, 5))
    y.backward(u)
    np.testing.assert_allclose(y.data, x.data @ weight.data.T + bias.data)
    np.testing.assert_allclose(x.grad, u @ weight.data)
    assert calls[0].op.name == ("frozen_linear" if trained == "neither" else "linear")
    assert (weight.grad is not None, bias.grad is not None) == (trained == "weight", trained == "bias")
    if trained == "neither":
        assert [array is weight.data for array in calls[0].saved] == [True]
