"""The emulator does what CUDA defines, and what CUDA leaves undefined ends the launch with the thread that did it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import cuda
from minillm.cuda import KernelError
from minillm.cuda.source import C_TYPES, instances

HERE = Path(__file__).parent
int32, int64, uint32 = np.int32, np.int64, np.uint32


def test_every_thread_of_every_block_has_its_index(load, warp_order):
    grid, block = (3, 2, 2), (5, 3, 4)
    out = np.zeros((12 * 60, 6), uint32)
    load("probe.cu", "indices")(grid, block, (out,))
    expected = np.ndindex(*reversed(grid), *reversed(block))  # z y x, the last the fastest
    np.testing.assert_array_equal(out, [(bx, by, bz, tx, ty, tz) for bz, by, bx, tz, ty, tx in expected])


# ---- shuffles, votes, atomics ----------------------------------------------------------------------------------------


def shuffled(kind: str, lane: int, delta: int, width: int) -> int:
    """The lane that `lane` reads, by the pseudocode of shfl.sync in the PTX ISA (9.7.9.6)."""
    bval, cval = delta, (32 - width) << 8 | (0 if kind == "up" else 31)
    segmask, clamp = cval >> 8 & 31, cval & 31
    max_lane, min_lane = (lane & segmask) | (clamp & ~segmask), lane & segmask
    bval &= 31
    j, inside = {
        "up": (lane - bval, lane - bval >= max_lane),
        "down": (lane + bval, lane + bval <= max_lane),
        "xor": (lane ^ bval, lane ^ bval <= max_lane),
        "idx": (min_lane | (bval & ~segmask), True),
    }[kind]
    return j if inside else lane


@pytest.mark.usefixtures("_compiler")
@settings(max_examples=60, deadline=None)
@given(delta=st.integers(0, 31), log_width=st.integers(0, 5), seed=st.integers(0, 3))
@pytest.mark.parametrize("dtype", [np.int32, np.float64])
def test_shuffles_read_the_lanes_that_ptx_defines(dtype, delta, log_width, seed):
    x = np.random.default_rng(seed).integers(-1000, 1000, 32).astype(dtype)
    out = np.zeros((4, 32), dtype)
    c_type = C_TYPES[np.dtype(dtype).name]
    shuffles = cuda.get_kernel(HERE / "cuda" / "probe.cu", f"shuffles<{c_type}>")
    shuffles(1, 32, (x, out, int32(delta), int32(2**log_width)))
    for row, kind in zip(out, ("idx", "up", "down", "xor"), strict=True):
        expected = [x[shuffled(kind, lane, delta, 2**log_width)] for lane in range(32)]
        np.testing.assert_array_equal(row, expected, kind)


@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0x0000FFFF, 0x55555555, 0x80000001])
def test_votes_count_the_lanes_of_their_mask(load, warp_order, rng, mask):
    for holds in (rng.integers(0, 2, 32), np.zeros(32), np.ones(32)):
        out = np.zeros((3, 32), uint32)
        load("probe.cu", "votes")(1, 32, (holds.astype(int32) * 7, out, uint32(mask)))
        for lane in range(32):
            mine = mask if mask >> lane & 1 else ~mask & 0xFFFFFFFF
            ballot = sum(1 << i for i in range(32) if mine >> i & 1 and holds[i])
            assert list(out[:, lane]) == [ballot, ballot != 0, ballot == mine]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_atomic_add_from_many_blocks(load, warp_order, rng, dtype):
    x, total = rng.integers(-100, 100, 1000).astype(dtype), np.zeros(1, dtype)
    load("probe.cu", f"add_all<{C_TYPES[np.dtype(dtype).name]}>")(8, 128, (x, total, int32(1000)))
    assert total[0] == x.sum()


def test_the_other_atomics(load, rng):
    x, seen = rng.integers(0, 1000, 100).astype(int32), np.zeros(100, int32)
    largest, held, last = (np.array([-1], int32) for _ in range(3))
    load("probe.cu", "other_atomics")(1, 100, (x, largest, held, last, seen))
    assert (largest[0], held[0], last[0]) == (x.max(), x[0], x[-1])
    np.testing.assert_array_equal(seen, [-1, *x[:-1]])


# ---- numbers ---------------------------------------------------------------------------------------------------------


def awkward_floats(rng: np.random.Generator) -> np.ndarray:
    """Any bits at all; ties and near-ties of both 16-bit types; their limits, subnormals, signed zeros, NaN."""
    any_bits = rng.integers(0, 2**32, 4000, dtype=np.uint64).astype(uint32).view(np.float32)
    kept = rng.integers(0, 2**16, 500, dtype=np.uint64).astype(uint32) << 16
    ties = np.concatenate([kept | low for low in (0x7FFF, 0x8000, 0x8001, 0x0FFF, 0x1000, 0x1001, 0x3000)])
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)[::7]
    between = np.nextafter(halves, np.float32(np.inf))
    limits = np.array(
        [65504, 65519.99, 65520, 2**-14, 2**-24, 2**-25, 1.5 * 2**-25, 0, -0.0, np.inf, np.nan], np.float32
    )
    return np.concatenate([any_bits, ties.astype(uint32).view(np.float32), halves, between, limits, -limits])


@pytest.mark.filterwarnings("ignore:overflow encountered in cast", "ignore:invalid value encountered")
def test_half_rounds_as_numpy_does(load, rng):
    x = awkward_floats(rng)
    rounded, back = np.zeros(x.shape, np.float16), np.zeros_like(x)
    load("probe.cu", "to_half")(1, 64, (x, rounded, back, int32(x.size)))
    expected = x.astype(np.float16)
    nan = np.isnan(x)
    np.testing.assert_array_equal(rounded[~nan].view(np.uint16), expected[~nan].view(np.uint16))
    np.testing.assert_array_equal(back, expected.astype(np.float32))
    assert np.isnan(rounded[nan]).all()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast", "ignore:invalid value encountered")
def test_bfloat16_rounds_as_ml_dtypes_does(load, rng, bfloat16):
    x = awkward_floats(rng)
    rounded, back = np.zeros(x.shape, bfloat16), np.zeros_like(x)
    load("probe.cu", "to_bf16")(1, 64, (x, rounded, back, int32(x.size)))
    nan = np.isnan(x)
    np.testing.assert_array_equal(rounded[~nan].view(np.uint16), x[~nan].astype(bfloat16).view(np.uint16))
    np.testing.assert_array_equal(back[~nan], rounded[~nan].astype(np.float32))
    assert (rounded[nan].view(np.uint16) == 0x7FFF).all(), "CUDA's NaN"
    packed = np.zeros(16, uint32)
    load("probe.cu", "pack")(1, 16, (x[:32], packed))
    np.testing.assert_array_equal(packed.view(np.uint16), rounded[:32].view(np.uint16))


def test_integer_functions(load, rng):
    x = np.concatenate([rng.integers(0, 2**64, 30, dtype=np.uint64), np.array([0, 1, 2**64 - 1], np.uint64)])
    out = np.zeros((32, 3), np.uint64)
    load("probe.cu", "products")(1, 32, (x, out))
    for i, (high64, high32, counts) in enumerate(out.tolist()):
        a, b = int(x[i]), int(x[i + 1])
        low = a % 2**32
        assert high64 == a * b >> 64
        assert high32 == (low * (b % 2**32)) >> 32
        leading, first = 32 - (a >> 40).bit_length(), (low & -low).bit_length()
        assert counts == a.bit_count() + 100 * low.bit_count() + 10000 * leading + 1000000 * first


def test_float_functions(load):
    x = np.array([0.25, 0.9, 1, 1.5, 2, 3.7, 10], np.float32)
    out = np.zeros((8, 7), np.float32)
    load("probe.cu", "functions")(1, 32, (x, out, int32(7)))
    x = x.astype(np.float64)
    expected = [np.exp(x), 1 / np.sqrt(x), np.maximum(x, 1), x / 3, 2**x, np.log(x), x + np.minimum(x, 2)]
    expected.append(np.tanh(x) + np.sin(x) * np.cos(x) + x**1.5)
    np.testing.assert_allclose(out, expected, rtol=4e-7, atol=1e-7)


# ---- shared memory, barriers, order ----------------------------------------------------------------------------------


def test_each_block_finds_nan_in_its_shared_memory(load, warp_order):
    out = np.zeros((4, 3), np.float32)
    found = load("probe.cu", "found_in_shared")
    for _ in range(2):  # nor does a launch find what the one before has left
        found(4, 32, (out,), 32 * 4)
        assert np.isnan(out).all()


def test_the_order_of_turns_can_be_chosen(load):
    def turns(**way) -> np.ndarray:
        out = np.zeros((2, 96), int32)
        with cuda.emulation(**way):
            load("probe.cu", "turns")(1, 96, (np.zeros(1, int32), out))
        assert set(out[0]) == set(range(96)), "nobody passes the barrier before all have come"
        assert set(out[1]) == set(range(96, 192))
        return out

    forward, backward = turns(), turns(order="reverse")
    np.testing.assert_array_equal(forward[0], np.arange(96))
    np.testing.assert_array_equal(backward[0], np.arange(96)[::-1])
    first, second, again = (turns(order="random", seed=seed) for seed in (1, 2, 1))
    assert (first != second).any()
    assert (first != forward).any()
    np.testing.assert_array_equal(first, again)
    warps = first[0].reshape(3, 32)
    assert sorted(warp.min() // 32 for warp in warps) == [0, 1, 2], "a warp runs as far as it can before the next"


def test_lanes_meet_at_a_warp_barrier(load, warp_order, rng):
    x, out = rng.integers(0, 100, 32).astype(int32), np.zeros(32, int32)
    load("probe.cu", "neighbours")(1, 32, (x, out))
    np.testing.assert_array_equal(out, np.roll(x, -1) - np.roll(x, 1))


@pytest.mark.parametrize("threads", [32, 64, 96, 1024])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_block_reductions(load, warp_order, rng, dtype, threads, request):
    dtype = request.getfixturevalue("bfloat16") if dtype == "bfloat16" else np.dtype(dtype)
    x = (rng.integers(-40, 40, (2, threads)) / 8).astype(dtype)  # sums are exact in every order
    x[1] = -np.abs(x[1]) - dtype.type(1)  # and no number is above the 0 that a maximum must not start from
    accumulator = np.float64 if dtype == np.float64 else np.float32
    out = np.zeros((2, threads, 3), accumulator)
    load("probe.cu", f"reductions<{C_TYPES[dtype.name]}>")(2, threads, (x, out))
    x = x.astype(accumulator)
    for block in range(2):
        expected = [x[block].sum(), x[block].max(), -x[block].sum()]
        np.testing.assert_array_equal(out[block], np.tile(expected, (threads, 1)))


# ---- tensor cores and asynchronous copies ----------------------------------------------------------------------------


def test_copies_are_early_or_late_as_chosen(load):
    x = np.arange(1, 13, dtype=int32)
    for way, waited in (("eager", x), ("deferred", np.where(x <= 8, x, -1))):  # the last group is not waited for
        found, complete, zeros = np.zeros(12, int32), np.zeros(12, int32), np.ones(4, int32)
        with cuda.emulation(copies=way):
            load("probe.cu", "copies<3>")(1, 1, (x, found, complete, zeros), 48)
        np.testing.assert_array_equal(found, waited)  # -1 is what shared memory is filled with
        np.testing.assert_array_equal(complete, x)
        assert not zeros.any()


def test_matrix_fragments(load, warp_order, rng, bfloat16):
    a, bt = (rng.integers(-8, 9, (16, 16)).astype(bfloat16) for _ in range(2))
    c = np.full((16, 16), np.nan, np.float32)
    load("tensor_core_matmul.cu", "one_tile")(1, 32, (a, bt, c))
    np.testing.assert_array_equal(c, a.astype(float) @ bt.astype(float).T)


@pytest.mark.parametrize("copies", ["eager", "deferred"])
@pytest.mark.parametrize(("order", "seed"), [("forward", 0), ("reverse", 0), ("random", 1)])
@pytest.mark.parametrize(("rows", "columns", "inner"), [(64, 64, 32), (130, 72, 104), (1, 8, 8), (67, 136, 200)])
def test_tensor_core_matmul(load, rng, bfloat16, rows, columns, inner, order, seed, copies):
    a = rng.standard_normal((rows, inner)).astype(bfloat16)
    b = rng.standard_normal((inner, columns)).astype(bfloat16)
    c = np.full((rows, columns), np.nan, np.float32)
    grid = (-(-columns // 64), -(-rows // 64))
    sizes = (int32(rows), int32(columns), int32(inner))
    with cuda.emulation(order=order, seed=seed, copies=copies):
        load("tensor_core_matmul.cu", "tensor_core_matmul")(grid, 128, (a, b, c, *sizes), 2 * (64 * 32 + 32 * 64) * 2)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    in_float32 = np.abs(a.astype(np.float32) @ b.astype(np.float32) - expected).max()
    rounding = 2.0**-24 * np.abs(expected).max()
    assert np.abs(c - expected).max() <= 2 * max(in_float32, rounding)


# ---- misuse ----------------------------------------------------------------------------------------------------------

MISUSES = {
    "divergent_barrier": r"thread \(0,0,0\) of block \(0,0,0\) waits at __syncthreads \(misuse.cu:6\), "
    r"but thread \(32,0,0\) at another \(misuse.cu:8\)",
    "missing_thread": r"thread \(0,0,0\) of block \(2,0,0\) waits at __syncthreads \(misuse.cu:13\), "
    r"but thread \(5,0,0\) has returned",
    "returned_lane": r"thread \(0,0,0\) .* in __shfl_xor_sync \(misuse.cu:19, .*\) for lane 7, which has returned",
    "own_lane_left_out": r"thread \(31,0,0\) .* mask 0x7fffffff, which leaves out its own lane 31",
    "lane_outside_mask": r"thread \(0,0,0\) .* read lane 20, which mask 0x0000ffff leaves out",
    "different_masks": r"thread \(16,0,0\) .* mask 0xffffffff\) for lane 0, which has returned",
    "different_operations": r"thread \(0,0,0\) .* __shfl_sync .* for lane 3, which waits in __ballot_sync",
    "bad_width": r"thread \(0,0,0\) .* width 12, which is not",
    "barrier_against_shuffle": r"thread \(1,0,0\) .* for lane 0, which waits in __syncthreads",
    "shared_out_of_range": r"thread \(31,0,0\) .* byte 128 of its dynamic shared memory, which has 128 bytes",
    "wild_pointer": r"thread \(9,0,0\) of block \(0,1,0\) reads or writes memory that is not there",
    "divided_by_zero": r"thread \(4,0,0\) .* divides an integer by zero",
    "endless_recursion": r"thread \(0,0,0\) .* has filled its stack",
    "misaligned_vector": r"thread \(0,0,0\) .* stores a vector at address .* is not a multiple of 16",
    "misaligned_copy": r"thread \(0,0,0\) .* copies 16 bytes to shared memory .* \(misuse.cu:\d+\), which is not",
}


def launch_misuse(load, name: str) -> None:
    load("misuse.cu", name)((3, 2), 96, (np.zeros(256, int32),), 128)  # three warps: the first error counts


@pytest.mark.parametrize("ucontext", [False, True])
@pytest.mark.parametrize("name", MISUSES)
def test_misuse_ends_the_launch_and_names_the_thread(load, monkeypatch, name, ucontext):
    if ucontext:
        monkeypatch.setenv("MINILLM_EMULATE_FLAGS", "-DMINILLM_UCONTEXT")
    before = cuda.launch_counts()
    with pytest.raises(KernelError, match=f"^{name}: {MISUSES[name]}"):
        launch_misuse(load, name)
    assert cuda.launch_counts() == before, "a launch that failed does not count"
    out = np.zeros((2, 64), int32)  # and the next one runs
    load("probe.cu", "turns")(1, 64, (np.zeros(1, int32), out))
    assert out.max() == 127


def test_every_misuse_is_tested():
    assert set(MISUSES) == set(instances(HERE / "cuda" / "misuse.cu"))


def test_a_block_of_part_of_a_warp_has_no_other_lanes(load):
    x, out = np.zeros(32, int32), np.zeros((4, 32), int32)
    with pytest.raises(KernelError, match="for lane 17, which a block of 17 threads does not have"):
        load("probe.cu", "shuffles<int>")(1, 17, (x, out, int32(1), int32(32)))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read memory from")
def test_launches_that_fail_give_their_memory_back(load):
    names = [name for name in MISUSES if name != "endless_recursion"]

    def mapped_pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0])

    def fail(times: int) -> int:
        for _ in range(times):
            for name in names:
                with pytest.raises(KernelError):
                    launch_misuse(load, name)
        return mapped_pages()

    warm = fail(3)
    assert (fail(40) - warm) * 4096 < 2 * 2**20, "560 launches of 128 KB or more each"


def test_ucontext_gives_the_same_results(load, monkeypatch, rng):
    x = rng.standard_normal((2, 96)).astype(np.float32)
    results = []
    for flags in ("", "-DMINILLM_UCONTEXT"):
        monkeypatch.setenv("MINILLM_EMULATE_FLAGS", flags)
        out = np.zeros((2, 96, 3), np.float32)
        load("probe.cu", "reductions<float>")(2, 96, (x, out))
        results.append(out)
    np.testing.assert_array_equal(*results)
    with cuda.emulation(order="random", seed=3):
        load("probe.cu", "reductions<float>")(2, 96, (x, out))
    np.testing.assert_array_equal(results[0], out)


def test_the_emulator_compiles_without_warnings(load, monkeypatch, rng):
    monkeypatch.setenv("MINILLM_EMULATE_FLAGS", "-Wall -Wextra -Werror -O1")
    out = np.zeros((2, 64, 3), np.float32)
    load("probe.cu", "reductions<float>")(2, 64, (np.ones(128, np.float32), out))
    load("probe.cu", "copies<3>")(1, 1, tuple(np.zeros(12, int32) for _ in range(4)), 48)
    x = np.ones((1, 8), np.float32)
    load("softmax.cu", "softmax_forward<float>")(1, 32, (x, x.copy(), int64(1), int32(8)))


# ---- debugger --------------------------------------------------------------------------------------------------------

STOP = """
import numpy as np
from minillm.cuda import Kernel
x = np.arange(256, dtype=np.float32)
Kernel({file!r}, "stop_here")(4, 64, (x, np.zeros_like(x)))
print("the end")
"""


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_gdb_stops_in_one_thread_of_one_block(load, tmp_path):
    probe = HERE / "cuda" / "probe.cu"
    line = 1 + next(i for i, text in enumerate(probe.read_text().splitlines()) if "const float reversed" in text)
    script = tmp_path / "stop.py"
    script.write_text(STOP.format(file=str(probe)))
    commands = [
        "set breakpoint pending on",
        "set pagination off",
        f"break probe.cu:{line} if blockIdx.x == 2 && threadIdx.x == 37",
        "run",
        "print mine",
        "print doubled[37]",
        "next",
        "print reversed",
        "print threadIdx",
        "backtrace",
        "delete",
        "continue",
    ]
    arguments = [part for command in commands for part in ("-ex", command)]
    environment = {**os.environ, "MINILLM_EMULATE_FLAGS": "-O0", "PYTHONPATH": str(Path(cuda.__file__).parents[2])}
    command = ["gdb", "-q", "-nx", "-batch", *arguments, "--args", sys.executable, str(script)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    output = result.stdout + result.stderr
    if "ptrace" in output and "not permitted" in output:
        pytest.skip("gdb may not trace processes here")
    values = dict(re.findall(r"^\$(\d) = (.*)$", output, re.MULTILINE))
    assert values["1"] == f"{2 * 64 + 37}", output
    assert values["2"] == f"{2 * (2 * 64 + 37)}", "all threads have written before the barrier"
    assert values["3"] == f"{2 * (2 * 64 + 63 - 37)}", output
    assert values["4"].startswith("{x = 37, y = 0, z = 0}"), output
    assert re.search(r"#0 .*stop_here .*probe.cu:\d+", output), output
    assert output.count("Breakpoint 1, stop_here") == 1
    assert "the end" in output
