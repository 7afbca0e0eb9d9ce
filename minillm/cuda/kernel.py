"""Kernel, what is launched: the same text run on a GPU, or run on a CPU.

A kernel is text in `kernels/<op>.cu`, and `Kernel("softmax.cu", "softmax_forward<float>")` is one instance of it. The
call `kernel(grid, block, args, smem)` launches it where its arrays are:

- CuPy arrays: on their GPU, compiled by NVRTC (CuPy's RawModule).
- NumPy arrays: on the CPU, compiled by g++ with `kernels/emulator/`, which plays every CUDA thread in turn. Slow,
  strict about the rules, and open to a debugger: so kernels are tested and studied without a GPU.

CUDA checks nothing at a launch: a wrong dtype, or a Python float, which arrives as a double, is silently other bits. So
every argument is first compared with the kernel's own signature, parsed from its text.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from minillm.backend import Array
from minillm.cuda.emulate import launch_emulated
from minillm.cuda.nvrtc import CUDA_OPTIONS
from minillm.cuda.source import (
    C_TYPES,
    DTYPES,
    FOLDER,
    Parameter,
    canonical,
    compile_error,
    instances,
    read_source,
    signature,
    split_instance,
    strides_dtype,
)
from minillm.dtypes import as_dtype
from minillm.errors import DeviceError, DtypeError, InputError, MinillmError, ShapeError, did_you_mean


@functools.cache
def kernel_dtypes(op: str) -> frozenset[str]:
    """The dtypes, by name, for which `kernels/<op>.cu` has instances."""
    if not (FOLDER / f"{op}.cu").is_file():
        return frozenset()
    arguments = [argument for name in instances(f"{op}.cu") for argument in split_instance(name)[1]]
    return frozenset(DTYPES[argument] for argument in arguments if argument in DTYPES)


# ---- a kernel and its launch ----------------------------------------------------------------------------------------

# What CUDA allows; how much shared memory a GPU has is seen when it is asked for.
WARP = 32  # threads that run in step
GRID_LIMITS, BLOCK_LIMITS = (2**31 - 1, 65535, 65535), (1024, 1024, 64)
SHARED_LIMIT, SHARED_UNASKED = 227 * 1024, 48 * 1024

_counts: Counter[str] = Counter()


def launch_counts() -> Counter[str]:
    """The number of launches of each instance by this process: with it, a test proves that a kernel ran."""
    return _counts.copy()


@functools.cache
def get_kernel(file: str, name: str, *template: Any) -> Kernel:
    """The kernel `name<template...>`, made once; a template argument is a dtype or a number.

    `get_kernel("softmax.cu", "softmax_forward", x.dtype)` is `Kernel("softmax.cu", "softmax_forward<float>")`.
    """
    arguments = [C_TYPES.get(a.name, a.name) if isinstance(a, np.dtype) else str(a) for a in template]
    return Kernel(file, f"{name}<{', '.join(arguments)}>" if arguments else name)


def strides_of(*operands: Array) -> Array:
    """The argument `Strides<N>` of a kernel (attention.cuh): the strides, in elements, of all axes but the last."""
    strides = [[stride // x.itemsize for stride in x.strides[:3]] for x in operands]
    return np.array(strides, np.int64).reshape(-1).view(strides_dtype(len(operands)))


class Kernel:
    """An instance of a kernel, ready to be launched: `kernel(grid, block, args, smem=0)`.

    `grid` and `block` are a number or up to three, `smem` the bytes of dynamic shared memory. `args` are arrays, into
    which the kernel may write, NumPy scalars, and the results of `strides_of`. A kernel that takes no `long long` is
    understood to index with int, and is refused arrays of 2^31 elements or more.

    Raises, before anything runs: InputError (number of arguments, grid, block, shared memory, size), DtypeError (a type
    that is not exactly the parameter's), ShapeError (an array that is not C-contiguous), DeviceError (arrays on several
    devices). KernelError: the text does not compile, or broke a rule of CUDA while it was emulated.
    """

    def __init__(self, file: str | Path, instance: str):
        self.source = read_source(file)
        self.instance = canonical(instance)
        groups = [group for group in self.source.groups if self.instance in group.names]
        if not groups:
            known = did_you_mean(self.instance, instances(file))
            raise InputError(f"Kernel: {self.source.path.name} does not list {self.instance}{known}")
        self.group = groups[0]
        self.parameters, self.max_threads = signature(self.source, self.instance)
        self._indexes_with_int = not any(
            p.operands or ("long long" in p.c_type and not p.pointer) for p in self.parameters
        )
        self._on_gpu: dict[int, list] = {}  # device: CuPy's kernel, and the dynamic shared memory that it may have

    @functools.cached_property
    def dtypes(self) -> list[np.dtype]:
        """The dtype of each parameter, or of the elements that it points to."""
        return [strides_dtype(p.operands) if p.operands else as_dtype(DTYPES[p.c_type]) for p in self.parameters]

    def __repr__(self) -> str:
        return f"Kernel({self.source.path.name!r}, {self.instance!r})"

    def __call__(self, grid: Any, block: Any, args: tuple, smem: int = 0) -> None:
        grid, block = self._three("grid", grid, GRID_LIMITS), self._three("block", block, BLOCK_LIMITS)
        threads = block[0] * block[1] * block[2]
        if threads > self.max_threads:
            raise self._error(InputError, f"block {block} has {threads} threads; give it at most {self.max_threads}")
        if not 0 <= smem <= SHARED_LIMIT:
            raise self._error(InputError, f"smem is {smem} bytes; a block can have 0 to {SHARED_LIMIT}")
        device = self._checked_device(args)
        if device is None:
            launch_emulated(self, grid, block, args, smem)
        else:
            self._launch(device, grid, block, args, smem)
        _counts[self.instance] += 1

    def _error(self, kind: type[MinillmError], text: str) -> MinillmError:
        return kind(f"{self.instance}: {text}")

    def _three(self, what: str, given: Any, limits: tuple[int, ...]) -> tuple[int, ...]:
        sizes = given if isinstance(given, tuple) else (given,)
        if not 1 <= len(sizes) <= 3 or not all(1 <= size <= limit for size, limit in zip(sizes, limits, strict=False)):
            raise self._error(InputError, f"{what} is {given}; give it 1 to 3 numbers, from 1 to {limits}")
        return (*map(int, sizes), 1, 1)[:3]

    def _checked_device(self, args: tuple) -> int | None:
        """Compare every argument with its parameter; returns the GPU that the arrays are on, None for NumPy arrays."""
        if len(args) != len(self.parameters):
            listed = ", ".join(map(str, self.parameters))
            raise self._error(InputError, f"{len(args)} arguments are given for {len(self.parameters)}: {listed}")
        cupy = sys.modules.get("cupy")  # unless it is imported, nothing can be its array
        on_gpu = cupy.ndarray if cupy else ()
        devices: dict[int | None, str] = {}  # with the first array that is there
        for value, parameter, dtype in zip(args, self.parameters, self.dtypes, strict=True):
            if parameter.operands:
                self._check_strides(value, parameter, dtype)
            elif parameter.pointer and isinstance(value, np.ndarray):
                devices.setdefault(None, f"{parameter.name} is a NumPy array")
            elif parameter.pointer and isinstance(value, on_gpu):
                devices.setdefault(value.data.device_id, f"{parameter.name} is on GPU {value.data.device_id}")
            elif parameter.pointer or type(value) is not dtype.type:
                given = f"{parameter} is given {value!r:.60}, of type {type(value).__name__}"
                wanted = f"an array of {dtype}" if parameter.pointer else f"np.{dtype}({parameter.name})"
                raise self._error(DtypeError, f"{given}; pass {wanted}")
            if parameter.pointer:
                self._check_array(value, parameter, dtype)
        if len(devices) > 1:
            raise self._error(DeviceError, f"{', but '.join(devices.values())}; move them to one device")
        return next(iter(devices), None)

    def _check_array(self, array: Array, parameter: Parameter, dtype: np.dtype) -> None:
        if array.dtype != dtype:
            raise self._error(DtypeError, f"{parameter} is given an array of {array.dtype}; pass one of {dtype}")
        if not array.flags.c_contiguous:
            given = f"{parameter} is given an array of shape {array.shape} and strides {array.strides}"
            raise self._error(ShapeError, f"{given}, which is not C-contiguous; pass ascontiguousarray of it")
        if array.size >= 2**31 and self._indexes_with_int:
            given = f"{parameter} is given {array.size} elements, but the kernel indexes with int"
            raise self._error(InputError, f"{given}; launch it on parts of less than 2^31")
        if isinstance(array, np.ndarray) and not parameter.const and not array.flags.writeable:
            raise self._error(InputError, f"{parameter} is given a read-only array, to write into; pass a copy")

    def _check_strides(self, value: Any, parameter: Parameter, dtype: np.dtype) -> None:
        if not isinstance(value, np.ndarray) or value.dtype != dtype or value.size != 1:
            given = f"{parameter} is given {value!r:.60}, of type {type(value).__name__}"
            raise self._error(DtypeError, f"{given}; pass strides_of({parameter.operands} arrays)")

    def _launch(self, device: int, grid: tuple, block: tuple, args: tuple, smem: int) -> None:
        import cupy

        current = cupy.cuda.runtime.getDevice()
        if device != current:
            fix = f"launch it inside 'with cupy.cuda.Device({device})'"
            raise self._error(
                DeviceError, f"the arrays are on GPU {device}, but GPU {current} is the current one; {fix}"
            )
        if device not in self._on_gpu:
            try:
                function = _gpu_module(self.source.text, self.group.names).get_function(self.instance)
            except cupy.cuda.compiler.CompileException as error:
                raise compile_error(self.source.path.name, str(error)) from error
            self._on_gpu[device] = [function, SHARED_UNASKED]
        function, granted = self._on_gpu[device]
        if smem > granted:
            most = cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]
            if smem > most:
                raise self._error(InputError, f"smem is {smem} bytes, but a block on GPU {device} can have {most}")
            function.max_dynamic_shared_size_bytes = self._on_gpu[device][1] = smem
        function(grid, block, args, shared_mem=smem)


@functools.cache
def _gpu_module(text: str, names: tuple[str, ...]) -> Any:
    import cupy

    return cupy.RawModule(code=text, options=CUDA_OPTIONS, name_expressions=names)
