"""Devices: their names, moving arrays between them, and matrix products by cuBLAS.

A device is named as in PyTorch: "cpu", "cuda" (the current GPU) or "cuda:1". Arrays on a GPU are CuPy's. CuPy answers
NumPy's functions when they are given its arrays, so a formula written with `np.` runs where its arrays are, and most
of the engine need not know. This file is for the rest; CuPy is not imported on a CPU.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import Any

import numpy as np

from minillm.errors import DeviceError, DtypeError

Array = Any  # a numpy.ndarray or a cupy.ndarray


def is_on_gpu(x: Any) -> bool:
    """True if x is an array on a GPU."""
    cupy = sys.modules.get("cupy")  # unless CuPy is imported, x cannot be its array
    return cupy is not None and isinstance(x, cupy.ndarray)


def is_device(name: Any) -> bool:
    """True if this is the name of a device, on any machine."""
    return isinstance(name, str) and re.fullmatch(r"cpu|cuda(:\d+)?", name) is not None


def device_of(array: Array) -> str:
    """The device of an array: "cpu" or "cuda:0"."""
    return f"cuda:{array.data.device_id}" if is_on_gpu(array) else "cpu"


def check_device(name: str) -> None:
    """Raise DeviceError, with what is missing, for a device that this machine does not have."""
    if not is_device(name):
        raise DeviceError(f"device: {name!r} names no device; choose 'cpu', 'cuda' or 'cuda:0'")
    if name != "cpu":
        _check_cuda()
        number, count = int(name.partition(":")[2] or 0), _cupy().cuda.runtime.getDeviceCount()
        if number >= count:
            raise DeviceError(f"device: {name!r} is not there; this machine's GPUs are cuda:0 to cuda:{count - 1}")


@functools.cache
def _check_cuda() -> None:
    wheel = "pip install 'minillm[cuda13]' (or [cuda12], where nvidia-smi shows CUDA 12)"
    try:
        cupy = _cupy()
    except ImportError:
        raise DeviceError(f"device: 'cuda' needs CuPy, which is not installed; {wheel}") from None
    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(
            f"device: 'cuda' needs an NVIDIA GPU with its driver, and CuPy finds none ({error}); "
            "see whether nvidia-smi lists a GPU and a CUDA version no older than CuPy's, or choose 'cpu'"
        ) from None
    if not found:
        raise DeviceError("device: 'cuda' needs an NVIDIA GPU, and this machine has none; choose 'cpu'")
    try:
        _ = cupy.cuda.cublas  # loads the library, which CuPy alone does not include
    except ImportError as error:
        library = str(error).splitlines()[0]
        raise DeviceError(f"device: CuPy finds a GPU, but not CUDA's libraries ({library}); {wheel}") from None


def _cupy() -> Any:
    import cupy

    return cupy


# ---- moving arrays --------------------------------------------------------------------------------------------------


def to_device(array: Array, device: str) -> Array:
    """Move an array to a device: returns it unchanged if it is there, else a copy; a copy to the CPU is waited for.

    Raises: DeviceError for a device that this machine does not have.
    """
    if device == "cpu":
        return array.get() if is_on_gpu(array) else array
    if is_on_gpu(array) and device in ("cuda", device_of(array)):
        return array
    check_device(device)
    cupy = _cupy()
    with cupy.cuda.Device(int(device[5:])) if device != "cuda" else cupy.cuda.Device():
        return cupy.asarray(array)


def to_host(array: Array) -> Array:
    """Convert to a NumPy array: the array itself from a CPU; from a GPU a copy, which is waited for."""
    return to_device(array, "cpu")


def like(array: Array, x: Array) -> Array:
    """Move the array to the device of x; returns the array itself if it is there."""
    return to_device(array, device_of(x))


def compute_capability(array: Array) -> int:
    """Compute capability times 10 of the array's GPU: 90 for an H100; 1000 for the CPU, as the emulator runs all."""
    return int(array.device.compute_capability) if is_on_gpu(array) else 1000


