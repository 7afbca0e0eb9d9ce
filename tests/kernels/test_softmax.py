"""kernels/softmax.cu, emulated, against the formula in extended precision.

A kernel may be as wrong as NumPy is with the formula in the same dtype, twice over (three times for a backward); for
bfloat16, with the formula in float32 and one rounding. Errors are root mean squares over many rows, as the largest of
a few is luck.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from minillm import cuda, ops
from minillm.cuda.source import C_TYPES
from minillm.engine import engine
from minillm.testing import check_gradients

ROWS = 24
COLUMNS = (1, 17, 64, 509, 1000, 1023, 4099)  # odd, prime, whole and broken 16 bytes, more than one pass of a block
DTYPES = ["float32", "float64", "bfloat16"]


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_backward(dy, y):
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


def log_softmax(x):
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_softmax_backward(dlog_p, log_p):
    return dlog_p - np.exp(log_p) * dlog_p.sum(axis=-1, keepdims=True)


@pytest.fixture(params=DTYPES)
def dtype(request) -> np.dtype:
    return request.getfixturevalue("bfloat16") if request.param == "bfloat16" else np.dtype(request.param)


@pytest.fixture
def run(load):
    """Launch one of the four kernels on its inputs; returns what it has written."""

    def launch(name: str, *inputs: np.ndarray, blocks: int | None = None, out: np.ndarray | None = None) -> np.ndarray:
        x = inputs[0]
        out = np.full_like(x, np.nan) if out is None else out
        kernel = load("softmax.cu", f"{name}<{C_TYPES[x.dtype.name]}>")
        kernel(blocks or len(x), threads(x), (*inputs, out, np.int64(len(x)), np.int32(x.shape[1])))
        return out

    return launch


@pytest.fixture
def forward(run):
    return partial(run, "softmax_forward")


@pytest.fixture
def backward(run):
    return partial(run, "softmax_backward")


@pytest.fixture
def log_forward(run):
    return partial(run, "log_softmax_forward")


@pytest.fixture
def log_backward(run):
    return partial(run, "log_softmax_backward")


def threads(x: np.ndarray) -> int:
    """As softmax.cu recommends."""
    wanted = -(-x.shape[1] // (16 // x.itemsize))
    return min(512, -(-wanted // 32) * 32)


def rms(x) -> float:
    return float(np.sqrt(np.square(x).mean()))


def check(received, formula, arguments, factor, relative=False) -> None:
    expected = formula(*(a.astype(np.longdouble) for a in arguments))
    wide = np.float32 if received.dtype.name == "bfloat16" else received.dtype
    by_numpy = formula(*(a.astype(wide) for a in arguments)).astype(received.dtype)
    scale = expected if relative else np.abs(expected).max() or 1
    error, allowed = (rms((y.astype(np.longdouble) - expected) / scale) for y in (received, by_numpy))
    rounding = {"float32": 2**-24, "float64": 2**-53, "bfloat16": 2**-8}[received.dtype.name] / 4
    assert error <= factor * max(allowed, rounding), (
        f"error {error:.2e}, NumPy {allowed:.2e}, a rounding {rounding:.2e}"
    )


@pytest.mark.parametrize("columns", COLUMNS)
def test_forward(forward, warp_order, rng, dtype, columns):
    x = (3 * rng.standard_normal((ROWS, columns))).astype(dtype)
    y = forward(x)
    check(y, softmax, (x,), factor=2)
    check(y, softmax, (x,), factor=2, relative=True)


@pytest.mark.parametrize("columns", COLUMNS)
def test_backward(backward, warp_order, rng, dtype, columns):
    y = softmax(3 * rng.standard_normal((ROWS, columns))).astype(dtype)
    dy = rng.standard_normal((ROWS, columns)).astype(dtype)
    check(backward(dy, y), softmax_backward, (dy, y), factor=3)


@pytest.mark.parametrize("columns", COLUMNS)
def test_log_forward(log_forward, warp_order, rng, dtype, columns):
    x = (3 * rng.standard_normal((ROWS, columns))).astype(dtype)
    check(log_forward(x), log_softmax, (x,), factor=2)


@pytest.mark.parametrize("columns", COLUMNS)
def test_log_backward(log_backward, warp_order, rng, dtype, columns):
    log_p = log_softmax(3 * rng.standard_normal((ROWS, columns))).astype(dtype)
    dlog_p = rng.standard_normal((ROWS, columns)).astype(dtype)
    check(log_backward(dlog_p, log_p), log_softmax_backward, (dlog_p, log_p), factor=3)


def test_the_logarithm_of_what_softmax_has_lost(log_forward, dtype):
    np.testing.assert_array_equal(log_forward(np.array([[0, 1024, 0, -3072]], dtype)), [[-1024, 0, -1024, -4096]])


def test_large_inputs_do_not_overflow(forward, log_forward, rng, dtype):
    for offset in (-1e4, 1e4):
        x = (offset + 100 * rng.standard_normal((ROWS, 200))).astype(dtype)
        y = forward(x)
        assert np.isfinite(y.astype(np.float64)).all()
        check(y, softmax, (x,), factor=2)
        check(log_forward(x), log_softmax, (x,), factor=2)


def test_the_largest_number_may_be_anywhere(forward, log_forward):
    x = np.linspace(-50, 50, 1025, dtype=np.float32)  # rising: every number is the largest so far; falling: none
    for row in (x, x[::-1].copy()):
        check(forward(row[None]), softmax, (row[None],), factor=2)
        check(log_forward(row[None]), log_softmax, (row[None],), factor=2)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_masked_rows_as_the_formula_has_them(forward, log_forward, log_backward, rng, dtype):
    x = rng.standard_normal((5, 96)).astype(dtype)
    x[0, :64] = x[1, 1:] = -np.inf
    x[2, 7] = np.nan
    x[3, 9] = np.inf
    x[4] = -np.inf
    y, expected = forward(x), softmax(x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    assert (y[0, :64] == 0).all()
    assert y[1, 0] == 1
    assert np.isfinite(y[0].astype(float)).all()
    assert np.isnan(y[2:].astype(float)).all()
    log_p, expected = log_forward(x), log_softmax(x.astype(np.float64))
    np.testing.assert_allclose(log_p.astype(np.float64), expected, rtol=1e-2 if dtype.itemsize == 2 else 1e-5)
    assert log_p[1, 0] == 0
    assert (log_p[0, :64] == -np.inf).all()
    assert (log_p[1, 1:] == -np.inf).all()
    dlog_p = rng.standard_normal((2, 96)).astype(dtype)
    dx = log_backward(dlog_p, log_p[:2].copy())
    np.testing.assert_array_equal(dx[0, :64], dlog_p[0, :64])  # p is 0 there
    np.testing.assert_array_equal(dx[1, 1:], dlog_p[1, 1:])


def test_fewer_blocks_than_rows(run, warp_order, rng, dtype):
    x, dy = (rng.standard_normal((11, 40)).astype(dtype) for _ in range(2))
    for name in ("softmax", "log_softmax"):
        y = run(f"{name}_forward", x)
        np.testing.assert_array_equal(run(f"{name}_forward", x, blocks=3), y)
        np.testing.assert_array_equal(run(f"{name}_backward", dy, y, blocks=4), run(f"{name}_backward", dy, y))


@pytest.mark.parametrize(
    ("name", "formula", "its_backward"),
    [("softmax", softmax, softmax_backward), ("log_softmax", log_softmax, log_softmax_backward)],
    ids=["softmax", "log_softmax"],
)
def test_arrays_that_do_not_start_at_16_bytes(run, rng, dtype, name, formula, its_backward):
    def shifted(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array.reshape(-1)[:1], array.reshape(-1)])[1:].reshape(array.shape)

    x, dy = (rng.standard_normal((ROWS, 64)).astype(dtype) for _ in range(2))
    nowhere = shifted(np.full_like(x, np.nan))
    there, back = f"{name}_forward", f"{name}_backward"
    y = run(there, x)
    # Now each thread adds other numbers, one at a time, so that the last bits may differ.
    check(run(there, shifted(x)), formula, (x,), factor=2)
    check(run(there, x, out=nowhere), formula, (x,), factor=2)
    check(run(back, dy, shifted(y)), its_backward, (dy, y), factor=3)
    check(run(back, shifted(dy), y), its_backward, (dy, y), factor=3)
    check(run(back, dy, y, out=nowhere), its_backward, (dy, y), factor=3)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_double_backward_is_the_derivative_of_the_forward(run, rng, name):
    x, u, v = (rng.standard_normal((2, 37)) for _ in range(3))
    h = 6e-6
    measured = (u * (run(f"{name}_forward", x + h * v) - run(f"{name}_forward", x - h * v))).sum() / (2 * h)
    claimed = (run(f"{name}_backward", u, run(f"{name}_forward", x)) * v).sum()
    assert abs(measured - claimed) < 1e-9


def test_order_changes_no_bit(forward, log_forward, log_backward, rng, dtype):
    x = rng.standard_normal((2, 777)).astype(dtype)
    expected = forward(x), log_forward(x), log_backward(x, x)
    for seed in range(4):
        with cuda.emulation(order="random", seed=seed):
            np.testing.assert_array_equal((forward(x), log_forward(x), log_backward(x, x)), expected)


@pytest.mark.parametrize("axis", [0, 1, -2, -1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_the_operations_by_kernel_and_by_formula(agree, rng, name, axis):
    operation = partial(getattr(ops, name), axis=axis)
    x = rng.standard_normal((5, 3, 4, 17))
    agree(operation, x, ran=f"{name}_forward")
    agree(operation, x.swapaxes(1, 3), ran=f"{name}_backward")


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.usefixtures("_compiler")
def test_the_gradients_of_the_kernels(rng, name, axis):
    """In double, and the run in float32 that belongs to every check."""
    before = cuda.launch_counts()
    with engine("require"):
        check_gradients(partial(getattr(ops, name), axis=axis), rng.standard_normal((3, 4, 17)))
    ran = cuda.launch_counts() - before
    assert set(ran) == {f"{name}_{way}<{real}>" for way in ("forward", "backward") for real in ("double", "float")}


FAULTS = {
    "the logarithm forgotten": ("forward", "log(row.sum)", "row.sum"),
    "the largest not taken off": ("forward", "A(v[k]) - row.largest - log_sum", "A(v[k]) - log_sum"),
    "the largest of one thread": ("forward", "return {row_largest,", "return {largest,"),
    "a sum not scaled when a larger comes": ("forward", "sum *= exp(before - largest);", ""),
    "a sum not scaled to the row's largest": ("forward", "sum * exp(largest - row_largest)", "A(sum)"),
    "a sum of each thread alone": ("backward", "const A sum = block_sum(A(of_thread));", "const A sum = of_thread;"),
    "a logarithm taken for p": ("backward", "exp(A(log_p_i[k])) * sum", "A(log_p_i[k]) * sum"),
    "a sign": ("backward", "A(v[k]) - exp(", "A(v[k]) + exp("),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(mutated, rng, fault):
    direction, old, new = FAULTS[fault]
    faulty = mutated(f"softmax {fault}", "softmax.cu", old, new, "softmax.cu", f"log_softmax_{direction}<float>")
    x, dlog_p = rng.standard_normal((2, 4, 203)).astype(np.float32) + 3
    log_p = log_softmax(x)
    inputs, right = (x,), log_p
    if direction == "backward":
        inputs, right = (dlog_p, log_p), log_softmax_backward(dlog_p, log_p)
    received = np.full_like(x, np.nan)
    faulty(4, 64, (*inputs, received, np.int64(4), np.int32(203)))
    assert np.isfinite(received).all()
    assert not np.allclose(received, right, atol=1e-3)
