"""Faults planted in copies of kernel text, one at a time: each must be caught, or the emulator proves nothing.

A fault is caught where a launch raises, or gives a wrong number, in any order of warps and with early or late copies.
The text without a fault must pass in every one of these ways.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from minillm import cuda
from minillm.cuda import Kernel, KernelError
from minillm.errors import DtypeError

int32, int64 = np.int32, np.int64
WAYS = [
    {"order": order, "seed": seed, "copies": copies}
    for (order, seed), copies in itertools.product(
        (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)), ("eager", "deferred")
    )
]


# Each runs a kernel and says whether its result is right.


def softmax_backward_is_right(kernel: Kernel) -> bool:
    rng = np.random.default_rng(0)
    y, dy = rng.random((5, 203), np.float32), rng.standard_normal((5, 203), np.float32)
    dx = np.full_like(y, np.nan)
    kernel(1, 96, (dy, y, dx, int64(5), int32(203)))  # several warps to a row, several rows to a block
    expected = y * (dy - (dy * y).sum(-1, keepdims=True))
    return np.allclose(dx, expected, atol=1e-4)


def softmax_forward_is_right(kernel: Kernel) -> bool:
    x = np.random.default_rng(0).standard_normal((3, 20), np.float32)
    y = np.full_like(x, np.nan)
    kernel(3, 32, (x, y, int64(3), int32(20)))
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.allclose(y, e / e.sum(-1, keepdims=True), atol=1e-6)


def matmul_is_right(kernel: Kernel, smem: int = 16 * 1024) -> bool:
    from ml_dtypes import bfloat16

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((70, 136)).astype(bfloat16), rng.standard_normal((136, 72)).astype(bfloat16)
    c = np.full((70, 72), np.nan, np.float32)
    kernel((2, 2), 128, (a, b, c, int32(70), int32(72), int32(136)), smem)
    return np.allclose(c, a.astype(float) @ b.astype(float), atol=1e-3)


def matmul_with_less_shared_memory_is_right(kernel: Kernel) -> bool:
    return matmul_is_right(kernel, 16 * 1024 - 128)


def neighbours_are_right(kernel: Kernel) -> bool:
    x, out = np.arange(32, dtype=int32) ** 2, np.zeros(32, int32)
    kernel(1, 32, (x, out))
    return np.array_equal(out, np.roll(x, -1) - np.roll(x, 1))


class Fault(NamedTuple):
    name: str
    file: str  # where the text is changed
    old: str
    new: str
    kernel: str
    instance: str
    is_right: Callable[[Kernel], bool]


SOFTMAX = ("softmax.cu", "softmax_backward<float>", softmax_backward_is_right)
FORWARD = ("softmax.cu", "softmax_forward<float>", softmax_forward_is_right)
MATMUL = ("tensor_core_matmul.cu", "tensor_core_matmul", matmul_is_right)
NEIGHBOURS = ("probe.cu", "neighbours", neighbours_are_right)
MATMUL_CU = "tensor_core_matmul.cu"
BARRIER = "__syncthreads();"

DOT_LOADS = "const Vector<T, COUNT> dy_i = load<COUNT>(dy + i), y_i = load<COUNT>(y + i);"
LOOP = "i < columns; i += blockDim.x * COUNT) {\n" + " " * 8 + DOT_LOADS + "\n        A piece = 0;"
ONE_TOO_MANY = LOOP.replace("i <", "i <=", 1)
FORWARD_LINE = "softmax_forward(const T* x, T* y, long long rows, int columns) {"
ALIGNED = "rows_are_aligned(dy, columns) && rows_are_aligned(y, columns) &&"
SWIZZLED, PLAIN = "chunk<TILE / 8>(b_tile, k + lane % 16, j)", "b_tile + (k + lane % 16) * TILE + j * 8"
COMMIT = "fetch_step(step + 1);\n        cp_async_commit();"
UNCHANGED = "constexpr int TILE"

FAULTS = [
    Fault(
        "barrier dropped before a read", "common.cuh", f"[warp] = value;\n    {BARRIER}", "[warp] = value;", *SOFTMAX
    ),
    Fault("barrier dropped before a write", "common.cuh", f"{BARRIER}  // all have read of_warp", "//", *SOFTMAX),
    Fault("barrier dropped after a wait", MATMUL_CU, f"{BARRIER}  // this step's tiles", "//", *MATMUL),
    Fault("barrier dropped before a copy", MATMUL_CU, f"{BARRIER}  // all have read them", "//", *MATMUL),
    Fault("barrier in divergent code", MATMUL_CU, f"{BARRIER}  // all", f"if (warp < 2) {BARRIER}  // all", *MATMUL),
    Fault("warp barrier dropped", "probe.cu", "__syncwarp();", "", *NEIGHBOURS),
    Fault("wait that leaves too many copies", MATMUL_CU, "cp_async_wait<1>", "cp_async_wait<2>", *MATMUL),
    Fault("commit forgotten", MATMUL_CU, COMMIT, "fetch_step(step + 1);", *MATMUL),
    Fault("swizzle on one side only", MATMUL_CU, SWIZZLED, PLAIN, *MATMUL),
    Fault("mask off by one", MATMUL_CU, "n < N) c", "n <= N) c", *MATMUL),
    Fault("bound off by one", "softmax.cu", LOOP, ONE_TOO_MANY, *SOFTMAX),
    Fault("shuffle dropped", "common.cuh", "distance = WARP_SIZE / 2", "distance = WARP_SIZE / 4", *SOFTMAX),
    Fault("lane missing in the mask", "common.cuh", "FULL_WARP = 0xffffffffu", "FULL_WARP = 0x7fffffffu", *SOFTMAX),
    Fault(
        "lanes that return early", "softmax.cu", FORWARD_LINE, f"{FORWARD_LINE} if (threadIdx.x > 5) return;", *FORWARD
    ),
    Fault("stale shared memory read", "common.cuh", "lane < warps ? of_warp", "lane <= warps ? of_warp", *SOFTMAX),
    Fault("stale tile read", MATMUL_CU, "    fetch_step(0);\n", "", *MATMUL),
    Fault("16 bytes from a row that is not aligned", "softmax.cu", ALIGNED, "true ||", *SOFTMAX),
    Fault(
        "too little shared memory",
        MATMUL_CU,
        UNCHANGED,
        UNCHANGED,
        *MATMUL[:2],
        matmul_with_less_shared_memory_is_right,
    ),
]

_caught: dict[str, str] = {}


def first_sign(kernel: Kernel, is_right: Callable[[Kernel], bool]) -> str | None:
    """How a launch in some way goes wrong, or None if all are right."""
    for way in WAYS:
        with cuda.emulation(**way), np.errstate(all="ignore"):
            try:
                if not is_right(kernel):
                    return f"wrong numbers ({way['order']}, {way['copies']})"
            except KernelError as error:
                return str(error)
    return None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught(mutated, fault, request):
    if fault.kernel == MATMUL_CU:
        request.getfixturevalue("bfloat16")
    faulty = mutated(fault.name, fault.file, fault.old, fault.new, fault.kernel, fault.instance)
    sign = first_sign(faulty, fault.is_right)
    assert sign, f"{fault.name}: nothing was seen of it"
    _caught[fault.name] = sign


@pytest.mark.parametrize(("kernel", "instance", "is_right"), [SOFTMAX, FORWARD, MATMUL, NEIGHBOURS])
def test_without_a_fault_every_way_is_right(load, request, kernel, instance, is_right):
    if kernel == MATMUL_CU:
        request.getfixturevalue("bfloat16")
    assert first_sign(load(kernel, instance), is_right) is None


# ---- faults that are caught elsewhere --------------------------------------------------------------------------------


def test_a_float_where_the_kernel_takes_an_int(load):
    x = np.zeros((2, 20), np.float32)
    with pytest.raises(DtypeError, match=r"int columns is given np.float32\(20.0\)") as caught:
        load("softmax.cu", "softmax_forward<float>")(2, 32, (x, x.copy(), int64(2), np.float32(20)))
    _caught["float where an int is taken"] = str(caught.value)


READ_BEYOND = """
import sys
import numpy as np
from minillm.cuda import Kernel
y = np.ones((2, 203), np.float32)
Kernel(sys.argv[1], "softmax_backward<float>")(2, 64, (y, y, np.zeros_like(y), np.int64(2), np.int32(203)))
print("nothing seen")
"""


def test_a_read_beyond_an_array_under_address_sanitizer(load, mutated, tmp_path):
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(Path(library).is_absolute() for library in found):
        pytest.skip("g++ has no libasan.so")
    script = tmp_path / "read_beyond.py"
    script.write_text(READ_BEYOND)
    faulty = mutated("read beyond", "softmax.cu", LOOP, ONE_TOO_MANY, "softmax.cu", "softmax_backward<float>")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",
        "MINILLM_EMULATE_FLAGS": "-fsanitize=address -O1",
        "PYTHONPATH": str(Path(cuda.__file__).parents[2]),
    }
    line = 1 + next(i for i, text in enumerate(faulty.source.path.read_text().splitlines()) if DOT_LOADS in text)
    for file, seen in ((faulty.source.path, True), ("softmax.cu", False)):
        command = [sys.executable, str(script), str(file)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert ("heap-buffer-overflow" in result.stderr) == seen, result.stderr
        assert ("nothing seen" in result.stdout) == (not seen)
        assert (result.returncode != 0) == seen
        if seen:
            assert f"softmax.cu:{line}" in result.stderr, result.stderr
            report = next(text for text in result.stderr.splitlines() if "heap-buffer-overflow" in text)
            _caught["read beyond an array"] = report[report.index("AddressSanitizer") :][:80]


def test_the_list_of_faults(capsys):
    """Last: what has been caught, and by what."""
    width = max(map(len, _caught), default=0)
    with capsys.disabled():
        print(f"\n{len(_caught)} planted faults caught:")
        for name, sign in _caught.items():
            print(f"  {name:{width}}  {sign}")
