"""CUDA kernels: the same text run on a GPU, run on a CPU, or only compiled.

A kernel is text in `kernels/<op>.cu`, and `Kernel("softmax.cu", "softmax_forward<float>")` is one instance of it. The
call `kernel(grid, block, args, smem)` launches it where its arrays are:

- CuPy arrays: on their GPU, compiled by NVRTC (CuPy's RawModule).
- NumPy arrays: on the CPU, compiled by g++ with `kernels/emulator/`, which plays every CUDA thread in turn. Slow,
  strict about the rules, and open to a debugger: so kernels are tested and studied without a GPU.
- `compile_table()` runs nothing: it asks NVRTC what each kernel takes in registers and shared memory.

CUDA checks nothing at a launch: a wrong dtype, or a Python float, which arrives as a double, is silently other bits. So
every argument is first compared with the kernel's own signature, parsed from its text. Included files are pasted into
that text, so that whatever keeps a compiled kernel under its text notices when one of them changes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.errors import DeviceError, DtypeError, InputError, MinillmError, ShapeError, did_you_mean

FOLDER = Path(__file__).parent / "_kernels"  # where the wheel carries them
if not FOLDER.is_dir():
    FOLDER = Path(__file__).parents[1] / "kernels"  # in a checkout

DTYPES = {
    "float": "float32",
    "double": "float64",
    "__nv_bfloat16": "bfloat16",
    "__half": "float16",
    "int": "int32",
    "unsigned": "uint32",
    "long long": "int64",
    "unsigned long long": "uint64",
    "unsigned char": "uint8",
    "bool": "bool",
}
C_TYPES = {dtype: c_type for c_type, dtype in DTYPES.items()}
SYNONYMS = {"unsigned int": "unsigned", "half": "__half"}


class KernelError(MinillmError, RuntimeError):
    """A kernel that does not compile, breaks a rule of CUDA while emulated, or is missing where it is required."""


# ---- policy: kernel or formula --------------------------------------------------------------------------------------

POLICIES = ("auto", "off", "require", "emulate")


def _checked_policy(function: str, mode: str) -> str:
    if mode not in POLICIES:
        raise InputError(f"{function}: {mode!r} is not a way to use kernels{did_you_mean(mode, POLICIES)}")
    return mode


_policy = _checked_policy("MINILLM_KERNELS", os.environ.get("MINILLM_KERNELS", "auto"))


def policy() -> str:
    """Which operations run kernels now: "auto", "off", "require" or "emulate" (see `use_kernels`)."""
    return _policy


@contextlib.contextmanager
def use_kernels(mode: str) -> Iterator[None]:
    """Choose between kernels and formulas, for all threads, until the block ends; MINILLM_KERNELS sets the default.

    - "auto": kernels for arrays on a GPU, where there is one for the operation and the dtype; formulas elsewhere.
    - "off": formulas only.
    - "emulate": as "auto", and on NumPy arrays kernels are emulated.
    - "require": as "emulate", and an operation that has kernels but cannot use them raises KernelError.

    Raises: InputError for another mode.
    """
    global _policy
    before, _policy = _policy, _checked_policy("use_kernels", mode)
    try:
        yield
    finally:
        _policy = before


def chosen(op: str, array: Array, refused: str = "") -> bool:
    """Whether `op` is to run its kernels, those of `kernels/<op>.cu`, on `array`; if not, its formula.

    `refused` says why the kernels cannot take these arguments, for reasons other than the dtype: "head size 48".
    Raises: KernelError under "require", where the answer would be no.
    """
    if _policy == "off" or (_policy == "auto" and isinstance(array, np.ndarray)):
        return False
    dtype, known = array.dtype.name, kernel_dtypes(op)
    if not refused and dtype not in known:
        refused = f"{dtype} (there are kernels for: {', '.join(sorted(known)) or 'nothing'})"
    if refused and _policy == "require":
        raise KernelError(f'{op}: no kernel for {refused}; use_kernels("auto") would compute it by the formula')
    return not refused


@functools.cache
def kernel_dtypes(op: str) -> frozenset[str]:
    """The dtypes, by name, for which `kernels/<op>.cu` has instances."""
    if not (FOLDER / f"{op}.cu").is_file():
        return frozenset()
    arguments = [argument for name in instances(f"{op}.cu") for argument in _split(name)[1]]
    return frozenset(DTYPES[argument] for argument in arguments if argument in DTYPES)


# ---- the text of a kernel -------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Instances that are compiled together: one line `// instances: ...` of a .cu file.

    In a line `// instances sm_80: ...` they need that architecture. Such kernels must be templates, unless the file has
    no others, because CUDA compiles a kernel that is no template with any other.
    """

    least: int  # 80 for sm_80
    names: tuple[str, ...]