class Uploads:
    """Copies batches to a device; a GPU copies each on a separate stream, while it still computes the previous step.

    `uploads(*arrays)` returns the arrays on the device. Two buffers on the GPU take turns, each with page-locked memory
    on the host, which asynchronous copies require. So an array must not be used any more once the second batch after
    it is uploaded.

    Two events order the streams: a copy waits for the steps that read its buffer before (`read`), and the following
    steps wait for the copy (`copied`), as does the host before it writes to the page-locked memory again.
    """

    def __init__(self, device: str):
        self.device = device
        self.turn = 0
        if device != "cpu":
            check_device(device)
            cuda = _cupy().cuda
            self.stream = cuda.Stream(non_blocking=True)
            self.places: list[list[tuple[Array, Array]]] = [[], []]  # (on the host, on the GPU), for each array
            self.copied, self.read = [cuda.Event(), cuda.Event()], [cuda.Event(), cuda.Event()]

    def __call__(self, *arrays: Array) -> tuple[Array, ...]:
        if self.device == "cpu":
            return arrays
        here = _cupy().cuda.get_current_stream()
        self.read[self.turn].record(here)  # all work so far read this turn's buffer, or the previous one's
        self.turn = 1 - self.turn
        copied = self.copied[self.turn]
        copied.synchronize()
        if [array.shape for array, _ in self.places[self.turn]] != [array.shape for array in arrays]:
            self.places[self.turn] = [_place(array, self.device) for array in arrays]
            self.read[self.turn].record(here)  # or an earlier user of this memory might still be working in it
        self.stream.wait_event(self.read[self.turn])
        for array, (host, on_gpu) in zip(arrays, self.places[self.turn], strict=True):
            host[...] = array
            on_gpu.set(host, stream=self.stream)
        copied.record(self.stream)
        here.wait_event(copied)
        return tuple(on_gpu for _, on_gpu in self.places[self.turn])


def _place(array: Array, device: str) -> tuple[Array, Array]:
    page_locked = _cupy().cuda.alloc_pinned_memory(max(1, array.nbytes))
    host = np.frombuffer(page_locked, array.dtype, array.size).reshape(array.shape)
    return host, to_device(array, device)


# ---- matrix products ------------------------------------------------------------------------------------------------


def gemm(a: Array, b: Array, out: Array | None = None, add: bool = False) -> Array:
    """The matrix product of a (M, K) and b (K, N) on a GPU, by cuBLAS; returns `out`, to which `add` adds it.

    Both have the same dtype. bfloat16 and float16 are multiplied as they are and summed in float32, and `out` may be
    float32; float32 is not rounded to TF32. A transposed view costs no copy.
    Raises: DtypeError for two dtypes, or one that is not floating.

    cuBLAS stores matrices by columns: its matrix (N, M) has the memory of our (M, N), so it sees everything transposed.
    It is therefore asked for C^T = B^T A^T. A row-major matrix is already the transpose that it needs; a transposed
    view is the matrix itself, which cuBLAS has to transpose ("T").
    """
    (rows, inner), columns = a.shape, b.shape[1]
    if out is None:
        out, add = np.empty_like(a, shape=(rows, columns), order="C"), False
    if out.size == 0 or inner == 0:
        if not add:
            out[...] = 0
        return out
    if not out.flags.c_contiguous:
        product = gemm(a, b)
        out[...] = out + product if add else product
        return out
    cuda = _cupy().cuda
    codes = {
        "float64": cuda.runtime.CUDA_R_64F,
        "float32": cuda.runtime.CUDA_R_32F,
        "float16": cuda.runtime.CUDA_R_16F,
        "bfloat16": cuda.runtime.CUDA_R_16BF,
    }
    if a.dtype != b.dtype or a.dtype.name not in codes or out.dtype.name not in (a.dtype.name, "float32"):
        raise DtypeError(
            f"matmul: cuBLAS makes no {out.dtype} of {a.dtype} and {b.dtype}; convert both to one floating dtype"
        )
    in_double = a.dtype == np.float64
    one, zero = _NUMBERS[in_double]
    (a_op, a, a_step), (b_op, b, b_step) = _operand(a), _operand(b)
    cublas, a_type = cuda.cublas, codes[a.dtype.name]
    cublas.gemmEx(
        cuda.device.get_cublas_handle(),
        *(b_op, a_op, columns, rows, inner),
        one.ctypes.data,
        *(b.data.ptr, a_type, b_step, a.data.ptr, a_type, a_step),
        (one if add else zero).ctypes.data,
        *(out.data.ptr, codes[out.dtype.name], columns),
        cublas.CUBLAS_COMPUTE_64F if in_double else cublas.CUBLAS_COMPUTE_32F,
        cublas.CUBLAS_GEMM_DEFAULT,
    )
    return out


# 1 and 0 as cuBLAS reads them, from host memory; kept here, because it reads them by address.
_NUMBERS = {double: tuple(np.array([x], np.float64 if double else np.float32) for x in (1, 0)) for double in (0, 1)}


def _operand(x: Array) -> tuple[int, Array, int]:
    """The arguments that give cuBLAS the transpose of x: operation, array, and leading dimension."""
    cublas = _cupy().cuda.cublas
    (rows, columns), (row_step, column_step), size = x.shape, x.strides, x.itemsize
    if column_step == size and (row_step >= columns * size or rows == 1):
        return cublas.CUBLAS_OP_N, x, max(columns, row_step // size)
    if row_step == size and (column_step >= rows * size or columns == 1):
        return cublas.CUBLAS_OP_T, x, max(rows, column_step // size)
    return cublas.CUBLAS_OP_N, x.copy(order="C"), columns
