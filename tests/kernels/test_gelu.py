"""kernels/gelu.cu, emulated, against the formulas of minillm/ops/gelu.py and bias_gelu.py, in both forms."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import cuda, ops
from minillm.cuda import Kernel, get_kernel
from minillm.cuda import bias_gelu as bias_gelu_cuda
from minillm.cuda import gelu as gelu_cuda
from minillm.engine import engine
from minillm.ops.bias_gelu import bias_gelu_backward, bias_gelu_forward
from minillm.ops.gelu import gelu_backward, gelu_forward
from minillm.study.gradcheck import run_cases

pytestmark = pytest.mark.usefixtures("_compiler")
FORMS = {"none": "GeluErf", "tanh": "GeluTanh"}
COUNTS = [1, 17, 1023, 4096, 4099]
SHAPES = [(1, 1), (17, 3), (100, 31), (40, 256), (23, 509), (9, 1024)]


@pytest.fixture(params=FORMS)
def form(request) -> str:
    return request.param


def forward(x: np.ndarray, form: str, blocks: int = 2, kernel: Kernel | None = None, y=None) -> np.ndarray:
    y = np.full_like(x, np.nan) if y is None else y
    kernel = kernel or get_kernel("gelu.cu", "activation_forward", x.dtype, FORMS[form])
    kernel(blocks, 96, (x, y, np.int64(x.size)))
    return y


def backward(dy: np.ndarray, x: np.ndarray, form: str, blocks: int = 2, kernel: Kernel | None = None) -> np.ndarray:
    dx = np.full_like(x, np.nan)
    kernel = kernel or get_kernel("gelu.cu", "activation_backward", x.dtype, FORMS[form])
    kernel(blocks, 96, (dy, x, dx, np.int64(x.size)))
    return dx


def grid(x: np.ndarray, chunk_rows: int) -> tuple[int, int]:
    return -(-x.shape[1] // (32 * (16 // x.itemsize))), -(-len(x) // chunk_rows)


def bias_forward(x, bias, form, chunk_rows=16, kernel: Kernel | None = None) -> np.ndarray:
    y = np.full_like(x, np.nan)
    kernel = kernel or get_kernel("gelu.cu", "bias_activation_forward", x.dtype, FORMS[form])
    sizes = (np.int64(len(x)), np.int32(chunk_rows), np.int32(x.shape[1]))
    kernel(grid(x, chunk_rows), (32, 4), (x, bias, y, *sizes))
    return y


def bias_backward(dy, x, bias, form, chunk_rows=16, kernel: Kernel | None = None) -> tuple[np.ndarray, np.ndarray]:
    """dx and dbias."""
    (rows, columns), shape = x.shape, grid(x, chunk_rows)
    dx, dbias = np.full_like(x, np.nan), np.full_like(bias, np.nan)
    partial = np.full((shape[1], columns), np.nan, np.float64 if x.dtype == np.float64 else np.float32)
    kernel = kernel or get_kernel("gelu.cu", "bias_activation_backward", x.dtype, FORMS[form])
    kernel(shape, (32, 4), (dy, x, bias, dx, partial, np.int64(rows), np.int32(chunk_rows), np.int32(columns)))
    add_up = get_kernel("column_sums.cu", "column_sums", partial.dtype, x.dtype)
    chunks = len(partial)
    add_up(-(-columns // 64), (32, 8), (partial, dbias, np.int64(chunks), np.int32(chunks), np.int32(columns)))
    return dx, dbias


def forward_formula(form):
    return lambda x: gelu_forward(x, approximate=form)[0]


def backward_formula(form):
    return lambda dy, x: gelu_backward(dy, gelu_forward(x, approximate=form)[1])[0]


def bias_forward_formula(form):
    return lambda x, bias: bias_gelu_forward(x, bias, approximate=form)[0]


def bias_backward_formula(form):
    return lambda dy, x, bias: bias_gelu_backward(dy, bias_gelu_forward(x, bias, approximate=form)[1])


@pytest.mark.parametrize("count", COUNTS)
def test_forward(check, warp_order, rng, dtype, form, count):
    x = (3 * rng.standard_normal(count)).astype(dtype)
    check(forward(x, form), forward_formula(form), (x,), factor=2)


@pytest.mark.parametrize("count", COUNTS)
def test_backward(check, warp_order, rng, dtype, form, count):
    x, dy = (3 * rng.standard_normal((2, count))).astype(dtype)
    check(backward(dy, x, form), backward_formula(form), (dy, x), factor=3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_with_a_bias(check, warp_order, rng, dtype, form, shape):
    x, dy = (2 * rng.standard_normal((2, *shape))).astype(dtype)
    bias = rng.standard_normal(shape[1]).astype(dtype)
    check(bias_forward(x, bias, form), bias_forward_formula(form), (x, bias), factor=2)
    check(bias_backward(dy, x, bias, form), bias_backward_formula(form), (dy, x, bias), factor=3)


def test_large_inputs(dtype, form):
    x = np.array([-1e4, -300, -100, -40, -0.0, 0, 40, 100, 300, 1e4]).astype(dtype)
    y, dx = forward(x, form), backward(np.ones_like(x), x, form)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(y.astype(np.float64), np.maximum(wide, 0), rtol=0, atol=1e-30)
    np.testing.assert_allclose(dx.astype(np.float64), np.where(x == 0, 0.5, x > 0), rtol=0, atol=1e-30)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_nan_stays_nan(dtype, form):
    x = np.ones(40, dtype)
    x[[3, 39]] = np.nan
    for received in (forward(x, form), backward(np.ones_like(x), x, form), backward(x, np.ones_like(x), form)):
        np.testing.assert_array_equal(np.isnan(received), np.isnan(x))


def test_the_tanh_form_keeps_its_digits_far_below_zero(form):
    if form != "tanh":
        pytest.skip("the erf form cancels, as its formula does")
    x = np.linspace(-6, -2, 200, dtype=np.float32)
    expected = gelu_forward(x.astype(np.longdouble), approximate="tanh")[0]
    error = np.abs(forward(x, form) / expected - 1).max()
    by_formula = np.abs(gelu_forward(x, approximate="tanh")[0] / expected - 1).max()
    assert error < 3e-6 < 0.1 < by_formula


def test_arrays_that_do_not_start_at_16_bytes(check, rng, dtype, form):
    def shifted(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array.reshape(-1)[:1], array.reshape(-1)])[1:].reshape(array.shape)

    x, dy = rng.standard_normal((2, 20, 64)).astype(dtype)
    bias = rng.standard_normal(64).astype(dtype)
    y, dx = forward(x, form), backward(dy, x, form)
    np.testing.assert_array_equal(forward(shifted(x), form), y)
    np.testing.assert_array_equal(forward(x, form, y=shifted(np.full_like(x, np.nan))), y)
    np.testing.assert_array_equal(backward(shifted(dy), x, form), dx)
    np.testing.assert_array_equal(backward(dy, shifted(x), form), dx)
    np.testing.assert_array_equal(bias_forward(x, shifted(bias), form), bias_forward(x, bias, form))
    np.testing.assert_array_equal(bias_forward(shifted(x), bias, form), bias_forward(x, bias, form))
    for i in range(3):
        arguments = [shifted(a) if i == j else a for j, a in enumerate((dy, x, bias))]
        check(bias_backward(*arguments, form), bias_backward_formula(form), (dy, x, bias), factor=3)


def test_double_backward_is_the_derivative_of_the_forward(rng, form):
    x, u, v = rng.standard_normal((3, 7, 40))
    bias, w = rng.standard_normal((2, 40))
    h = 6e-6
    measured = (u * (bias_forward(x + h * v, bias + h * w, form) - bias_forward(x - h * v, bias - h * w, form))).sum()
    dx, dbias = bias_backward(u, x, bias, form)
    assert abs(measured / (2 * h) - (dx * v).sum() - (dbias * w).sum()) < 1e-8


def test_the_bias_gradient_repeats_to_the_last_bit_in_every_order(rng, dtype, form):
    x, dy = rng.standard_normal((2, 50, 70)).astype(dtype)
    expected = [a.tobytes() for a in bias_backward(dy, x, x[0].copy(), form)]
    for seed in range(3):
        with cuda.emulation(order="random", seed=seed):
            assert [a.tobytes() for a in bias_backward(dy, x, x[0].copy(), form)] == expected


@pytest.mark.parametrize("shape", [(), (1,), (5, 17), (40, 1023)], ids=str)
def test_the_operation_by_kernel_and_by_formula(agree, rng, form, shape):
    agree(lambda x: ops.gelu(x, form), 2 * rng.standard_normal(shape), ran="activation_backward")


@pytest.mark.parametrize("shape", [(1,), (5, 17), (2, 3, 5), (300, 64), (40, 1023)], ids=str)
def test_the_operation_with_a_bias(agree, rng, form, shape):
    """Also where a grid of chunks has several stages of sums over them."""
    x, bias = 2 * rng.standard_normal(shape), rng.standard_normal(shape[-1])
    agree(lambda x, bias: ops.bias_gelu(x, bias, form), x, bias, ran="bias_activation_backward")


def test_the_operation_in_every_dtype(check, rng, dtype, form):
    x, dy = rng.standard_normal((2, 70, 33)).astype(dtype)
    bias = rng.standard_normal(33).astype(dtype)
    y, saved = gelu_cuda.forward(x, approximate=form)
    check(y, forward_formula(form), (x,), factor=2)
    check(gelu_cuda.backward(dy, saved)[0], backward_formula(form), (dy, x), factor=3)
    y, saved = bias_gelu_cuda.forward(x, bias, approximate=form)
    check(y, bias_forward_formula(form), (x, bias), factor=2)
    check(bias_gelu_cuda.backward(dy, saved), bias_backward_formula(form), (dy, x, bias), factor=3)


def test_a_bias_of_another_dtype_is_left_to_the_formula(rng):
    x = rng.standard_normal((2, 8)).astype(np.float32)
    assert bias_gelu_cuda.forward(x, x[0].astype(np.float64), approximate="tanh") is NotImplemented
    assert bias_gelu_cuda.forward(x[:0], x[0], approximate="tanh") is NotImplemented
    assert bias_gelu_cuda.forward(x, x[0], approximate="tanh") is not NotImplemented


def test_every_case_of_the_gradient_check_by_kernels():
    ran = "activation_backward<double, GeluTanh>", "bias_activation_backward<double, GeluTanh>"
    before = cuda.launch_counts()
    with engine("emulate"):
        results = run_cases(["gelu", "bias_gelu"])
    assert results
    assert [result.report for result in results if result.report] == []
    assert all(cuda.launch_counts()[name] > before[name] for name in ran)


PLAIN = "activation_forward<float, GeluTanh>", "activation_backward<float, GeluTanh>"
FUSED = "bias_activation_forward<float, GeluTanh>", "bias_activation_backward<float, GeluTanh>"
FAULTS = {
    "the last numbers forgotten": (
        "activation.cuh",
        "forward_from<1, F>(x, y, in_vectors, count)",
        "forward_from<1, F>(x, y, 0, 0)",
        PLAIN,
    ),
    "a number between vectors and the rest forgotten": (
        "activation.cuh",
        "forward_from<1, F>(x, y, in_vectors,",
        "forward_from<1, F>(x, y, in_vectors + 1,",
        PLAIN,
    ),
    "the bias of a neighbour": ("activation.cuh", "+ A(b[k])))", "+ A(b[(k + 1) % COUNT])))", FUSED),
    "columns beyond a warp of vectors": (
        "activation.cuh",
        "first < columns; first += gridDim.x * WARP_SIZE * COUNT",
        "first < columns; first += columns",
        FUSED,
    ),
    "the sum of dy for that of dx": ("activation.cuh", "dbias[k] += d;", "dbias[k] += A(dy_i[k]);", FUSED),
    "e for 1 - s": ("gelu.cu", "? e * s :", "? e :", PLAIN),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(mutated, rng, fault):
    file, old, new, names = FAULTS[fault]
    columns = 300 if "bias" in fault else 301  # with and without vectors
    x, dy = rng.standard_normal((2, 9, columns)).astype(np.float32)
    bias = rng.standard_normal(columns).astype(np.float32)
    there, back = (mutated(f"gelu {fault}", file, old, new, "gelu.cu", name) for name in names)
    if names == PLAIN:
        right = forward(x, "tanh"), backward(dy, x, "tanh")
        received = forward(x, "tanh", kernel=there), backward(dy, x, "tanh", kernel=back)
    else:
        right = bias_forward(x, bias, "tanh", 4), *bias_backward(dy, x, bias, "tanh", 4)
        received = bias_forward(x, bias, "tanh", 4, there), *bias_backward(dy, x, bias, "tanh", 4, back)
    assert not all(np.allclose(a, b, atol=1e-4) for a, b in zip(right, received, strict=True))


def test_threads_without_a_column_must_reach_the_barrier(mutated):
    old = "A dbias[COUNT] = {};"
    early = mutated("gelu early", "activation.cuh", old, old + " if (column >= columns) return;", "gelu.cu", FUSED[1])
    x = np.ones((9, 300), np.float32)
    with pytest.raises(cuda.KernelError, match="has returned; every thread of a block must reach the same barrier"):
        bias_backward(x, x, x[0].copy(), "tanh", kernel=early)
