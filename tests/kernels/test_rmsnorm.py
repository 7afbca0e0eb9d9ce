"""kernels/rmsnorm.cu, emulated, against the formulas of minillm/ops/rmsnorm.py."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import cuda, ops
from minillm.cuda import Kernel, get_kernel, rmsnorm
from minillm.engine import engine
from minillm.ops.rmsnorm import Saved, rmsnorm_backward, rmsnorm_forward
from minillm.study.gradcheck import run_cases

pytestmark = pytest.mark.usefixtures("_compiler")
EPS = 1e-6
SHAPES = [(1, 1), (5, 2), (17, 17), (24, 64), (7, 509), (6, 768), (5, 1023), (3, 4099)]


def threads(x: np.ndarray) -> int:
    """As rmsnorm.cu recommends."""
    wanted = -(-x.shape[1] // (16 // x.itemsize))
    return min(512, -(-wanted // 32) * 32)


def forward(x, weight, blocks=None, kernel: Kernel | None = None):
    """y and rstd."""
    y, rstd = np.full_like(x, np.nan), np.full(len(x), np.nan, np.float64 if x.dtype == np.float64 else np.float32)
    sizes = (np.int64(len(x)), np.int32(x.shape[1]), rstd.dtype.type(EPS))
    kernel = kernel or get_kernel("rmsnorm.cu", "rmsnorm_forward", x.dtype)
    kernel(blocks or len(x), threads(x), (x, weight, y, rstd, *sizes))
    return y, rstd


def backward(dy, x, weight, rstd, blocks=None, kernel: Kernel | None = None):
    """dx and dweight."""
    rows, columns = x.shape
    dx, partial = np.full_like(x, np.nan), np.full((blocks or min(rows, 4), columns), np.nan, rstd.dtype)
    at_a_time = threads(x) * (16 // x.itemsize)
    shared = -(-columns // at_a_time) * at_a_time * rstd.itemsize
    kernel = kernel or get_kernel("rmsnorm.cu", "rmsnorm_backward", x.dtype)
    kernel(len(partial), threads(x), (dy, x, weight, rstd, dx, partial, np.int64(rows), np.int32(columns)), shared)
    dweight, blocks = np.full(columns, np.nan, x.dtype), len(partial)
    add_up = get_kernel("column_sums.cu", "column_sums", rstd.dtype, x.dtype)
    add_up(-(-columns // 64), (32, 16), (partial, dweight, np.int64(blocks), np.int32(blocks), np.int32(columns)))
    return dx, dweight


def forward_formula(x, weight):
    y, saved = rmsnorm_forward(x, weight, eps=EPS)
    return y, saved.rstd[:, 0]


def backward_formula(dy, x, weight, rstd):
    norm = x * rstd[:, None]
    return rmsnorm_backward(dy, Saved(norm, rstd[:, None], weight))


@pytest.fixture
def draw(rng, dtype):
    """x, dy and weight."""

    def arrays(rows: int, columns: int) -> list[np.ndarray]:
        drawn = [2 * rng.standard_normal((rows, columns)) + 0.5 for _ in range(2)]
        return [array.astype(dtype) for array in (*drawn, 1 + rng.standard_normal(columns))]

    return arrays


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(check, warp_order, draw, shape):
    x, _, weight = draw(*shape)
    y, rstd = forward(x, weight)
    check(y, lambda *a: forward_formula(*a)[0], (x, weight), factor=2)
    check(rstd, lambda *a: forward_formula(*a)[1], (x, weight), factor=2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(check, warp_order, draw, shape):
    x, dy, weight = draw(*shape)
    _, rstd = forward(x, weight)
    check(backward(dy, x, weight, rstd), backward_formula, (dy, x, weight, rstd), factor=3)


def test_rows_shared_out_to_fewer_blocks(check, warp_order, draw):
    x, dy, weight = draw(23, 100)
    y, rstd = forward(x, weight)
    np.testing.assert_array_equal(forward(x, weight, blocks=4)[0], y)
    one_each = backward(dy, x, weight, rstd, blocks=23)
    for blocks in (1, 5):
        received = backward(dy, x, weight, rstd, blocks=blocks)
        np.testing.assert_array_equal(received[0], one_each[0])
        check(received, backward_formula, (dy, x, weight, rstd), factor=3)


def test_arrays_that_do_not_start_at_16_bytes(check, draw):
    def shifted(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array.reshape(-1)[:1], array.reshape(-1)])[1:].reshape(array.shape)

    x, dy, weight = draw(5, 96)
    _, rstd = forward(x, weight)
    check(forward(shifted(x), weight), forward_formula, (x, weight), factor=2)
    check(forward(x, shifted(weight)), forward_formula, (x, weight), factor=2)
    for i in range(3):
        arguments = [shifted(a) if i == j else a for j, a in enumerate((dy, x, weight))]
        check(backward(*arguments, rstd), backward_formula, (dy, x, weight, rstd), factor=3)


def test_rows_of_zeros_stay_zeros(draw):
    x, dy, weight = draw(4, 40)
    x[:] = 0
    y, rstd = forward(x, weight)
    assert (y == 0).all()
    np.testing.assert_allclose(rstd, EPS**-0.5, rtol=1e-6)
    assert np.isfinite(backward(dy, x, weight, rstd)[0].astype(float)).all()


def test_results_repeat_to_the_last_bit_in_every_order(draw):
    x, dy, weight = draw(6, 777)
    _, rstd = forward(x, weight)
    expected = [a.tobytes() for a in backward(dy, x, weight, rstd, blocks=2)]
    for seed in range(3):
        with cuda.emulation(order="random", seed=seed):
            assert [a.tobytes() for a in backward(dy, x, weight, rstd, blocks=2)] == expected


@pytest.mark.parametrize("shape", [(1,), (2, 3, 17), (300, 64), (5, 1023)], ids=str)
def test_the_operation_by_kernel_and_by_formula(agree, rng, shape):
    agree(ops.rms_norm, rng.standard_normal(shape), rng.standard_normal(shape[-1]), ran="rmsnorm_backward")


def test_rows_too_long_for_shared_memory_are_left_to_the_formula(rng):
    x = rng.standard_normal((2, 16385)).astype(np.float32)
    assert rmsnorm.forward(x, x[0], eps=EPS) is NotImplemented
    assert rmsnorm.forward(x[:, :16384].copy(), x[0, :16384], eps=EPS) is not NotImplemented


def test_every_case_of_the_gradient_check_by_kernels():
    ran = "rmsnorm_backward<double>"
    before = cuda.launch_counts()[ran]
    with engine("emulate"):
        results = run_cases(["rmsnorm"])
    assert results
    assert [result.report for result in results if result.report] == []
    assert cuda.launch_counts()[ran] > before


FORWARD, BACKWARD = "rmsnorm_forward<float>", "rmsnorm_backward<float>"
FAULTS = {
    "eps forgotten": (FORWARD, "/ columns + eps", "/ columns"),
    "the sum instead of the mean": (FORWARD, "/ columns + eps", "+ eps"),
    "rows beyond the grid forgotten": (
        FORWARD,
        "row < rows; row += gridDim.x) {\n        const long",
        "row < gridDim.x; row += gridDim.x) {\n        const long",
    ),
    "sums not cleared": (BACKWARD, "blockDim.x) dweight[slot] = 0;", "blockDim.x) continue;"),
    "sums of two threads in one slot": (BACKWARD, "dweight[slot] += ", "dweight[slot / 2] += "),
    "rstd once too little": (BACKWARD, "A(x_i[k]) * rstd * mean_dot", "A(x_i[k]) * mean_dot"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(mutated, rng, fault):
    instance, old, new = FAULTS[fault]
    faulty = mutated(f"rmsnorm {fault}", "rmsnorm.cu", old, new, "rmsnorm.cu", instance)
    x, dy = (0.002 * rng.standard_normal((2, 7, 400))).astype(np.float32)
    weight = rng.standard_normal(400).astype(np.float32)
    right = forward(x, weight)
    if instance == FORWARD:
        received = forward(x, weight, blocks=3, kernel=faulty)
    else:
        right, received = backward(dy, x, weight, right[1]), backward(dy, x, weight, right[1], kernel=faulty)
    assert not all(np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(right, received, strict=True))
