"""A residual addition and the layer norm of the sum."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import ShapeError


def both_ways(arrays, cotangents, eps=1e-5):
    """Outputs and gradients of add_layer_norm, and of an addition with a layer norm after it."""
    results = []
    for fn in (ops.add_layer_norm, lambda x, r, *rest: (x + r, ops.layer_norm(x + r, *rest))):
        leaves = [Tensor(a, requires_grad=True) for a in arrays]
        total, norm = fn(*leaves, *[None] * (4 - len(leaves)), eps)
        loss = sum((y * Tensor(u)).sum() for y, u in zip((total, norm), cotangents, strict=True) if u is not None)
        loss.backward()
        results.append((total.data, norm.data, *[leaf.grad for leaf in leaves]))
    return zip(*results, strict=True)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5), (2, 3, 1), (700, 500)])
@pytest.mark.parametrize("used", ["both", "sum", "norm"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_sum_and_its_norm(shape, used, with_bias, rng):
    """A gradient may reach both results or one of them; the largest shape takes several blocks of rows."""
    arrays = [rng.normal(size=size) for size in (shape, shape, *[shape[-1:]] * (1 + with_bias))]
    cotangents = rng.normal(size=shape), rng.normal(size=shape)
    cotangents = {"both": cotangents, "sum": (cotangents[0], None), "norm": (None, cotangents[1])}[used]
    for i, (received, expected) in enumerate(both_ways(arrays, cotangents, eps=0.1)):
        expected = np.zeros(shape[-1]) if expected is None else expected  # the addition's norm was not used
        np.testing.assert_allclose(received, expected, rtol=1e-12, atol=1e-12, err_msg=str(i))


def test_a_sum_and_its_norm_in_float32(rng):
    arrays = [rng.normal(size=size).astype(np.float32) for size in ((40, 30), (40, 30), (30,), (30,))]
    cotangents = [rng.normal(size=(40, 30)).astype(np.float32) for _ in range(2)]
    for received, expected in both_ways(arrays, cotangents):
        assert received.dtype == np.float32
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)


def test_a_sum_of_two_dtypes_is_the_wider():
    x, residual = Tensor(np.ones((2, 3), np.float32)), Tensor(np.full((2, 3), 1e-12))
    total, norm = ops.add_layer_norm(x, residual, Tensor(np.ones(3)))
    assert total.dtype == norm.dtype == np.float64
    assert (total.data > 1).all()


def test_one_tensor_as_both_terms(rng):
    x, weight = Tensor(rng.normal(size=(3, 4)), requires_grad=True), Tensor(rng.normal(size=4))
    u, v = rng.normal(size=(2, 3, 4))
    total, norm = ops.add_layer_norm(x, x, weight)
    ((total * Tensor(u)).sum() + (norm * Tensor(v)).sum()).backward()
    twin = Tensor(x.data, requires_grad=True)
    ((twin * Tensor(2 * u)).sum() + (ops.layer_norm(2 * twin, weight) * Tensor(v)).sum()).backward()
    np.testing.assert_allclose(x.grad, twin.grad, rtol=1e-12)


def test_the_terms_and_the_gradients_that_arrive_are_not_written_to(rng):
    arrays = [rng.normal(size=(3, 4)) for _ in range(4)]
    before = [a.copy() for a in arrays]
    x, residual = (Tensor(a, requires_grad=True) for a in arrays[:2])
    total, _ = ops.add_layer_norm(x, residual, Tensor(np.ones(4)))
    total.node.backward(tuple(arrays[2:]), total.node.saved)
    total.backward(arrays[2])
    x.grad += 1  # a leaf's own: not shared with the other's, nor with what came in
    np.testing.assert_array_equal(residual.grad, before[2])
    for a, b in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 4), (4,), (4,), (4,)), r"add_layer_norm: x has shape \(2, 4\), but residual has shape \(4,\); both"),
        (((2, 4), (2, 4), (3,), (4,)), "add_layer_norm: weight has C=3, but x has C=4"),
        (((2, 4), (2, 4), (4,), (3,)), "add_layer_norm: bias has C=3, but x has C=4"),
    ],
)
def test_terms_that_do_not_fit(shapes, message):
    with pytest.raises(ShapeError, match=message):
        ops.add_layer_norm(*[Tensor(np.ones(shape)) for shape in shapes])


@pytest.mark.oracle
def test_a_sum_and_its_norm_as_in_torch(same_as_torch, rng):
    layer_norm = pytest.importorskip("torch").nn.functional.layer_norm
    arrays = [rng.normal(size=size) for size in ((3, 6), (3, 6), (6,), (6,))]
    same_as_torch(ops.add_layer_norm, lambda x, r, w, b: (x + r, layer_norm(x + r, (6,), w, b)), *arrays)
