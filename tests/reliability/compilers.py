"""Compilers that fail, and damage in what they made: each trial uses a kernel in a process of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minillm.cuda import Kernel, cache, emulate
from minillm.cuda.source import KernelError
from tests.reliability.faults import Ended, in_child

KERNEL = """
#include "emulator/cuda_on_cpu.h"
template <typename T>
__global__ void twice(const T* x, T* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = 2 * x[i];
}
// instances: twice<float>
"""
TRUNCATIONS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999)  # shares of a library that are left of it


class Bench:
    """A folder with a kernel, a cache, and a g++ that hands out the library that the true one made."""

    def __init__(self, folder: Path):
        self.folder = folder / "compilers"
        self.folder.mkdir()
        self.file, self.cache, self.bin = self.folder / "twice.cu", self.folder / "cache", self.folder / "bin"
        self.file.write_text(KERNEL)
        self.bin.mkdir()
        first = self.use()
        assert first.status == 0, first.output
        [self.library] = self.libraries()
        shutil.copy(self.library, self.folder / "made.so")

    def libraries(self) -> list[Path]:
        """What is in the cache."""
        return sorted((self.cache / "minillm" / "kernels").glob("*.so"))

    def compiler(self, script: str) -> None:
        """Put a shell script in the place of g++."""
        path = self.bin / "g++"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def copying(self) -> str:
        """A script that says the true compiler's version, and hands out the library, whatever it is asked for."""
        handing = (
            f'for last; do :; done; cp {self.folder}/made.so "$last"; cat > {os.devnull}; echo . >> {self.folder}/ran'
        )
        return f'case "$*" in *--version*) echo "{emulate._compiler()}";; *) {handing};; esac'

    def use(self, before: Callable[[], Any] = lambda: None, own: bool = False) -> Ended:
        """Launch the kernel in another process. own: with the g++ of `compiler`."""

        def arrange() -> None:
            os.environ["XDG_CACHE_HOME"] = str(self.cache)
            if own:
                os.environ["PATH"] = f"{self.bin}:{os.environ['PATH']}"
                emulate._compiler.cache_clear()
            before()

        return in_child(self.launch, arrange, 120)

    def launch(self) -> None:
        """Double some numbers, and print an error of minillm as the command line does."""
        x, y = np.arange(8, dtype=np.float32), np.zeros(8, np.float32)
        try:
            Kernel(self.file, "twice<float>")(1, 8, (x, y, np.int32(8)))
        except KernelError as error:
            print(error)
            raise SystemExit(2) from None
        assert (y == 2 * x).all(), y


def trials(folder: Path) -> list[tuple[str, int, list[str]]]:
    """Every trial: what was tried, how often, and what was wrong."""
    bench = Bench(folder)
    return [
        ("a compiled kernel is damaged", *damaged(bench)),
        ("a cache cannot be written", *unwritable(bench)),
        ("g++ is missing, broken or hanging", *broken(bench)),
    ]


def damaged(bench: Bench) -> tuple[int, list[str]]:
    """The library in the cache is cut short, or has a byte that is another; it is made again."""
    whole = bench.library.read_bytes()
    contents = {f"cut to {share:.1%}": whole[: int(len(whole) * share)] for share in TRUNCATIONS}
    middle = len(whole) // 2
    contents["one byte changed"] = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    bench.compiler(bench.copying())
    (bench.folder / "made.so").write_bytes(whole[: -cache.CHECKSUM_BYTES])
    found = []
    for name, content in contents.items():
        bench.library.write_bytes(content)
        ended = bench.use(own=True)
        if ended.status or bench.library.read_bytes() != whole:
            found.append(f"a library that is {name}: status {ended.status}: {ended.output}")
    return len(contents), found


def unwritable(bench: Bench) -> tuple[int, list[str]]:
    """The cache is a file, or below one, or there is no home; the kernel runs, and a sentence says so once."""
    bench.compiler(bench.copying())
    trials: dict[str, dict[str, str | None]] = {
        "a file": {"XDG_CACHE_HOME": str(bench.file)},
        "on /proc": {"XDG_CACHE_HOME": "/proc"},
        "at a home that is a file": {"XDG_CACHE_HOME": None, "HOME": str(bench.file)},
    }
    found = []
    for name, variables in trials.items():

        def arrange(variables: dict[str, str | None] = variables) -> None:
            for variable, value in variables.items():
                if value is None:
                    os.environ.pop(variable, None)
                else:
                    os.environ[variable] = value

        ended = bench.use(arrange, own=True)
        if ended.status or ended.output.count("compiled kernels cannot be kept in") != 1:
            found.append(f"a cache that is {name}: status {ended.status}: {ended.output}")
    return len(trials), found


def broken(bench: Bench) -> tuple[int, list[str]]:
    """Each way in which g++ does not work ends with a sentence about it, and leaves nothing in the cache."""
    version = f'case "$*" in *--version*) echo "{emulate._compiler()}"; exit;; esac; '
    scripts = {
        "it ends with 1": "exit 1",
        "it says nothing": "exit 0",
        "it prints nonsense and fails": "head -c 300 /dev/urandom; exit 3",
        "it does not answer": "exec sleep 60",
        "it compiles nothing": version + "exit 0",
        "it compiles for ever": version + "exec sleep 60",
        "it fails without a word": version + "exit 1",
        "it fails with nonsense": version + "head -c 300 /dev/urandom >&2; exit 1",
        "it is killed": version + "kill -9 $$",
        "it writes nonsense": version + 'for last; do :; done; echo nonsense > "$last"',
        "the disk is full": version + "echo 'cannot write: No space left on device' >&2; exit 1",
    }
    found = []
    for name, script in scripts.items():
        bench.compiler(script)
        for library in bench.libraries():
            library.unlink()
        found += told(bench, name, lambda: None)
    (bench.bin / "g++").unlink()
    found += told(bench, "it is not there", lambda: os.environ.update(PATH=str(bench.bin)))
    (bench.bin / "g++").write_text("no program")
    found += told(bench, "it is no program", lambda: os.environ.update(PATH=str(bench.bin)))
    return len(scripts) + 2, found


def told(bench: Bench, name: str, before: Callable[[], Any]) -> list[str]:
    """What is wrong with a use of the kernel that must end with a sentence about the compiler."""

    def arrange() -> None:
        emulate.ANSWER_SECONDS = emulate.COMPILE_SECONDS = 1.0
        before()

    ended = bench.use(arrange, own=True)
    wrong = ended.faults("g++", "does not compile")
    wrong += [] if ended.status == 2 else [f"status {ended.status}: {ended.output}"]
    wrong += [f"it left {path}" for path in bench.libraries()]
    return [f"g++: {name}: {one}" for one in wrong]
