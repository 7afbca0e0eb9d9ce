"""kernels/levels/, emulated: every level computes the same, against float64, at sizes that fit no tile.

A level may be as wrong as NumPy with the formula in float32, twice over; for the product, with one multiply-add after
another, and for bfloat16 with one rounding at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minillm import cuda
from minillm.cuda import Kernel, KernelError
from minillm.cuda.source import FOLDER, kernel_files

pytestmark = pytest.mark.usefixtures("_compiler")
SOFTMAX = ("softmax_1_naive", "softmax_2_coalesced", "softmax_3_online", "softmax_4_registers")
MATMUL = (
    *("matmul_1_naive", "matmul_2_coalesced", "matmul_3_shared_tiles", "matmul_4_register_tiles"),
    *("matmul_5_vectorised", "matmul_6_tensor_cores"),
)
# The block, which for these is also the tile of C; for the others 256 threads with 128 x 128.
BLOCK = {"matmul_1_naive": (32, 8), "matmul_2_coalesced": (32, 8), "matmul_3_shared_tiles": (32, 32)}


def test_the_levels_are_those_in_the_folder():
    files = {file for file in kernel_files() if file.startswith(("levels/softmax", "levels/matmul"))}
    assert files == {f"levels/{name}.cu" for name in SOFTMAX + MATMUL}
    for file in files:
        assert len((FOLDER / file).read_text().splitlines()) < 160


def rms(x) -> float:
    return float(np.sqrt(np.square(x.astype(np.longdouble)).mean()))


def assert_close(received, expected, by_numpy) -> None:
    rounding = (2**-9 if received.dtype.itemsize == 2 else 2**-24) / 2 * rms(expected)
    assert rms(received - expected) <= 2 * max(rms(by_numpy - expected), rounding)


# ---- softmax ---------------------------------------------------------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_one_by_one(x: np.ndarray) -> np.ndarray:
    """With the sum made as level 1 makes it, and not as NumPy does, in pairs."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / np.cumsum(e, axis=-1)[:, -1:]


