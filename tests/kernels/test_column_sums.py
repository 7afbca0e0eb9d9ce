"""kernels/column_sums.cu, emulated: sums over rows in one stage and in two."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import cuda
from minillm.cuda import Kernel, get_kernel
from minillm.cuda.emulate import ORDERS

pytestmark = pytest.mark.usefixtures("_compiler")
SHAPES = [(1, 1), (17, 1), (1, 17), (100, 31), (1023, 3), (64, 509), (37, 1024)]


def launch(x: np.ndarray, to: np.dtype, chunk_rows: int, kernel: Kernel | None = None, blocks: int = 0) -> np.ndarray:
    """Sums of each `chunk_rows` rows."""
    rows, columns = x.shape
    out = np.full((-(-rows // chunk_rows), columns), np.nan, to)
    grid = (blocks or -(-columns // (32 * (16 // x.itemsize))), len(out))
    kernel = kernel or get_kernel("column_sums.cu", "column_sums", x.dtype, out.dtype)
    kernel(grid, (32, 8), (x, out, np.int64(rows), np.int32(chunk_rows), np.int32(columns)))
    return out


def two_stages(x: np.ndarray, chunk_rows: int, to: np.dtype) -> np.ndarray:
    partial = launch(x, np.dtype(np.float64 if x.dtype == np.float64 else np.float32), chunk_rows)
    return launch(partial, to, len(partial))[0]


def formula(x):
    return x.sum(axis=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("chunk_rows", [7, 32, 5000])
def test_two_stages(check, warp_order, rng, dtype, shape, chunk_rows):
    x = (1 + rng.standard_normal(shape)).astype(dtype)
    check(two_stages(x, chunk_rows, dtype), formula, (x,), factor=2)


def test_fewer_blocks_than_columns_and_arrays_that_do_not_start_at_16_bytes(rng):
    x = rng.standard_normal((40, 640)).astype(np.float32)
    shifted = np.concatenate([x.reshape(-1)[:1], x.reshape(-1)])[1:].reshape(x.shape)
    expected = launch(x, x.dtype, 10)
    np.testing.assert_allclose(expected, x.reshape(4, 10, 640).sum(axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(launch(x, x.dtype, 10, blocks=2), expected)
    np.testing.assert_array_equal(launch(shifted, x.dtype, 10), expected)


def test_a_stage_repeats_to_the_last_bit_in_every_order(rng, dtype):
    x = rng.standard_normal((333, 77)).astype(dtype)
    expected = two_stages(x, 50, dtype)
    assert np.count_nonzero(expected) > 70  # of 77
    for seed in range(4):
        with cuda.emulation(order="random", seed=seed):
            np.testing.assert_array_equal(two_stages(x, 50, dtype), expected)


FAULTS = {
    "barrier dropped before the sums are read": ("rows.cuh", "values[k];\n    __syncthreads();", "values[k];"),
    "barrier dropped behind them": ("rows.cuh", "__syncthreads();  // all", "// all"),
    "the first row counted twice": ("rows.cuh", "int y = 1;", "int y = 0;"),
    "the last row forgotten": ("rows.cuh", "y < blockDim.y", "y + 1 < blockDim.y"),
    "chunks that overlap": ("rows.cuh", "min(first + chunk_rows, rows)", "min(first + chunk_rows + 1, rows)"),
    "rows beyond the last": ("rows.cuh", "min(first + chunk_rows, rows)", "first + chunk_rows"),
    "threads without a column leave early": (
        "column_sums.cu",
        "if (column < columns) {\n",
        "if (column >= columns) return;\n {\n",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(mutated, rng, fault):
    faulty = mutated(f"column sums {fault}", *FAULTS[fault], "column_sums.cu", "column_sums<float, float>")
    padded = rng.standard_normal((40, 200)).astype(np.float32)
    x = padded[:30]  # what lies behind it can be read, and must not be
    wrong = 0
    for order in ORDERS:
        with cuda.emulation(order=order), np.errstate(all="ignore"):
            try:
                sums = launch(x, x.dtype, 8, faulty, blocks=1)
                wrong += not np.allclose(sums, [x[i : i + 8].sum(axis=0) for i in range(0, 30, 8)], atol=1e-4)
            except cuda.KernelError:
                wrong += 1
    assert wrong
