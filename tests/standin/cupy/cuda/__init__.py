"""Streams, events, devices and cuBLAS of the stand-in, as cupy.cuda has them."""

from __future__ import annotations

import ctypes
import time
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

import cupy


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


class CompileException(Exception):
    pass


class MemoryPointer:
    device_id = 0

    def __init__(self, ptr):
        self.ptr = ptr


class Device:
    attributes: ClassVar = {"MaxSharedMemoryPerBlockOptin": 227 * 1024, "MultiProcessorCount": 132}
    compute_capability = "90"
    mem_info = (1 << 30, 1 << 30)

    def __init__(self, device=0):
        self.id = int(device)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def __eq__(self, other):
        return self.id == other.id

    __hash__ = None

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def use(self):
        pass

    def synchronize(self):
        cupy._wait()


# ---- streams --------------------------------------------------------------------------------------------------------

_streams: list[Stream] = []


class Stream:
    """Work in order. The null stream does it at once; another holds it back until something waits for it."""

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.is_null, self.waiting, self.done = null, [], 0
        self.ptr = 0 if null else id(self)
        _streams.append(self)

    def enqueue(self, action):
        self.waiting.append(action)
        if self.is_null:
            self.run_until(self.done + len(self.waiting))

    def run_until(self, position):
        while self.done < position:
            self.done += 1
            self.waiting.pop(0)()

    def position(self):
        return self.done + len(self.waiting)

    def synchronize(self):
        cupy._wait()

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        self.enqueue(event.run)

    def use(self):
        _current.append(self)
        return self

    def __enter__(self):
        _current.append(self)
        return self

    def __exit__(self, *error):
        _current.pop()


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.stream = None

    def record(self, stream=None):
        self.stream = stream or get_current_stream()
        self.position, self.time = self.stream.position(), time.perf_counter()

    def run(self):
        if self.stream is not None:
            self.stream.run_until(self.position)

    def synchronize(self):
        self.run()

    @property
    def done(self):
        return self.stream is None or self.stream.done >= self.position


def get_elapsed_time(start_event, end_event):
    return 1e3 * (end_event.time - start_event.time)


Stream.null = Stream(null=True)
_current = [Stream.null]


def get_current_stream(device_id=-1):
    return _current[-1]


def deviceSynchronize():
    for stream in _streams:
        stream.run_until(stream.position())


def alloc_pinned_memory(size):
    return memoryview(bytearray(max(1, size)))


runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    CUDA_R_32F=0,
    CUDA_R_64F=1,
    CUDA_R_16F=2,
    CUDA_R_16BF=14,
    getDevice=lambda: 0,
    getDeviceCount=lambda: 1,
    deviceSynchronize=lambda: cupy._wait(),
    driverGetVersion=lambda: 13000,
    runtimeGetVersion=lambda: 13000,
    memGetInfo=lambda: Device.mem_info,
    getDeviceProperties=lambda device: {"name": b"a stand-in", "multiProcessorCount": 132, "major": 9, "minor": 0},
)
driver = SimpleNamespace(CUDADriverError=CUDADriverError)
compiler = SimpleNamespace(CompileException=CompileException)
device = SimpleNamespace(get_cublas_handle=lambda: 1)


# ---- cuBLAS ---------------------------------------------------------------------------------------------------------


def _types():
    import ml_dtypes

    return {0: np.dtype(np.float32), 1: np.dtype(np.float64), 2: np.dtype(np.float16), 14: np.dtype(ml_dtypes.bfloat16)}


def _matrix(pointer, rows, columns, leading, dtype):
    """The column-major matrix at a pointer, `leading` elements from column to column."""
    if leading < max(1, rows):
        raise CUDARuntimeError("CUBLAS_STATUS_INVALID_VALUE: a leading dimension is less than the rows")
    nbytes = ((columns - 1) * leading + rows) * dtype.itemsize if rows and columns else 0
    cupy.check_range(pointer, nbytes)
    memory = np.frombuffer((ctypes.c_char * nbytes).from_address(pointer), dtype)
    return np.lib.stride_tricks.as_strided(memory, (rows, columns), (dtype.itemsize, leading * dtype.itemsize))


def _gemm_ex(
    handle, transa, transb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute_type, algo
):
    types = _types()
    accumulator = {68: np.float32, 70: np.float64, 77: np.float32}[compute_type]
    wanted = np.float64 if a_type == 1 else np.float32
    if a_type != b_type or accumulator != wanted or c_type not in (a_type, 0):
        raise CUDARuntimeError("CUBLAS_STATUS_NOT_SUPPORTED: this combination of types")
    number = ctypes.c_double if a_type == 1 else ctypes.c_float
    scale_a, scale_c = (number.from_address(pointer).value for pointer in (alpha, beta))
    left = _matrix(a, *((k, m) if transa else (m, k)), lda, types[a_type])
    right = _matrix(b, *((n, k) if transb else (k, n)), ldb, types[b_type])
    out = _matrix(c, m, n, ldc, types[c_type])
    product = (left.T if transa else left).astype(accumulator) @ (right.T if transb else right).astype(accumulator)
    product *= scale_a
    if scale_c:  # with beta = 0, cuBLAS does not read C
        product += scale_c * out.astype(accumulator)
    out[...] = product


cublas = SimpleNamespace(
    gemmEx=_gemm_ex,
    CUBLAS_OP_N=0,
    CUBLAS_OP_T=1,
    CUBLAS_COMPUTE_32F=68,
    CUBLAS_COMPUTE_64F=70,
    CUBLAS_COMPUTE_32F_FAST_TF32=77,
    CUBLAS_GEMM_DEFAULT=-1,
)
