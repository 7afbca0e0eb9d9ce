"""What NVRTC says of every kernel on every architecture, with no GPU: no spill, no stack frame, no error."""

from __future__ import annotations

from pathlib import Path

import pytest

from minillm import cuda
from minillm.cuda import KernelError, compile_table
from minillm.cuda.nvrtc import ARCHITECTURES
from minillm.cuda.source import kernel_files, read_source

CUDA = Path(__file__).parent / "cuda"


@pytest.fixture(scope="module", autouse=True)
def _nvrtc() -> None:
    try:
        compile_table(["softmax.cu"], ["sm_90"])
    except KernelError as error:
        if "no NVRTC" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("file", kernel_files())
def test_no_kernel_spills_or_has_a_stack_frame(file):
    rows = compile_table([file])
    compiled = {(row.kernel, row.architecture) for row in rows}
    for group in read_source(file).groups:
        for name in group.names:
            for architecture in ARCHITECTURES:
                assert ((name, architecture) in compiled) == (int(architecture[3:]) >= group.least)
    for row in rows:
        assert row.spills == 0, row
        assert row.stack == 0, row
        assert 8 <= row.registers <= 255, row
        # The launch is possible: registers are given out to warps in 256s, and a multiprocessor has 65536.
        threads = cuda.Kernel(file, row.kernel).max_threads
        assert -(-row.registers // 8) * 8 * threads <= 65536, f"{row} cannot run {threads} threads in a block"


def test_the_kernels_of_the_tests_compile_too():
    files = [path for path in sorted(CUDA.glob("*.cu")) if path.name != "misuse.cu"]  # which recurses without end
    rows = compile_table(files)
    assert {row.architecture for row in rows if row.kernel == "tensor_core_matmul"} == set(ARCHITECTURES) - {"sm_75"}
    assert {row.architecture for row in rows if row.kernel == "votes"} == set(ARCHITECTURES)
    assert all(row.spills == 0 for row in rows)
    shared = {row.shared for row in rows if row.kernel == "reductions<double>"}
    assert shared == {2 * 32 * 8}, "of_warp, for the sum and for the largest"


SPILLING = """#include "common.cuh"
__global__ void __launch_bounds__(1024) spills(const float* x, float* y, int n) {
    float held[128];
#pragma unroll
    for (int i = 0; i < 128; i++) held[i] = x[i * n];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 128; i++) y[i * n] = held[i] * held[127 - i];
}
__global__ void indexed(const int* x, int* y, int n) {
    int held[32];
    for (int i = 0; i < n; i++) held[x[i] % 32] = i;
    for (int i = 0; i < n; i++) y[i] = held[x[i] * 7 % 32];
}
// instances: spills indexed
"""


def test_spills_and_stack_frames_are_seen(tmp_path):
    (tmp_path / "bad.cu").write_text(SPILLING)
    spills, indexed = compile_table([tmp_path / "bad.cu"], ["sm_90"])
    assert spills.kernel == "spills"
    assert spills.spills > 100
    assert spills.registers <= 64, "as 1024 threads allow"
    assert indexed.stack >= 128
    assert indexed.spills == 0


def test_a_failed_compile_names_the_file_and_the_line(tmp_path):
    (tmp_path / "part.cuh").write_text("#pragma once\n\nnonsense here;\n")
    (tmp_path / "bad.cu").write_text('#include "part.cuh"\n__global__ void f(int n) {}\n// instances: f\n')
    with pytest.raises(
        KernelError, match=r"bad.cu with -arch=sm_90: does not compile: .*part.cuh\(3\): error"
    ) as raised:
        compile_table([tmp_path / "bad.cu"], ["sm_90"])
    assert "nonsense here;" in raised.value.__notes__[0]


def test_what_an_architecture_lacks_is_an_error_where_the_file_claims_it(tmp_path):
    text = (CUDA / "tensor_core_matmul.cu").read_text().replace("instances sm_80:", "instances:")
    (tmp_path / "claims.cu").write_text(text)
    with pytest.raises(KernelError, match=r"claims.cu with -arch=sm_75: does not compile: .*sm_80 or higher"):
        compile_table([tmp_path / "claims.cu"], ["sm_75"])
