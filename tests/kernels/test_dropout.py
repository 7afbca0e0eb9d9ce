"""kernels/dropout.cu and philox.cuh, emulated: NumPy's random numbers, to the bit, and the mask that they make."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import cuda, manual_seed, ops, random
from minillm.cuda import Kernel, dropout, get_kernel
from minillm.engine import engine
from minillm.study.gradcheck import run_cases

pytestmark = pytest.mark.usefixtures("_compiler")
COUNTS = [1, 7, 8, 17, 1023, 4096, 70001]


def words(seed: int) -> tuple[np.uint64, np.uint64]:
    return np.uint64(seed & (2**64 - 1)), np.uint64(seed >> 64)


def launch(x, p, seed=5, counter=11, blocks=3, y=None, kernel: Kernel | None = None, skip=0) -> np.ndarray:
    y = np.full_like(x, np.nan) if y is None else y
    kernel = kernel or get_kernel("dropout.cu", "dropout", x.dtype)
    scale = (np.float64 if x.dtype == np.float64 else np.float32)(1 / (1 - p))
    threshold = np.uint32(min(round(p * 2**32), 2**32 - 1))
    place = (*words(seed), np.uint64(counter), np.int32(skip))
    kernel(blocks, 64, (x, y, np.int64(x.size), *place, threshold, scale))
    return y


def formula(x, p, seed=5, counter=11) -> np.ndarray:
    """What NumPy computes; for bfloat16, in float32 and rounded once."""
    wide = x if x.dtype.kind == "f" and x.dtype.itemsize > 2 else x.astype(np.float32)
    return (wide * random.keep_scale(seed, counter, x.shape, p, wide.dtype)).astype(x.dtype)


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 12345, 2**64 - 1, 2**65 + 3, 2**128 - 1])
@pytest.mark.parametrize("counter", [0, 9, 2**32 - 5, 2**63])
def test_the_numbers_are_those_of_numpy(load, seed, counter):
    numbers = np.zeros(8 * 50, np.uint32)
    load("philox.cu", "philox_numbers")(2, 32, (numbers, np.int32(50), *words(seed), np.uint64(counter)))
    np.testing.assert_array_equal(numbers, random.bits(seed, counter, len(numbers)))
    raw = np.random.Philox(key=seed, counter=counter).random_raw(len(numbers) // 2)
    np.testing.assert_array_equal(numbers.view(np.uint64), raw)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_dropout_is_the_formula_to_the_bit(warp_order, rng, dtype, count, p):
    x = rng.standard_normal(count).astype(dtype)
    y = launch(x, p)
    assert y.tobytes() == formula(x, p).tobytes()
    assert launch(x, p, blocks=1).tobytes() == y.tobytes()


def test_seed_and_counter_choose_the_mask(rng):
    x = np.ones(3000, np.float32)
    kept = [launch(x, 0.5, seed, counter) != 0 for seed, counter in ((5, 11), (6, 11), (5, 12), (5 + 2**64, 11))]
    for i, mask in enumerate(kept):
        assert 0.45 < mask.mean() < 0.55
        for other in kept[:i]:
            assert 0.4 < (mask == other).mean() < 0.6
    np.testing.assert_array_equal(kept[0][8:], kept[2][:-8])  # a counter stands for 8 numbers


def test_the_backward_draws_the_same_mask(rng, dtype):
    x, dy = rng.standard_normal((2, 999)).astype(dtype)
    dropped = formula(x, 0.3) == 0
    assert 0.2 < dropped.mean() < 0.4
    np.testing.assert_array_equal(launch(x, 0.3) == 0, dropped)
    np.testing.assert_array_equal(launch(dy, 0.3) == 0, dropped)


def test_in_place_and_arrays_that_do_not_start_at_16_bytes(rng, dtype):
    x = rng.standard_normal(100).astype(dtype)
    expected, shifted = formula(x, 0.3), np.concatenate([x[:1], x])[1:]
    np.testing.assert_array_equal(launch(shifted, 0.3), expected)
    np.testing.assert_array_equal(launch(x, 0.3, y=np.full(101, np.nan, dtype)[1:]), expected)
    launch(x, 0.3, y=x)
    np.testing.assert_array_equal(x, expected)


def test_the_least_and_the_greatest_probability(rng):
    x = rng.standard_normal(500)
    np.testing.assert_array_equal(launch(x, 0.0), x)
    nearly_one = 1 - 2**-40
    np.testing.assert_array_equal(launch(x, nearly_one), formula(x, nearly_one))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_is_dropped_is_multiplied_by_0(dtype):
    x = np.array([np.nan, np.inf, -np.inf, -1, 1] * 40).astype(dtype)
    assert np.isnan(launch(x, 0.5).astype(float)).sum() > 40 + 20
    y, expected = (a.astype(np.float64) for a in (launch(x, 0.5), formula(x, 0.5)))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(np.signbit(y)[3::5], np.signbit(expected)[3::5])


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("skip", [1, 4, 7])
def test_a_part_that_begins_inside_a_block(warp_order, rng, dtype, count, skip):
    """Its numbers are those of the whole, and what lies around it stays as it is."""
    whole = rng.standard_normal(skip + count).astype(dtype)
    expected, y = formula(whole, 0.3)[skip:], np.full(count + 16, 7, dtype)
    launch(whole[skip:], 0.3, y=y[8:-8], skip=skip)
    assert y[8:-8].tobytes() == expected.tobytes()
    assert (y[:8] == 7).all()
    assert (y[-8:] == 7).all()
    assert launch(whole[skip:], 0.3, blocks=1, skip=skip).tobytes() == expected.tobytes()


@pytest.mark.parametrize("rows", [(0, 5), (1, 5), (2, 7)], ids=str)
def test_the_operation_on_a_part_by_kernel(agree, rng, rows):
    """17 numbers a row: the part begins at number 0, 17 or 34, of a block 0, 1 or 2."""

    def drop(x):
        manual_seed(3)
        with random.part(rows=rows):
            return ops.dropout(x, 0.4)

    agree(drop, rng.standard_normal((3, 17)), ran="dropout")


@pytest.mark.parametrize("shape", [(), (1,), (5, 17), (40, 1023)], ids=str)
def test_the_operation_by_kernel_and_by_formula(agree, rng, shape):
    def drop(x):
        manual_seed(2**64 - 7)
        ops.dropout(x.detach(), 0.4)  # so that the counter is not 0
        return ops.dropout(x, 0.4)

    agree(drop, rng.standard_normal(shape), ran="dropout")


def test_seeds_that_the_kernel_does_not_take(rng):
    x = rng.standard_normal(10)
    assert dropout.forward(x, p=0.5, seed=-1, counter=0) is NotImplemented
    assert dropout.forward(x, p=0.5, seed=2**128, counter=0) is NotImplemented
    assert dropout.forward(x, p=0.5, seed=1, counter=2**64 - 1) is NotImplemented


def test_every_case_of_the_gradient_check_by_kernels():
    ran = "dropout<double>"
    before = cuda.launch_counts()[ran]
    with engine("emulate"):
        results = run_cases(["dropout"])
    assert results
    assert [result.report for result in results if result.report] == []
    assert cuda.launch_counts()[ran] > before


FAULTS = {
    "nine rounds": ("philox.cuh", "round < 10", "round < 9"),
    "the key before it was raised": ("philox.cuh", "key.high += ", "key.high += 0 * "),
    "the counter from 0": ("philox.cuh", "{block + 1, 0, 0, 0}", "{block, 0, 0, 0}"),
    "high and low swapped": ("philox.cuh", "words[1] = b_low;", "words[1] = a_low;"),
    "the high half first": (
        "philox.cuh",
        "numbers[2 * i + 1] = static",
        "numbers[2 * i + 1] = numbers[2 * i], numbers[2 * i] = static",
    ),
    "above the threshold, not at it": (
        "dropout.cu",
        "numbers[first + k] >= threshold",
        "numbers[first + k] < threshold",
    ),
    "one element too many": ("dropout.cu", "if (first >= end) break;", "if (first > end) break;"),
    "kept, not scaled": ("dropout.cu", "? scale : A(0)", "? A(1) : A(0)"),
    "a part as if it were the whole": ("dropout.cu", "= block * PHILOX_NUMBERS - skip;", "= block * PHILOX_NUMBERS;"),
    "numbers before the part used": ("dropout.cu", "first < 0 ? skip : 0", "0"),
    "numbers of the last block left out": (
        "dropout.cu",
        "block * PHILOX_NUMBERS - skip < count",
        "block * PHILOX_NUMBERS < count",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(mutated, rng, fault):
    faulty = mutated(f"dropout {fault}", *FAULTS[fault], "dropout.cu", "dropout<float>")
    caught = False
    for skip in (0, 7):
        x = rng.standard_normal(skip + 106).astype(np.float32)
        y, expected = np.full((2, 120), 7, np.float32)
        expected[8:114] = formula(x, 0.4)[skip:]
        launch(x[skip:], 0.4, y=y[8:114], kernel=faulty, skip=skip)
        caught |= y.tobytes() != expected.tobytes()
    assert caught


def test_launches_are_counted(rng):
    before = cuda.launch_counts()["dropout<float>"]
    launch(np.ones(10, np.float32), 0.5)
    assert cuda.launch_counts()["dropout<float>"] == before + 1
