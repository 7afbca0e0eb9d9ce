"""kernels/softmax.cu, emulated, against the formula in extended precision.

A kernel may be as wrong as NumPy is with the formula in the same dtype, twice over (three times for a backward); for
bfloat16, with the formula in float32 and one rounding. Errors are root mean squares over many rows, as the largest of
a few is luck.
"""

from __future__ import annotations

import numpy as np
import pytest

from minillm import kernels

ROWS = 24
COLUMNS = (1, 17, 64, 509, 1000, 1023, 4099)  # odd, prime, whole and broken 16 bytes, more than one pass of a block
DTYPES = ["float32", "float64", "bfloat16"]


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_backward(dy, y):
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


@pytest.fixture(params=DTYPES)
def dtype(request) -> np.dtype:
    return request.getfixturevalue("bfloat16") if request.param == "bfloat16" else np.dtype(request.param)


@pytest.fixture
def forward(load):
    def run(x: np.ndarray, blocks: int | None = None, y: np.ndarray | None = None) -> np.ndarray:
        y = np.full_like(x, np.nan) if y is None else y
        kernel = load("softmax.cu", f"softmax_forward<{kernels.C_TYPES[x.dtype.name]}>")
        kernel(blocks or len(x), threads(x), (x, y, np.int64(len(x)), np.int32(x.shape[1])))
        return y

    return run


@pytest.fixture
def backward(load):
    def run(dy: np.ndarray, y: np.ndarray, blocks: int | None = None) -> np.ndarray:
        dx = np.full_like(y, np.nan)
        kernel = load("softmax.cu", f"softmax_backward<{kernels.C_TYPES[y.dtype.name]}>")
        kernel(blocks or len(y), threads(y), (dy, y, dx, np.int64(len(y)), np.int32(y.shape[1])))
        return dx

    return run


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


def test_large_inputs_do_not_overflow(forward, rng, dtype):
    for offset in (-1e4, 1e4):
        x = (offset + 100 * rng.standard_normal((ROWS, 200))).astype(dtype)
        y = forward(x)
        assert np.isfinite(y.astype(np.float64)).all()
        check(y, softmax, (x,), factor=2)


def test_the_largest_number_may_be_anywhere(forward):
    x = np.linspace(-50, 50, 1025, dtype=np.float32)  # rising: every number is the largest so far; falling: none
    for row in (x, x[::-1].copy()):
        check(forward(row[None]), softmax, (row[None],), factor=2)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_masked_rows_as_the_formula_has_them(forward, rng, dtype):
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


def test_fewer_blocks_than_rows(forward, backward, warp_order, rng, dtype):
    x, dy = (rng.standard_normal((11, 40)).astype(dtype) for _ in range(2))
    y = forward(x)
    np.testing.assert_array_equal(forward(x, blocks=3), y)
    np.testing.assert_array_equal(backward(dy, y, blocks=4), backward(dy, y))


def test_arrays_that_do_not_start_at_16_bytes(forward, backward, rng, dtype):
    def shifted(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array.reshape(-1)[:1], array.reshape(-1)])[1:].reshape(array.shape)

    x, dy = (rng.standard_normal((ROWS, 64)).astype(dtype) for _ in range(2))
    y = forward(x)
    # Now each thread adds other numbers, one at a time, so that the last bits may differ.
    check(forward(shifted(x)), softmax, (x,), factor=2)
    check(forward(x, y=shifted(np.full_like(x, np.nan))), softmax, (x,), factor=2)
    check(backward(dy, shifted(y)), softmax_backward, (dy, y), factor=3)
    check(backward(shifted(dy), y), softmax_backward, (dy, y), factor=3)


def test_double_backward_is_the_derivative_of_the_forward(forward, backward, rng):
    x, u, v = (rng.standard_normal((2, 37)) for _ in range(3))
    h = 6e-6
    measured = (u * (forward(x + h * v) - forward(x - h * v))).sum() / (2 * h)
    claimed = (backward(u, forward(x)) * v).sum()
    assert abs(measured - claimed) < 1e-9


def test_order_changes_no_bit(forward, rng, dtype):
    x = rng.standard_normal((2, 777)).astype(dtype)
    expected = forward(x)
    for seed in range(4):
        with kernels.emulation(order="random", seed=seed):
            np.testing.assert_array_equal(forward(x), expected)
