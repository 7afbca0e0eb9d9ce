"""The matrix product, on vectors, matrices and batches."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import ShapeError

SHAPES = [
    ((3, 4), (4, 2)),
    ((4,), (4,)),
    ((4,), (4, 3)),
    ((3, 4), (4,)),
    ((2, 3, 4), (2, 4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 3, 4), (4, 5)),
    ((2, 1, 3, 4), (3, 4, 2)),
    ((4,), (2, 4, 3)),
    ((2, 3, 4), (4,)),
]
EMPTY = [((0, 3), (3, 2)), ((2, 0), (0, 3)), ((0, 2, 3), (3, 2))]


@pytest.mark.parametrize("shapes", SHAPES + EMPTY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values(shapes, dtype, rng):
    a, b = (rng.normal(size=shape).astype(dtype) for shape in shapes)
    sums = np.einsum("...mk,...kn->...mn", a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b)
    expected = sums.reshape(np.matmul(a, b).shape)
    for y in (ops.matmul(Tensor(a), Tensor(b)), Tensor(a) @ b, a @ Tensor(b), ops.matmul(a, b)):
        np.testing.assert_allclose(y.data, expected, rtol=1e-5, atol=1e-5 if dtype == np.float32 else 1e-13)
        assert y.dtype == dtype


def test_gradients_are_the_two_products(rng):
    a, b, u = (rng.normal(size=shape) for shape in [(3, 4), (4, 2), (3, 2)])
    x, y = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
    (x @ y).backward(u)
    np.testing.assert_allclose(x.grad, u @ b.T)
    np.testing.assert_allclose(y.grad, a.T @ u)


def test_sizes_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"matmul: a has K=3 columns, but b has K=4 rows.*\(2, 3\).*\(4, 5\)"):
        ops.matmul(Tensor(np.ones((2, 3))), Tensor(np.ones((4, 5))))
    with pytest.raises(ShapeError, match="matmul: a has K=3 columns, but b has K=4 rows"):
        Tensor(np.ones((2, 3))) @ np.ones(4)


@pytest.mark.parametrize("shapes", [((), (3,)), ((3, 4), ())])
def test_a_number_is_no_matrix(shapes):
    with pytest.raises(ShapeError, match=r"matmul: a has shape .* a number is multiplied with \*"):
        ops.matmul(Tensor(np.ones(shapes[0])), Tensor(np.ones(shapes[1])))


@pytest.mark.oracle
@pytest.mark.parametrize("shapes", SHAPES)
def test_as_in_torch(shapes, same_as_torch, rng):
    same_as_torch(lambda a, b: a @ b, lambda a, b: a @ b, *(rng.normal(size=shape) for shape in shapes))
