"""The clock of the GPU report, and the two ceilings that every time is compared with: a copy, and a matrix product."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from gpu_job import Job

from minillm.backend import Product, matmuls
from minillm.dtypes import as_dtype

PEAKS = {"NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12}  # dense bfloat16, a second; from the datasheets


class Clock:
    """Times launches on the null stream, CuPy's and PyTorch's alike, between two CUDA events.

    - Warm-up first: compiling, loading and allocating are not timed.
    - The host queues launches slower than a short kernel runs. So before each sample the GPU is given copies to do that
      take longer than the queueing; it then finds all launches waiting. Where it did not, the table says so.
    - The launches of a sample go round over different memory, more than three times what L2 holds, and what they return
      is kept until the sample ends: so every read and write goes to device memory.
    - The median of the samples; spread = (upper quartile - lower quartile) / median.
    """

    def __init__(self, job: Job):
        self.job, cupy = job, job.cupy
        properties = cupy.cuda.runtime.getDeviceProperties(0)
        self.cache_bytes = properties.get("l2CacheSize", 50 << 20)
        self.filler = [job.random((job.size(1 << 28, 256),), np.float32) for _ in range(2)]
        self.copy_ms = 0.0
        self.copy_ms, _ = self.time([self.copy], "a copy", samples=5)
        self.copy_rate = 2 * self.filler[0].nbytes / self.copy_ms / 1e-3  # bytes a second, read and written

    def copy(self) -> None:
        """Milliseconds of a large copy on the device."""
        self.job.cupy.copyto(*self.filler)

    def sets(self, nbytes: int) -> int:
        """Number of sets of arrays, each of so many bytes, that leave nothing of the first in the cache."""
        return 2 if self.job.dry else min(64, math.ceil(3 * self.cache_bytes / nbytes))

    def time(self, launches: list[Callable[[], Any]], what: str, samples: int = 25) -> tuple[float, float]:
        """Milliseconds of a launch of `what`, and their spread. Each of `launches` does the same on other memory."""
        self.sample(launches, copies=0)  # warm up
        milliseconds, queueing, _ = self.sample(launches, copies=0)
        if self.job.dry:
            return milliseconds, 0.0
        copies = math.ceil(1.5 * queueing / self.copy_ms) + 1 if self.copy_ms else 1
        samples = max(3, min(samples, int(400 / (len(launches) * milliseconds + copies * self.copy_ms))))
        results = [self.sample(launches, copies) for _ in range(samples)]
        if sum(late for *_, late in results) > samples / 2:
            self.job.note(f"{what}: the GPU waited for the host, and its time is too long")
        times, median = sorted(t for t, *_ in results), statistics.median(t for t, *_ in results)
        return median, (times[-1 - samples // 4] - times[samples // 4]) / median

    def sample(self, launches: list[Callable], copies: int) -> tuple[float, float, bool]:
        """Milliseconds of a launch and of queueing all, and whether the GPU began before the last was queued."""
        cuda = self.job.cupy.cuda
        start, end = cuda.Event(), cuda.Event()
        for _ in range(copies):
            self.copy()
        start.record()
        began = time.perf_counter()
        kept = [function() for function in launches]
        queueing, late = 1e3 * (time.perf_counter() - began), start.done
        end.record()
        end.synchronize()
        del kept
        return cuda.get_elapsed_time(start, end) / len(launches), queueing, late


def matrix_rate(clock: Clock, dtype: str = "bfloat16") -> float:
    """FLOP/s of a large product of random matrices by cuBLAS."""
    n = clock.job.size(8192, 16)
    a, b, out = (clock.job.random((n, n), as_dtype(dtype)) for _ in range(3))
    milliseconds, _ = clock.time([lambda: matmuls(Product(a, b, out))], "a product")
    return 2 * n**3 / milliseconds / 1e-3


def free(job: Job) -> None:
    """Give back the memory of the last sizes, so that the next ones find it free."""
    job.cupy.get_default_memory_pool().free_all_blocks()


# ---- the machine ----------------------------------------------------------------------------------------------------


def machine(job: Job) -> None:
    """Note the machine on which everything is measured, and its two ceilings."""
    runtime = job.cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    table = job.table("The machine", "what", "value")
    table.row("GPU", name_of_gpu(job))
    table.row("compute capability", f"{properties['major']}.{properties['minor']}")
    table.row("multiprocessors", properties["multiProcessorCount"])
    table.row("memory, GB", runtime.memGetInfo()[1] / 1e9)
    table.row("L2, MB", properties.get("l2CacheSize", 0) / 1e6)
    table.row("driver", nvidia_smi("driver_version"))
    table.row("CUDA of the driver", version(runtime.driverGetVersion()))
    table.row("CUDA runtime", version(runtime.runtimeGetVersion()))
    if not job.dry:  # a CuPy that is installed beside the stand-in does not work with it
        from cupy_backends.cuda.libs import nvrtc

        table.row("NVRTC", ".".join(map(str, nvrtc.getVersion())))
    table.row("CuPy", job.cupy.__version__)
    table.row("NumPy", np.__version__)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        table.row("PyTorch", importlib.metadata.version("torch"))
    table.row("clocks at rest", clocks())
    clock = Clock(job)
    table.row("copy bandwidth, TB/s, read and written", job.measured(clock.copy_rate / 1e12))
    table.row("cuBLAS, bfloat16 in and out, TFLOP/s", job.measured(matrix_rate(clock) / 1e12))
    table.row("clocks right after", clocks())


def name_of_gpu(job: Job) -> str:
    """The GPU's name as the driver gives it: "NVIDIA H200"."""
    return job.cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()


def version(number: int) -> str:
    """A CUDA version in words: 13000 is 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"


def clocks() -> str:
    """The GPU's clocks, temperature and power right now."""
    return nvidia_smi("clocks.sm,clocks.mem,temperature.gpu,power.draw")


def nvidia_smi(fields: str) -> str:
    """The answer of nvidia-smi, on a machine that has it."""
    if shutil.which("nvidia-smi") is None:
        return "not known"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip() or "not known"
