"""Kernels that add up many rows, or long rows, stay right to seven digits: of constants, which all round one way."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import Parameter, ops, tensor
from minillm.cuda import launch, launch_counts
from minillm.engine import engine
from minillm.optim import AdamW

pytestmark = pytest.mark.usefixtures("_compiler")
BOUND = 1e-6


def ones(*shape):
    return tensor(np.ones(shape, np.float32), requires_grad=True)


@pytest.fixture
def emulated():
    before = launch_counts()
    with engine("require"):
        yield lambda: launch_counts() - before


@pytest.mark.parametrize("constant", [1.1, 1.7])
@pytest.mark.parametrize("rows", [4097, 300_000])
def test_sums_over_rows(emulated, rows, constant):
    x = np.full((rows, 3), constant, np.float32)
    right = np.float64(x[0, 0]) * rows
    np.testing.assert_allclose(launch.sum_rows(x, x.dtype), np.full(3, right), rtol=BOUND)


@pytest.mark.parametrize("rows", [100_000, 1_200_000])
def test_one_id_for_all_rows(emulated, rows):
    table, u = ones(3, 1), np.full((rows, 1), 1.1, np.float32)
    ops.embedding(np.ones(rows, int), table).backward(u)
    np.testing.assert_allclose(table.grad[1], np.float64(u[0, 0]) * rows, rtol=BOUND)


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("rows", [31, 2048 * 33, 150_001])
def test_weights_of_normalisation(emulated, name, rows, rng):
    x = np.repeat(rng.standard_normal((1, 2)).astype(np.float32), rows, axis=0)
    weight, bias, u = ones(2), ones(2), np.full((rows, 2), 1.1, np.float32)
    y = ops.layer_norm(tensor(x), weight, bias) if name == "layernorm" else ops.rms_norm(tensor(x), weight)
    y.backward(u)
    norm = y.data - (1 if name == "layernorm" else 0)
    np.testing.assert_allclose(weight.grad, (u.astype(np.float64) * norm).sum(0), rtol=BOUND)
    if name == "layernorm":
        np.testing.assert_allclose(bias.grad, u.astype(np.float64).sum(0), rtol=BOUND)


def test_long_rows(emulated):
    columns = 400_000
    x = np.full((1, columns), 1.1, np.float32)
    x[0, 0] = 2
    p = np.exp(x.astype(np.float64) - 2)
    total = p.sum()
    np.testing.assert_allclose(ops.softmax(tensor(x)).data, p / total, rtol=BOUND)
    np.testing.assert_allclose(ops.log_softmax(tensor(x)).data, np.log(p / total), rtol=BOUND)
    for smoothing in (0.0, 0.3):
        loss = ops.cross_entropy(tensor(x), np.array([0]), label_smoothing=smoothing)
        right = np.log(total) + smoothing * (2 - x.astype(np.float64).mean())
        assert loss.item() == pytest.approx(right, rel=BOUND)
    leaf, u = tensor(x, requires_grad=True), np.full((1, columns), 1.1, np.float32)
    ops.log_softmax(leaf).backward(u)
    right = u - p / total * u.astype(np.float64).sum()
    np.testing.assert_allclose(leaf.grad[0, 1:], right[0, 1:], rtol=2e-5, atol=BOUND)
    assert leaf.grad[0, 0] == pytest.approx(right[0, 0], rel=BOUND)


def test_the_norm_of_what_float_cannot_square(emulated):
    for size, value in ((100, 1e20), (1000, 1e-30), (200_000, 1.1)):
        parameter = Parameter(np.zeros(size, np.float32), "p")
        parameter.grad = np.full(size, value, np.float32)
        norm = AdamW([parameter]).clip_grad_norm(1.0)
        assert float(norm) == pytest.approx(float(np.float32(value)) * size**0.5, rel=BOUND)
    assert any("sum_of_squares" in name for name in emulated())
