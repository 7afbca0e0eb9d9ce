"""kernels/global_norm.cu, emulated, against the sum in extended precision."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minillm import cuda
from minillm.cuda import Kernel, get_kernel

pytestmark = pytest.mark.usefixtures("_compiler")
SIZES = (1, 5, 17, 1023, 4096, 10007)


@pytest.fixture(params=["float32", "float64", "bfloat16"])
def dtype(request) -> np.dtype:
    return request.getfixturevalue("bfloat16") if request.param == "bfloat16" else np.dtype(request.param)


def squares(x: np.ndarray, blocks: int = 3, threads: int = 128, kernel: Kernel | None = None) -> np.ndarray:
    partials = np.full(blocks, np.nan)
    (kernel or get_kernel("global_norm.cu", "sum_of_squares", x.dtype))(
        blocks, threads, (x, partials, np.int64(x.size))
    )
    return partials


def clip(
    partials: np.ndarray, max_norm: float, threads: int = 64, kernel: Kernel | None = None, dtype: type = np.float64
) -> tuple[float, float]:
    """The norm and the factor."""
    norm, factor = np.full((2, 1), np.nan, dtype)
    kernel = kernel or get_kernel("global_norm.cu", "clip_factor", norm.dtype)
    kernel(1, threads, (partials, np.int32(partials.size), dtype(max_norm), norm, factor))
    return norm.item(), factor.item()


@pytest.mark.parametrize("n", SIZES)
def test_the_norm(warp_order, rng, dtype, n):
    x = (10.0 ** rng.uniform(-4, 0, n) * rng.standard_normal(n)).astype(dtype)
    expected = float(np.sqrt(np.square(x.astype(np.longdouble)).sum()))
    tolerance = 1e-15 if dtype == np.float64 else 4e-7  # two roundings of the norm, and little of the sum
    for launch in ({}, {"blocks": 1, "threads": 32}, {"blocks": 9, "threads": 512}):
        partials = squares(x, **launch)
        for threads in (32, 512):
            norm, factor = clip(partials, 0.5, threads)
            assert norm == pytest.approx(expected, rel=tolerance)
            assert factor == pytest.approx(min(1, 0.5 / expected), rel=tolerance)


def test_several_buffers_leave_their_sums_in_one_array(rng, bfloat16):
    buffers = [rng.standard_normal(n).astype(d) for n, d in ((700, np.float32), (16, np.float32), (333, bfloat16))]
    partials = np.concatenate([squares(x, blocks) for x, blocks in zip(buffers, (2, 1, 4), strict=True)])
    expected = math.sqrt(sum(float(np.square(x.astype(np.float64)).sum()) for x in buffers))
    norm, factor = clip(partials, 1.0)
    assert norm == pytest.approx(expected, rel=4e-7)
    assert factor == pytest.approx(1 / expected, rel=4e-7)


def test_more_sums_than_threads(rng):
    partials = rng.random(1000)
    assert clip(partials, 1.0)[0] == pytest.approx(math.sqrt(math.fsum(partials)), rel=1e-15)


@pytest.mark.parametrize(
    ("gradient", "norm", "factor"),
    [
        (0.0, 0.0, 1.0),
        (np.nan, np.nan, np.nan),
        (np.inf, np.inf, 0.0),
        (-3.0, 3.0, 2 / 3),
        (2.0, 2.0, 1.0),
        (1.5, 1.5, 1.0),
    ],
)
def test_factors(gradient, norm, factor):
    np.testing.assert_array_equal(clip(squares(np.array([gradient])), 2.0), [norm, factor])


def test_a_sum_of_small_squares_beside_a_large_one():
    """Where each thread adds few numbers, small ones are not lost one by one against a large one."""
    x = np.full(2**16, 2.0**-13, np.float32)
    x[0] = 1
    norm, _ = clip(squares(x, blocks=8, threads=256), 1.0)
    assert norm == pytest.approx(math.sqrt(1 + (2**16 - 1) * 2.0**-26), rel=4e-7)  # one sum of floats: 2.4e-4


def test_buffers_that_do_not_start_at_16_bytes(rng, dtype):
    x = rng.standard_normal(509).astype(dtype)
    moved = np.concatenate([x[:1], x])[1:]
    assert clip(squares(moved), 1.0)[0] == pytest.approx(clip(squares(x), 1.0)[0], rel=1e-6)


def test_order_changes_no_bit(rng, dtype):
    x = rng.standard_normal(5000).astype(dtype)
    expected = clip(squares(x), 1.0)
    for seed in range(4):
        with cuda.emulation(order="random", seed=seed):
            assert clip(squares(x), 1.0) == expected


SQUARES, CLIP = "sum_of_squares<float>", "clip_factor<float>"
TAIL, BLOCK_SUM = "VECTOR<T> + thread.number; i < n", "sum = block_sum(sum);\n    if (threadIdx.x == 0) partials"
FAULTS = {
    "the end of the buffer forgotten": (SQUARES, TAIL, TAIL.replace("i < n", "i < 0")),
    "pieces taken twice": (SQUARES, "i < pieces; i += thread.count", "i < pieces; i += blockDim.x"),
    "one piece too many": (SQUARES, "i < pieces; i +=", "i <= pieces; i +="),
    "the sum of one thread": (SQUARES, BLOCK_SUM, BLOCK_SUM.partition("\n")[2]),
    "all blocks in one place": (SQUARES, "partials[blockIdx.x]", "partials[0]"),
    "a sum for a sum of squares": (SQUARES, "return g * g;", "return g;"),
    "the first sum only": (CLIP, "i < count; i += blockDim.x", "i < 1; i += blockDim.x"),
    "no root": (CLIP, "length = sqrt(sum)", "length = sum"),
    "gradients made longer": (CLIP, "min(1.0, double(max_norm) / length)", "(double(max_norm) / length)"),
    "the norm for the factor": (CLIP, "double(max_norm) / length", "double(max_norm) * length"),
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_planted_fault_is_caught(mutated, rng, fault):
    faulty: dict[str, Kernel] = {}
    if fault:
        instance, old, new = FAULTS[fault]
        faulty[instance] = mutated(f"global_norm {fault}", "global_norm.cu", old, new, "global_norm.cu", instance)
    right = True
    for x in (rng.standard_normal(4099).astype(np.float32), np.zeros(40, np.float32)):
        length = math.sqrt(np.square(x.astype(np.float64)).sum())
        partials = squares(x, kernel=faulty.get(SQUARES))
        for max_norm in (1.0, 100.0):
            expected = (length, min(1.0, max_norm / length) if length else 1.0)
            right &= np.allclose(
                clip(partials, max_norm, kernel=faulty.get(CLIP), dtype=np.float32), expected, rtol=1e-5
            )
    assert right == (fault is None)
