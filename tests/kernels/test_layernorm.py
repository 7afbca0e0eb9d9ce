"""kernels/layernorm.cu, emulated, against the formulas of minillm/ops/layernorm.py."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import cuda, ops
from minillm.autograd import Tensor
from minillm.cuda import Kernel, add_layernorm, get_kernel, layernorm
from minillm.engine import engine
from minillm.ops.add_layernorm import add_layernorm_backward
from minillm.ops.layernorm import Saved, layernorm_backward, layernorm_forward
from minillm.study.gradcheck import run_cases

pytestmark = pytest.mark.usefixtures("_compiler")
EPS = 1e-5
# Odd and prime numbers of columns, whole and broken 16 bytes, more than one pass of a block.
SHAPES = [(1, 1), (5, 2), (17, 17), (24, 64), (7, 509), (6, 768), (5, 1023), (3, 4099)]


def statistics_dtype(x: np.ndarray) -> np.dtype:
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


def threads(x: np.ndarray) -> int:
    """As layernorm.cu recommends."""
    wanted = -(-x.shape[1] // (16 // x.itemsize))
    return min(512, -(-wanted // 32) * 32)


def forward(x, weight, bias, residual=None, blocks=None, kernel: Kernel | None = None, in_place=False):
    """y, mean and rstd; with a residual, out before them."""
    y, (mean, rstd) = np.full_like(x, np.nan), np.full((2, len(x)), np.nan, statistics_dtype(x))
    sizes = (np.int64(len(x)), np.int32(x.shape[1]), mean.dtype.type(EPS))
    grid = blocks or len(x)
    if residual is None:
        kernel = kernel or get_kernel("layernorm.cu", "layernorm_forward", x.dtype)
        kernel(grid, threads(x), (x, weight, bias, y, mean, rstd, *sizes))
        return y, mean, rstd
    out = x.copy() if in_place else np.full_like(x, np.nan)
    kernel = kernel or get_kernel("layernorm.cu", "residual_layernorm_forward", x.dtype)
    kernel(grid, threads(x), (out if in_place else x, residual, weight, bias, out, y, mean, rstd, *sizes))
    return out, y, mean, rstd


def backward(dy, x, weight, mean, rstd, dout=None, blocks=None, kernel: Kernel | None = None, in_place=False):
    """dx, dweight and dbias; x is `out` where there is a residual."""
    rows, columns = x.shape
    dx = dout.copy() if in_place else np.full_like(x, np.nan)
    partial = np.full((blocks or min(rows, 4), 2 * columns), np.nan, mean.dtype)
    name = "layernorm_backward" if dout is None else "residual_layernorm_backward"
    on_its_way = () if dout is None else (dx if in_place else dout,)
    at_a_time = threads(x) * (16 // x.itemsize)
    shared = 2 * -(-columns // at_a_time) * at_a_time * mean.itemsize
    kernel = kernel or get_kernel("layernorm.cu", name, x.dtype)
    arguments = (dy, *on_its_way, x, weight, mean, rstd, dx, partial, np.int64(rows), np.int32(columns))
    kernel(len(partial), threads(x), arguments, shared)
    sums = np.full((2, columns), np.nan, x.dtype)
    chunk = np.int32(len(partial))
    add_up = get_kernel("column_sums.cu", "column_sums", mean.dtype, x.dtype)
    add_up(-(-columns // 64), (32, 16), (partial, sums, np.int64(len(partial)), chunk, np.int32(2 * columns)))
    return dx, sums[0], sums[1]


def forward_formula(x, weight, bias):
    y, saved = layernorm_forward(x, weight, bias, eps=EPS)
    return y, x.mean(axis=-1), saved.rstd[:, 0]


def backward_formula(dy, x, weight, mean, rstd):
    return layernorm_backward(dy, saved_of(x, weight, mean, rstd))


def residual_backward_formula(dy, x, weight, mean, rstd, dout):
    return add_layernorm_backward((dout, dy), saved_of(x, weight, mean, rstd))[1:]


def saved_of(x, weight, mean, rstd):
    """What the plain forward keeps."""
    norm = (x - mean[:, None]) * rstd[:, None]
    return Saved(norm, rstd[:, None], weight, True)


@pytest.fixture
def draw(rng, dtype):
    """x, residual, dy, dout, weight and bias."""

    def arrays(rows: int, columns: int) -> list[np.ndarray]:
        large = [2 * rng.standard_normal((rows, columns)) + 0.5 for _ in range(4)]
        small = [1 + rng.standard_normal(columns), rng.standard_normal(columns)]
        return [array.astype(dtype) for array in (*large, *small)]

    return arrays


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(check, warp_order, draw, shape):
    x, _, _, _, weight, bias = draw(*shape)
    y, mean, rstd = forward(x, weight, bias)
    check(y, lambda *a: forward_formula(*a)[0], (x, weight, bias), factor=2)
    check((mean, rstd), lambda *a: forward_formula(*a)[1:], (x, weight, bias), factor=2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(check, warp_order, draw, shape):
    x, _, dy, _, weight, bias = draw(*shape)
    _, mean, rstd = forward(x, weight, bias)
    check(backward(dy, x, weight, mean, rstd), backward_formula, (dy, x, weight, mean, rstd), factor=3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_residual(check, warp_order, draw, shape):
    x, residual, dy, dout, weight, bias = draw(*shape)
    out, y, mean, rstd = forward(x, weight, bias, residual)
    check(out, lambda x, residual: x + residual, (x, residual), factor=2)
    assert [a.tobytes() for a in (y, mean, rstd)] == [a.tobytes() for a in forward(out, weight, bias)]
    received = backward(dy, out, weight, mean, rstd, dout)
    check(received, residual_backward_formula, (dy, out, weight, mean, rstd, dout), factor=3)


def test_in_place(draw):
    x, residual, dy, dout, weight, bias = draw(9, 200)
    for a, b in zip(forward(x, weight, bias, residual), forward(x, weight, bias, residual, in_place=True), strict=True):
        np.testing.assert_array_equal(a, b)
    saved = forward(x, weight, bias)[1:]
    apart, together = (backward(dy, x, weight, *saved, dout, in_place=in_place) for in_place in (False, True))
    np.testing.assert_array_equal(apart[0], together[0])


def test_rows_shared_out_to_fewer_blocks(check, warp_order, draw):
    x, _, dy, _, weight, bias = draw(23, 100)
    y, mean, rstd = forward(x, weight, bias)
    np.testing.assert_array_equal(forward(x, weight, bias, blocks=4)[0], y)
    one_each = backward(dy, x, weight, mean, rstd, blocks=23)
    for blocks in (1, 5):
        received = backward(dy, x, weight, mean, rstd, blocks=blocks)
        np.testing.assert_array_equal(received[0], one_each[0])
        check(received, backward_formula, (dy, x, weight, mean, rstd), factor=3)


def test_arrays_that_do_not_start_at_16_bytes(check, draw):
    def shifted(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array.reshape(-1)[:1], array.reshape(-1)])[1:].reshape(array.shape)

    x, residual, dy, dout, weight, bias = draw(5, 96)
    _, mean, rstd = forward(x, weight, bias)
    for i in range(3):
        arguments = [shifted(a) if i == j else a for j, a in enumerate((x, weight, bias))]
        check(forward(*arguments), forward_formula, (x, weight, bias), factor=2)
        arguments = [shifted(a) if i == j else a for j, a in enumerate((dy, x, weight))]
        check(backward(*arguments, mean, rstd), backward_formula, (dy, x, weight, mean, rstd), factor=3)
    out = forward(x, weight, bias, shifted(residual))[0]
    np.testing.assert_array_equal(out, forward(x, weight, bias, residual)[0])
    received = backward(dy, x, weight, mean, rstd, shifted(dout))
    check(received, residual_backward_formula, (dy, x, weight, mean, rstd, dout), factor=3)


def test_a_mean_far_from_zero_costs_no_digits_of_the_variance(check, rng):
    x = (1000 + rng.standard_normal((8, 300))).astype(np.float32)
    weight, bias = np.ones(300, np.float32), np.zeros(300, np.float32)
    check(forward(x, weight, bias), forward_formula, (x, weight, bias), factor=2)


def test_rows_of_one_number_give_the_bias(draw):
    x, _, _, _, weight, bias = draw(4, 40)
    x[:] = 3
    np.testing.assert_array_equal(forward(x, weight, bias)[0], np.broadcast_to(bias, x.shape))


def test_double_backward_is_the_derivative_of_the_forward(rng):
    x, residual, du, dv = rng.standard_normal((4, 3, 37))
    weight, bias = rng.standard_normal((2, 37))
    moves = [rng.standard_normal(a.shape) for a in (x, weight, bias)]
    h = 6e-6

    def projected(h: float) -> float:
        moved = [a + h * v for a, v in zip((x, weight, bias), moves, strict=True)]
        out, y, _, _ = forward(*moved, residual)
        return (out * du).sum() + (y * dv).sum()

    out, _, mean, rstd = forward(x, weight, bias, residual)
    claimed = sum((g * v).sum() for g, v in zip(backward(dv, out, weight, mean, rstd, du), moves, strict=True))
    assert abs((projected(h) - projected(-h)) / (2 * h) - claimed) < 1e-7


def test_results_repeat_to_the_last_bit_in_every_order(draw):
    x, residual, dy, dout, weight, bias = draw(6, 777)

    def everything() -> list[bytes]:
        out, y, mean, rstd = forward(x, weight, bias, residual, blocks=2)
        gradients = backward(dy, out, weight, mean, rstd, dout, blocks=2)
        return [a.tobytes() for a in (out, y, mean, rstd, *gradients)]

    expected = everything()
    for seed in range(3):
        with cuda.emulation(order="random", seed=seed):
            assert everything() == expected


@pytest.mark.parametrize("shape", [(1,), (2, 3, 17), (300, 64), (5, 1023)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_operation_by_kernel_and_by_formula(agree, rng, shape, with_bias):
    x, weight, bias = (rng.standard_normal(s) for s in (shape, shape[-1:], shape[-1:]))
    if with_bias:
        agree(ops.layer_norm, x, weight, bias, ran="layernorm_backward")
    else:
        agree(lambda x, weight: ops.layer_norm(x, weight, eps=0.1), x, weight, ran="layernorm_backward")


@pytest.mark.parametrize("shape", [(1,), (2, 3, 17), (300, 64), (5, 1023)], ids=str)
@pytest.mark.parametrize("used", ["sum and norm", "sum", "norm"])
def test_the_operation_behind_a_residual_addition(agree, rng, shape, used):
    """A gradient may reach both results or one: the sum alone needs no kernel, the norm alone the plain one."""
    x, residual, weight, bias = (rng.standard_normal(s) for s in (shape, shape, shape[-1:], shape[-1:]))

    def fn(*inputs):
        total, norm = ops.add_layer_norm(*inputs, *[None] * (4 - len(inputs)), 0.1)
        return {"sum and norm": 2 * total + norm, "sum": total, "norm": norm}[used]

    forward, backward = "residual_layernorm_forward", "residual_layernorm_backward"
    ran = {"sum and norm": backward, "sum": forward, "norm": "layernorm_backward"}[used]
    agree(fn, x, residual, weight, bias, ran=ran)
    agree(fn, x, residual, weight, ran=ran)


def test_the_operations_in_every_dtype(check, draw):
    x, residual, dy, dout, weight, bias = draw(9, 100)
    (total, y), saved = add_layernorm.forward(x, residual, weight, bias, eps=EPS)
    check(total, lambda x, residual: x + residual, (x, residual), factor=2)
    check((y, saved.mean, saved.rstd), forward_formula, (total, weight, bias), factor=2)
    dx, dresidual, dweight, dbias = add_layernorm.backward((dout, dy), saved)
    assert dresidual is dx
    arguments = (dy, total, weight, saved.mean, saved.rstd, dout)
    check((dx, dweight, dbias), residual_backward_formula, arguments, factor=3)
    dx, _, dweight, dbias = add_layernorm.backward((dout, None), saved)
    assert dx is dout
    assert dweight.dtype == dbias.dtype == dy.dtype
    assert not dweight.any()
    assert not dbias.any()


def test_many_rows_are_added_up_in_stages(rng):
    x, dy = rng.standard_normal((2, 3000, 8)).astype(np.float32)
    y, saved = layernorm.forward(x, x[0], x[1], eps=EPS)
    np.testing.assert_allclose(y, layernorm_forward(x, x[0], x[1], eps=EPS)[0], atol=1e-5)
    for received, expected in zip(
        layernorm.backward(dy, saved),
        layernorm_backward(dy, layernorm_forward(x, x[0], x[1], eps=EPS)[1]),
        strict=True,
    ):
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-3)


def test_rows_too_long_for_shared_memory_are_left_to_the_formula(rng):
    x = rng.standard_normal((2, 8193)).astype(np.float32)
    assert layernorm.forward(x, x[0], x[1], eps=EPS) is NotImplemented
    with engine("require"), pytest.raises(cuda.KernelError, match="layernorm: no kernel for"):
        ops.layer_norm(*map(Tensor, (x, x[0], x[1])))
    assert layernorm.forward(x[:, :8192].copy(), x[0, :8192], x[1, :8192], eps=EPS) is not NotImplemented
    assert layernorm.forward(x[:, :64].copy(), x[0, :64].astype(float), None, eps=EPS) is NotImplemented
    x = x[:, :64].copy()
    assert add_layernorm.forward(x, x.astype(float), x[0], None, eps=EPS) is NotImplemented
    assert add_layernorm.forward(x, x, x[0], None, eps=EPS) is not NotImplemented


def test_every_case_of_the_gradient_check_by_kernels():
    ran = "layernorm_backward<double>", "residual_layernorm_backward<double>"
    before = cuda.launch_counts()
    with engine("emulate"):
        results = run_cases(["layernorm", "add_layernorm"])
    assert results
    assert [result.report for result in results if result.report] == []
    assert all(cuda.launch_counts()[name] > before[name] for name in ran)


FORWARD, BACKWARD = "residual_layernorm_forward<float>", "residual_layernorm_backward<float>"
FAULTS = {
    "eps forgotten": (FORWARD, "/ columns + eps", "/ columns"),
    "statistics not stored": (FORWARD, "if (threadIdx.x == 0) {", "if (threadIdx.x == blockDim.x) {"),
    "the addition stops a row early": (FORWARD, "store(out + i, v);", "if (i + COUNT < columns) store(out + i, v);"),
    "out before the addition is normalised": (
        FORWARD,
        "_row<T, VECTOR<T>>(out + first, weight",
        "_row<T, VECTOR<T>>(x + first, weight",
    ),
    "sums not cleared": (BACKWARD, "blockDim.x) dweight[slot] = dbias[slot] = 0;", "blockDim.x) dweight[slot] = 0;"),
    "sums cleared for the first rows of columns only": (BACKWARD, "slot < slots; slot", "slot < blockDim.x; slot"),
    "dweight and dbias overlap": (BACKWARD, "dbias = dweight + slots", "dbias = dweight + slots - 1"),
    "slots of a thread taken by its neighbour": (BACKWARD, "sum += dnorm;", "slot ^= 1, sum += dnorm;"),
    "mean(dnorm) forgotten": (BACKWARD, "dnorm - mean_dnorm - norm", "dnorm - norm"),
    "the residual stream's gradient forgotten": (BACKWARD, "dout ? d + A(dout_i[k]) : d", "d"),
    "partial sums of all blocks in one place": (BACKWARD, "blockIdx.x * 2LL", "0 * 2LL"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(mutated, rng, fault):
    instance, old, new = FAULTS[fault]
    faulty = mutated(f"layernorm {fault}", "layernorm.cu", old, new, "layernorm.cu", instance)
    x, residual, dy, dout = (0.01 * rng.standard_normal((4, 7, 400))).astype(np.float32)
    weight, bias = rng.standard_normal((2, 400)).astype(np.float32)
    right = forward(x, weight, bias, residual)
    if instance == FORWARD:
        received = forward(x, weight, bias, residual, kernel=faulty)
    else:
        arguments = (dy, right[0], weight, *right[2:], dout)
        right, received = backward(*arguments), backward(*arguments, kernel=faulty)
    assert not all(np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(right, received, strict=True))
