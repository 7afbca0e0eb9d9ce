"""Kernels on a CPU: compiled by g++ with `kernels/emulator/`, which plays every CUDA thread in turn.

A .cu file becomes a shared library with one launcher for each instance. It takes what cuLaunchKernel takes, the address
of every argument, and returns a message where the kernel broke a rule of CUDA.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import re
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minillm.cuda.cache import kept
from minillm.cuda.source import FOLDER, KernelError, Source, compile_error, signature
from minillm.errors import InputError

ORDERS, COPIES = ("forward", "reverse", "random"), ("eager", "deferred")
EMULATE_FLAGS = "-std=c++17 -O2 -g -shared -fPIC -fvisibility=hidden -fno-strict-aliasing -Wno-unknown-pragmas"
ANSWER_SECONDS, COMPILE_SECONDS = 60.0, 900.0  # the largest file takes half a minute where nothing else runs


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
    """The way in which launches on a CPU run until the block ends; a kernel must give the same in every way.

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


def launch_emulated(kernel: Any, grid: tuple, block: tuple, args: tuple, smem: int) -> None:
    """Run a Kernel (kernel.py) on checked arguments; KernelError if it breaks a rule of CUDA."""
    flags = os.environ.get("MINILLM_EMULATE_FLAGS", "")
    launch = emulated_library(kernel.source, kernel.group.names, flags)[kernel.instance]
    # As cuLaunchKernel takes them: the address of each argument, which for an array is itself an address.
    values = [np.array(a.ctypes.data if p.pointer else a) for a, p in zip(args, kernel.parameters, strict=True)]
    addresses = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
    with _emulator_lock:
        error = launch(ctypes.byref(_Settings(grid, block, smem, *_emulation)), addresses)
    if error:
        raise KernelError(f"{kernel.instance}: {error.decode()}")


@functools.cache
def emulated_library(source: Source, names: tuple[str, ...], flags: str) -> dict[str, Callable]:
    """The launcher of each instance, from a shared library that is built once."""
    text = _emulated_text(source, names)
    emulator = [path.read_text(encoding="utf-8") for path in sorted((FOLDER / "emulator").glob("*.h"))]
    made_from = (text, *emulator, EMULATE_FLAGS, flags, _compiler(), platform.machine())
    library = kept(f"{source.path.stem}.so", functools.partial(_compile, source, text, flags), *made_from)
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError as error:
        library.unlink(missing_ok=True)  # or it would be taken for a good one the next time
        raise KernelError(f"{source.path.name}: g++ wrote no shared library ({error}); check which g++ it is") from None
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
        types = ", ".join(str(parameter._replace(name="")) for parameter in signature(source, name)[0])
        text += f"""
#line 1 "launcher of {name}"
static_assert(std::is_same_v<decltype(&{name}), void (*)({types})>, "source.py has misread the signature");
extern "C" __attribute__((visibility("default"))) const char* launch_{i}(emulate::Settings* settings, void** values) {{
    return emulate::launch({name}, *settings, values);
}}
"""
    return text


def _compile(source: Source, text: str, flags: str, library: Path) -> None:
    """Compile the text of a kernel for `emulated_library`."""
    options = [f"-I{FOLDER}", *EMULATE_FLAGS.split(), *shlex.split(flags)]
    result = _run_compiler(["-x", "c++", "-", *options, "-o", str(library)], COMPILE_SECONDS, text)
    if result.returncode:
        raise compile_error(source.path.name, result.stderr)


@functools.cache
def _compiler() -> str:
    result = _run_compiler(["--version"], ANSWER_SECONDS)
    if result.returncode or not result.stdout.strip():
        raise KernelError(
            f"Kernel: g++ is broken: `g++ --version` ends with status {result.returncode} and says "
            f"{(result.stderr or result.stdout).strip()[:200]!r}; install it again"
        )
    return result.stdout.splitlines()[0]


def _run_compiler(arguments: list[str], seconds: float, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run g++ on a text. Raises: KernelError if it is missing, cannot be run or does not end."""
    try:
        return subprocess.run(
            ["g++", *arguments], input=text, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds
        )
    except FileNotFoundError:
        raise KernelError("Kernel: g++, which compiles kernels for NumPy arrays, is missing; install g++") from None
    except OSError as error:
        raise KernelError(f"Kernel: g++ cannot be run ({error.strerror}); install it again") from None
    except subprocess.TimeoutExpired:
        raise KernelError(
            f"Kernel: g++ did not end after {seconds:g} s, and was stopped; check which g++ comes first in PATH"
        ) from None