class Source(NamedTuple):
    """A .cu file, with the files that it includes pasted in."""

    path: Path
    text: str
    groups: tuple[Group, ...]


class Parameter(NamedTuple):
    """One parameter of a kernel."""

    name: str
    c_type: str
    pointer: bool
    const: bool

    def __str__(self) -> str:
        return f"{'const ' * self.const}{self.c_type}{'*' * self.pointer} {self.name}".strip()


def kernel_files() -> list[str]:
    """All .cu files in `kernels/`, as names for `Kernel` and `compile_table`."""
    return sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.cu"))


def instances(file: str | Path) -> list[str]:
    """The kernels that a .cu file lists in its lines `// instances: ...`."""
    return [name for group in read_source(file).groups for name in group.names]


def read_source(file: str | Path) -> Source:
    """Read a .cu file: a name in `kernels/`, or a path. Raises: InputError if it is missing or lists no instances."""
    path = (FOLDER / file).resolve()  # an absolute path stays itself
    if not path.is_file():
        raise InputError(f"Kernel: there is no file {path}")
    lines = re.findall(r"^// instances(?: sm_(\d+))?: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    if not lines:
        raise InputError(f"Kernel: {path.name} lists no kernels; end it with a line '// instances: NAME<float> ...'")
    names = [tuple(map(_canonical, re.findall(r"\w+(?:<[^<>]*>)?", line))) for _, line in lines]
    groups = (Group(int(least or 0), group) for (least, _), group in zip(lines, names, strict=True))
    return Source(path, _paste(path, set()), tuple(groups))


def _paste(path: Path, pasted: set[Path]) -> str:
    """The text of a file, each included one inside it once, and #line for compilers and debuggers to name them."""
    pasted.add(path)
    lines = [f'#line 1 "{path}"']
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        include = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        if include:
            found = next((p for p in (path.parent / include[1], FOLDER / include[1]) if p.is_file()), None)
            if found is None:
                raise KernelError(f"{path.name}:{number}: {include[1]} is neither beside this file nor in {FOLDER}")
            if found.resolve() not in pasted:
                lines.append(_paste(found.resolve(), pasted))
            lines.append(f'#line {number + 1} "{path}"')
        else:
            lines.append("" if line.startswith("#pragma once") else line)
    return "\n".join(lines)


def _split(instance: str) -> tuple[str, list[str]]:
    name, _, arguments = instance.partition("<")
    return name, [argument.strip() for argument in arguments.rstrip(">").split(",")] if arguments else []


def _canonical(instance: str) -> str:
    name, arguments = _split(instance)
    return f"{name}<{', '.join(arguments)}>" if arguments else name


def _signature(source: Source, instance: str) -> tuple[list[Parameter], int]:
    """The parameters of an instance, and how many threads its __launch_bounds__ allows."""
    name, arguments = _split(instance)
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", source.text, flags=re.DOTALL)
    bounds = r"(?:__launch_bounds__\s*\(\s*(\w+)[^)]*\)\s*)?"
    found = re.search(rf"(?:template\s*<([^<>]*)>\s*)?__global__\s+void\s+{bounds}{name}\s*\(([^)]*)\)", code)
    template = [declared.split()[-1] for declared in (found[1] or "").split(",") if declared] if found else []
    if not found or len(template) != len(arguments):
        form = f"template <typename T> __global__ void __launch_bounds__(N) {name}(...)"
        raise KernelError(f"{source.path.name}: {instance} does not name a kernel of the form '{form}'")
    values = dict(zip(template, arguments, strict=True))
    parameters = [_parameter(f"{source.path.name}: {name}", text, values) for text in found[3].split(",")]
    return parameters, int(found[2]) if (found[2] or "").isdigit() else THREADS_LIMIT


def _parameter(where: str, text: str, template: dict[str, str]) -> Parameter:
    resolved = re.sub(r"\w+", lambda word: template.get(word[0], word[0]), text.replace("__restrict__", ""))
    found = re.fullmatch(r"\s*(const\s)?\s*([\w<> ]+?)\s*(\*?)\s*(\w+)\s*", resolved)
    c_type = " ".join(found[2].split()) if found else ""
    c_type = SYNONYMS.get(c_type, c_type)
    if c_type.startswith("Accumulator<"):  # the one trait that a signature may use, defined in common.cuh
        c_type = "double" if "double" in c_type else "float"
    if not found or c_type not in DTYPES:
        raise KernelError(f"{where}: parameter '{text.strip()}' is none of {', '.join(DTYPES)}, nor a pointer to one")
    return Parameter(found[4], c_type, bool(found[3]), bool(found[1]))


# ---- a kernel and its launch ----------------------------------------------------------------------------------------

# What CUDA allows; how much shared memory a GPU has is seen when it is asked for.
WARP = 32  # threads that run in step
GRID_LIMITS, BLOCK_LIMITS, THREADS_LIMIT = (2**31 - 1, 65535, 65535), (1024, 1024, 64), 1024
SHARED_LIMIT, SHARED_UNASKED = 227 * 1024, 48 * 1024

_counts: Counter[str] = Counter()


def launch_counts() -> Counter[str]:
    """How often each instance has been launched by this process: with it, a test proves that a kernel ran."""
    return _counts.copy()


@functools.cache
def get_kernel(file: str, name: str, *template: Any) -> Kernel:
    """The kernel `name<template...>`, made once; a template argument is a dtype or a number.

    `get_kernel("softmax.cu", "softmax_forward", x.dtype)` is `Kernel("softmax.cu", "softmax_forward<float>")`.
    """
    arguments = [C_TYPES.get(a.name, a.name) if isinstance(a, np.dtype) else str(a) for a in template]
    return Kernel(file, f"{name}<{', '.join(arguments)}>" if arguments else name)


class Kernel:
    """One instance of a kernel, ready to be launched: `kernel(grid, block, args, smem=0)`.

    `grid` and `block` are a number or up to three, `args` arrays and NumPy scalars, `smem` the bytes of dynamic shared
    memory. The kernel writes into its arrays. One that takes no `long long` is understood to index with int, and is
    refused arrays of 2^31 elements or more.

    Raises, before anything runs: InputError (number of arguments, grid, block, shared memory, size), DtypeError (a type
    that is not exactly the parameter's), ShapeError (an array that is not C-contiguous), DeviceError (arrays on several
    devices). KernelError: the text does not compile, or broke a rule of CUDA while it was emulated.
    """

    def __init__(self, file: str | Path, instance: str):
        self.source = read_source(file)
        self.instance = _canonical(instance)
        groups = [group for group in self.source.groups if self.instance in group.names]
        if not groups:
            known = did_you_mean(self.instance, instances(file))
            raise InputError(f"Kernel: {self.source.path.name} does not list {self.instance}{known}")
        self.group = groups[0]
        self.parameters, self.max_threads = _signature(self.source, self.instance)
        self._indexes_with_int = not any("long long" in p.c_type and not p.pointer for p in self.parameters)
        self._on_gpu: dict[int, list] = {}  # device: CuPy's kernel, and the dynamic shared memory that it may have

    @functools.cached_property
    def dtypes(self) -> list[np.dtype]:
        """Of each parameter, or of the elements it points to."""
        return [_dtype(parameter) for parameter in self.parameters]

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
            _emulate(self, grid, block, args, smem)
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
            if parameter.pointer and isinstance(value, np.ndarray):
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
                raise _compile_error(self.source.path.name, str(error)) from error
            self._on_gpu[device] = [function, SHARED_UNASKED]
        function, granted = self._on_gpu[device]
        if smem > granted:
            most = cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]
            if smem > most:
                raise self._error(InputError, f"smem is {smem} bytes, but a block on GPU {device} can have {most}")
            function.max_dynamic_shared_size_bytes = self._on_gpu[device][1] = smem
        function(grid, block, args, shared_mem=smem)


