"""NVRTC without a GPU: what each kernel takes in registers and shared memory on an architecture, and what it spills."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from minillm.cuda.cache import content, kept
from minillm.cuda.source import KernelError, Source, compile_error, kernel_files, read_source

CUDA_OPTIONS = ("--std=c++17", "-lineinfo")  # of every compile for a GPU
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100")


class Resources(NamedTuple):
    """The resources that one kernel takes on one architecture."""

    kernel: str
    architecture: str
    registers: int  # of a thread; a multiprocessor has 65536
    shared: int  # bytes of static shared memory, of a block
    stack: int  # bytes of a thread's arrays that are not in registers, but in device memory
    spills: int  # bytes stored to device memory and loaded again because registers ran out


def compile_table(
    files: Iterable[str | Path] | None = None, architectures: Iterable[str] = ARCHITECTURES
) -> list[Resources]:
    """The resources of the kernels of .cu files (default: all) on each architecture that can run them; needs no GPU.

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
        version = str(nvrtc.getVersion())  # raises where the library is missing
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise KernelError(f"compile_table: no NVRTC ({reason}); pip install 'minillm[kernels]'") from None
    added_by_cupy = ("-ftz=true", "-default-device", f"-arch={architecture}")
    options = (*include, *CUDA_OPTIONS, *added_by_cupy, "--ptxas-options=-v")

    def make(table: Path) -> None:
        log, symbols = _nvrtc_log(nvrtc, source, names, options)
        rows = [_resources(log, name, symbol, architecture) for name, symbol in zip(names, symbols, strict=True)]
        table.write_text(json.dumps(rows))

    table = kept(f"{source.path.stem}.json", make, source.text, *names, *options, version)
    return [Resources(*row) for row in json.loads(content(table))]


def _nvrtc_log(nvrtc: Any, source: Source, names: list[str], options: tuple[str, ...]) -> tuple[str, list[str]]:
    """The log of ptxas for a program, and the symbols by which it names the instances."""
    program = nvrtc.createProgram(source.text, source.path.name, (), ())
    try:
        for name in names:
            nvrtc.addNameExpression(program, name)
        nvrtc.compileProgram(program, options)
        return nvrtc.getProgramLog(program), [nvrtc.getLoweredName(program, name) for name in names]
    except nvrtc.NVRTCError:
        what = f"{source.path.name} with {' '.join(o for o in options if o.startswith('-arch'))}"
        raise compile_error(what, nvrtc.getProgramLog(program)) from None
    finally:
        nvrtc.destroyProgram(program)


def _resources(log: str, name: str, symbol: str, architecture: str) -> Resources:
    entry = log.split(f"Compiling entry function '{symbol}'")[1].split("Compiling entry function")[0]

    def number(what: str) -> int:
        found = re.search(rf"(\d+) {what}", entry)
        return int(found[1]) if found else 0  # ptxas does not mention what a kernel does not use

    spills = number("bytes spill stores") + number("bytes spill loads")
    return Resources(name, architecture, number("registers"), number("bytes smem"), number("bytes stack frame"), spills)