def run_softmax(name: str, x: np.ndarray, threads: int = 128, kernel: Kernel | None = None) -> np.ndarray:
    rows, columns = x.shape
    instance, sizes = (name, (rows, columns)) if name != SOFTMAX[3] else (f"{name}<{columns}>", (rows,))
    rows_of_block = threads if name == SOFTMAX[0] else threads // 32
    y = np.full_like(x, np.nan)
    kernel = kernel or Kernel(f"levels/{name}.cu", instance)
    kernel(-(-rows // rows_of_block), threads, (x, y, *map(np.int32, sizes)))
    return y


COLUMNS = [(name, columns) for name in SOFTMAX[:3] for columns in (1, 17, 31, 128, 509, 1023, 1024)]
COLUMNS += [(SOFTMAX[3], columns) for columns in (128, 1024, 2048)]  # its instances


@pytest.mark.parametrize(("name", "columns"), COLUMNS)
def test_softmax(warp_order, rng, name, columns):
    x = (3 * rng.standard_normal((13, columns))).astype(np.float32)
    x[1] += 1e4
    x[2] = np.linspace(-50, 50, columns)
    for y in (run_softmax(name, x), run_softmax(name, x, threads=32)):
        by_numpy = softmax_one_by_one(x) if name == SOFTMAX[0] else softmax(x)
        assert_close(y, softmax(x.astype(np.longdouble)), by_numpy)


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_of_masked_rows(rng, name):
    x = rng.standard_normal((3, 128)).astype(np.float32)
    x[0, :100] = x[1, 1:] = -np.inf
    x[2, 5] = np.nan
    y = run_softmax(name, x)
    assert (y[0, :100] == 0).all()
    assert y[1, 0] == 1
    assert np.isnan(y[2]).all()
    assert_close(y[:2], softmax(x[:2].astype(np.longdouble)), softmax(x[:2]))


# ---- matrix product --------------------------------------------------------------------------------------------------


def one_by_one(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A B in the dtype of A, one multiply-add after another."""
    c = np.zeros((len(a), b.shape[1]), a.dtype)
    for k in range(a.shape[1]):
        c += a[:, k, None] * b[k]
    return c


def run_matmul(name: str, a: np.ndarray, b: np.ndarray, kernel: Kernel | None = None) -> np.ndarray:
    (M, K), N = a.shape, b.shape[1]
    c = np.full((M, N), np.nan, a.dtype)
    x, y = BLOCK.get(name, (128, 128))
    across, down = (M, N) if name == MATMUL[0] else (N, M)
    kernel = kernel or Kernel(f"levels/{name}.cu", name)
    kernel((-(-across // x), -(-down // y)), BLOCK.get(name, 256), (a, b, c, *map(np.int32, (M, N, K))))
    return c


def draw(rng: np.random.Generator, name: str, M: int, N: int, K: int, bfloat16: np.dtype) -> list[np.ndarray]:
    """A and B, with N and K rounded up to what the level asks for."""
    piece = {MATMUL[4]: 4, MATMUL[5]: 8}.get(name, 1)
    N, K = -(-N // piece) * piece, -(-K // piece) * piece
    dtype = bfloat16 if name == MATMUL[5] else np.float32
    return [rng.standard_normal(shape).astype(dtype) for shape in ((M, K), (K, N))]


@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 23, 31), (128, 128, 64), (129, 257, 37), (3, 200, 515)], ids=str)
@pytest.mark.parametrize("name", MATMUL)
def test_matmul(warp_order, rng, bfloat16, name, shape):
    a, b = draw(rng, name, *shape, bfloat16)
    by_numpy = one_by_one(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype)
    for copies in ("eager", "deferred") if name == MATMUL[5] else ("eager",):
        with cuda.emulation(order=warp_order, seed=1, copies=copies):
            c = run_matmul(name, a, b)
        assert_close(c, a.astype(np.longdouble) @ b.astype(np.longdouble), by_numpy)


def test_tensor_cores_round_once(rng, bfloat16):
    a, b = (rng.standard_normal((128, 128)).astype(bfloat16) for _ in range(2))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    c = run_matmul(MATMUL[5], a, b)
    assert (c == exact.astype(np.float32).astype(bfloat16)).mean() > 0.999  # all but ties and near ties


@pytest.mark.parametrize("name", MATMUL)
def test_what_lies_outside_the_matrices_is_not_used(rng, bfloat16, name):
    """NaN behind the ends of A and B, in memory, must not find its way into C."""
    a, b = draw(rng, name, 33, 40, 24, bfloat16)

    def before_nan(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x.reshape(-1), np.full(4096, np.nan, x.dtype)])[: x.size].reshape(x.shape)

    np.testing.assert_array_equal(run_matmul(name, before_nan(a), before_nan(b)), run_matmul(name, a, b))


# ---- planted faults --------------------------------------------------------------------------------------------------

BARRIER = "__syncthreads();"
FAULTS = {
    "the last row forgotten": (SOFTMAX[0], "row >= rows", "row >= rows - 1"),
    "maximum of a lane": (SOFTMAX[1], "largest = warp_max(largest);", ""),
    "sum not scaled": (SOFTMAX[2], "all.sum * exp(all.largest - x[i]) + 1", "all.sum + 1"),
    "lanes put together without scaling": (SOFTMAX[2], "a.sum * exp(a.largest - largest)", "a.sum"),
    "half of the butterfly": (SOFTMAX[2], "distance > 0; distance /= 2", "distance > 1; distance /= 2"),
    "pieces of one lane": (SOFTMAX[3], "load<4>(x + (i * WARP_SIZE + lane) * 4)", "load<4>(x + i * WARP_SIZE * 4)"),
    "first barrier of level 3": (MATMUL[2], f"{BARRIER}  // the tiles are there", ""),
    "second barrier of level 3": (MATMUL[2], f"{BARRIER}  // all have used them", ""),
    "first barrier of level 4": (MATMUL[3], f"{BARRIER}  // the tiles are there", ""),
    "second barrier of level 4": (MATMUL[3], f"{BARRIER}  // all have used them", ""),
    "last column forgotten": (MATMUL[3], "column < N) c[", "column < N - 1) c["),
    "steps end before K does": (MATMUL[3], "first < K; first += DEPTH", "first + DEPTH <= K; first += DEPTH"),
    "first barrier of level 5": (MATMUL[4], f"{BARRIER}  // the tiles are there", ""),
    "second barrier of level 5": (MATMUL[4], f"{BARRIER}  // all have used them", ""),
    "A not transposed": (MATMUL[4], "a_tile[a_k + i][a_row] =", "a_tile[a_row % 8][a_k + i] ="),
    "halves exchanged on the way out": (MATMUL[4], "j / 4 * HALF + 4 * x;", "(1 - j / 4) * HALF + 4 * x;"),
    "first barrier of level 6": (MATMUL[5], f"{BARRIER}  // all threads' copies", "//"),
    "second barrier of level 6": (MATMUL[5], f"{BARRIER}  // all have used them", "//"),
    "wait that leaves two groups": (MATMUL[5], "cp_async_wait<1>", "cp_async_wait<2>"),
    "one pair of tiles": (MATMUL[5], "copy_tile<DEPTH, TILE>(b_tiles[step % 2]", "copy_tile<DEPTH, TILE>(b_tiles[0]"),
    "chunks exchanged on one side": (MATMUL[5], "chunk_at<COLUMNS>(tile, row, chunk), from", "tile + i * 8, from"),
    "zeros not filled in": (MATMUL[5], "from, valid);", "from, true);"),
    "columns of the neighbour": (MATMUL[5], "columns[j / 2][j % 2 * 2 + 1]}", "columns[j / 2][1]}"),
}


@pytest.fixture
def load_level(request, fault) -> Callable[[str], Kernel]:
    """A level with the fault in its text; in a file that lies where it lay the last time, to be compiled once."""

    def load(name: str) -> Kernel:
        text = (FOLDER / f"levels/{name}.cu").read_text()
        if fault:
            _, old, new = FAULTS[fault]
            assert text.count(old) == 1
            text = text.replace(old, new)
        folder = Path(request.config.cache.mkdir("kernels")) / f"levels {fault}"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.cu").write_text(text)
        return Kernel(folder / f"{name}.cu", f"{name}<128>" if name == SOFTMAX[3] else name)

    return load


def is_right(name: str, kernel: Kernel, bfloat16: np.dtype) -> bool:
    rng = np.random.default_rng(0)
    try:
        if name in SOFTMAX:
            x = (10 * rng.standard_normal((5, 128))).astype(np.float32)
            return np.allclose(run_softmax(name, x, 96, kernel), softmax(x), atol=1e-6)
        a, b = draw(rng, name, 130, 136, 100, bfloat16)
        c, expected = run_matmul(name, a, b, kernel), a.astype(float) @ b.astype(float)
        return np.allclose(c.astype(float), expected, rtol=2**-7, atol=1e-2 if name == MATMUL[5] else 1e-4)
    except KernelError:
        return False


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_planted_fault_is_caught(load_level, bfloat16, fault):
    """In some order of warps, with early or late copies; and without a fault all levels are right in each of them."""
    for name in (FAULTS[fault][0],) if fault else SOFTMAX + MATMUL:
        kernel, results = load_level(name), []
        for order, copies in itertools.product(("forward", "reverse", "random"), ("eager", "deferred")):
            with cuda.emulation(order=order, copies=copies):
                results.append(is_right(name, kernel, bfloat16))
        assert all(results) == (fault is None)