def _dtype(parameter: Parameter) -> np.dtype:
    if parameter.c_type != "__nv_bfloat16":
        return np.dtype(DTYPES[parameter.c_type])
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise DtypeError("Kernel: NumPy has bfloat16 from ml_dtypes, which is missing; pip install ml_dtypes") from None
    return np.dtype(bfloat16)


# ---- what has been compiled is kept in the user's cache folder -------------------------------------------------------


def _cache_file(name: str, *made_from: str) -> Path:
    """The path of a file that is made from these texts: another path when any of them changes."""
    key = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:24]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "minillm", "kernels", f"{key}-{name}")


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A file that is written under another name and then renamed, so that no process ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        yield Path(folder, path.name)
        os.replace(Path(folder, path.name), path)


# ---- on a GPU: CuPy -------------------------------------------------------------------------------------------------

CUDA_OPTIONS = ("--std=c++17", "-lineinfo")


@functools.cache
def _gpu_module(text: str, names: tuple[str, ...]) -> Any:
    import cupy

    return cupy.RawModule(code=text, options=CUDA_OPTIONS, name_expressions=names)


def _compile_error(what: str, log: str) -> KernelError:
    first = next((line.strip() for line in log.splitlines() if "error" in line), "no message")
    error = KernelError(f"{what}: does not compile: {first}")
    error.add_note(log)
    return error


# ---- on a CPU: g++ and kernels/emulator -----------------------------------------------------------------------------

ORDERS, COPIES = ("forward", "reverse", "random"), ("eager", "deferred")
EMULATE_FLAGS = "-std=c++17 -O2 -g -shared -fPIC -fvisibility=hidden -fno-strict-aliasing -Wno-unknown-pragmas"


class _Settings(ctypes.Structure):  # emulate::Settings in kernels/emulator/cuda_on_cpu.h
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_size_t),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("copies", ctypes.c_int),
    )


_emulation = (0, 0, 0)  # order, seed, copies
_emulator_lock = threading.Lock()  # a library runs one launch at a time: its static shared arrays are those of a block


@contextlib.contextmanager
def emulation(order: str = "forward", seed: int = 0, copies: str = "eager") -> Iterator[None]:
    """How launches on a CPU go until the block ends; a kernel must give the same in every way.

    `order`, in which warps and the lanes in them get their turn: "forward", "reverse" or "random" (by `seed`).
    `copies`: cp.async copies at once ("eager"), or not before the wait that asks for it ("deferred").
    """
    global _emulation
    if order not in ORDERS or copies not in COPIES:
        raise InputError(f"emulation: order={order!r}, copies={copies!r}; choose from {ORDERS} and {COPIES}")
    before, _emulation = _emulation, (ORDERS.index(order), seed, COPIES.index(copies))
    try:
        yield
    finally:
        _emulation = before


def _emulate(kernel: Kernel, grid: tuple, block: tuple, args: tuple, smem: int) -> None:
    flags = os.environ.get("MINILLM_EMULATE_FLAGS", "")
    launch = _emulated(kernel.source, kernel.group.names, flags)[kernel.instance]
    # As cuLaunchKernel takes them: the address of each argument, which for an array is itself an address.
    values = [np.array(a.ctypes.data if p.pointer else a) for a, p in zip(args, kernel.parameters, strict=True)]
    addresses = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
    with _emulator_lock:
        error = launch(ctypes.byref(_Settings(grid, block, smem, *_emulation)), addresses)
    if error:
        raise KernelError(f"{kernel.instance}: {error.decode()}")


@functools.cache
def _emulated(source: Source, names: tuple[str, ...], flags: str) -> dict[str, Callable]:
    """The launcher of each instance, from a shared library that is built once."""
    text = _emulated_text(source, names)
    library = _cache_file(f"{source.path.stem}.so", text, EMULATE_FLAGS, flags, _compiler(), platform.machine())
    if not library.is_file():
        with _appearing(library) as unfinished:
            command = ["g++", "-x", "c++", "-", *EMULATE_FLAGS.split(), *shlex.split(flags), "-o", str(unfinished)]
            result = subprocess.run(command, input=text, capture_output=True, text=True)
            if result.returncode:
                raise _compile_error(source.path.name, result.stderr)
    loaded = ctypes.CDLL(str(library))
    launchers: dict[str, Callable] = {}
    for i, name in enumerate(names):
        function = getattr(loaded, f"launch_{i}")
        function.restype = ctypes.c_char_p
        launchers[name] = function
    return launchers


def _emulated_text(source: Source, names: tuple[str, ...]) -> str:
    """The text for g++. __shared__ cannot be a macro: what fills the array for each block has to follow its name."""
    text = "#define MINILLM_EMULATE\n" + source.text
    align = r"(?:__align__\(\d+\)\s*)?"
    dynamic = rf"extern\s+__shared__\s+{align}([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;"
    text = re.sub(dynamic, r"\1* \2 = emulate::dynamic_shared<\1>();", text)
    static = rf"__shared__(\s+{align}[\w<> ]+?\s)(\w+)((?:\s*\[[^\]]*\])*)\s*;"
    text = re.sub(static, r"static\1\2\3; emulate::shared_array(&\2, sizeof \2);", text)
    for i, name in enumerate(names):
        types = ", ".join(str(parameter._replace(name="")) for parameter in _signature(source, name)[0])
        text += f"""
#line 1 "launcher of {name}"
static_assert(std::is_same_v<decltype(&{name}), void (*)({types})>, "minillm/kernels.py has misread the signature");
extern "C" __attribute__((visibility("default"))) const char* launch_{i}(emulate::Settings* settings, void** values) {{
    return emulate::launch({name}, *settings, values);
}}
"""
    return text


@functools.cache
def _compiler() -> str:
    try:
        return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        raise KernelError("Kernel: g++, which compiles kernels for NumPy arrays, is missing; install g++") from None


# ---- compile only: NVRTC --------------------------------------------------------------------------------------------

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100")


class Resources(NamedTuple):
    """What one kernel takes on one architecture."""

    kernel: str
    architecture: str
    registers: int  # of a thread; a multiprocessor has 65536
    shared: int  # bytes of static shared memory, of a block
    stack: int  # bytes of a thread's arrays that are not in registers, but in device memory
    spills: int  # bytes stored to device memory and loaded again because registers ran out


def compile_table(
    files: Iterable[str | Path] | None = None, architectures: Iterable[str] = ARCHITECTURES
) -> list[Resources]:
    """What the kernels of some .cu files (default: all) take on each architecture that they can run on; needs no GPU.

    Raises: KernelError if NVRTC is not installed, or a kernel does not compile.
    """
    rows = []
    for source in map(read_source, kernel_files() if files is None else files):
        for architecture in architectures:
            groups = [group for group in source.groups if group.least <= int(architecture.removeprefix("sm_"))]
            names = [name for group in groups for name in group.names]
            rows += _compiled(source, names, architecture) if names else []
    return rows


def _compiled(source: Source, names: list[str], architecture: str) -> list[Resources]:
    try:
        from cupy._core.core import assemble_cupy_compiler_options
        from cupy_backends.cuda.libs import nvrtc

        include = assemble_cupy_compiler_options(())  # raises where the CUDA headers are missing
    except (ImportError, RuntimeError) as error:
        raise KernelError(f"compile_table: no NVRTC ({error}); pip install 'minillm[kernels]'") from None
    added_by_cupy = ("-ftz=true", "-default-device", f"-arch={architecture}")
    options = (*include, *CUDA_OPTIONS, *added_by_cupy, "--ptxas-options=-v")
    table = _cache_file(f"{source.path.stem}.json", source.text, *names, *options, str(nvrtc.getVersion()))
    if not table.is_file():
        log, symbols = _nvrtc_log(nvrtc, source, names, options)
        rows = [_resources(log, name, symbol, architecture) for name, symbol in zip(names, symbols, strict=True)]
        with _appearing(table) as unfinished:
            unfinished.write_text(json.dumps(rows))
    return [Resources(*row) for row in json.loads(table.read_text())]


def _nvrtc_log(nvrtc: Any, source: Source, names: list[str], options: tuple[str, ...]) -> tuple[str, list[str]]:
    """What ptxas says of a program, and the symbols under which it speaks of the instances."""
    program = nvrtc.createProgram(source.text, source.path.name, (), ())
    try:
        for name in names:
            nvrtc.addNameExpression(program, name)
        nvrtc.compileProgram(program, options)
        return nvrtc.getProgramLog(program), [nvrtc.getLoweredName(program, name) for name in names]
    except nvrtc.NVRTCError:
        what = f"{source.path.name} with {' '.join(o for o in options if o.startswith('-arch'))}"
        raise _compile_error(what, nvrtc.getProgramLog(program)) from None
    finally:
        nvrtc.destroyProgram(program)


def _resources(log: str, name: str, symbol: str, architecture: str) -> Resources:
    entry = log.split(f"Compiling entry function '{symbol}'")[1].split("Compiling entry function")[0]

    def number(what: str) -> int:
        found = re.search(rf"(\d+) {what}", entry)
        return int(found[1]) if found else 0  # ptxas does not mention what a kernel does not use

    spills = number("bytes spill stores") + number("bytes spill loads")
    return Resources(name, architecture, number("registers"), number("bytes smem"), number("bytes stack frame"), spills)
