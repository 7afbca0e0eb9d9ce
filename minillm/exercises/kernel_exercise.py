"""An exercise in CUDA C++: the learner's file is a .cu, which runs in the emulator, so that no GPU is needed."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minillm.backend import Array
from minillm.cuda import Kernel, KernelError, emulation
from minillm.cuda.emulate import emulated_library
from minillm.exercises.exercise import Exercise

MARGIN = 4096  # elements before and after an array of results, which a kernel must not touch
GUARD = -123.0
ORDERS = ("forward", "reverse", "random")


class BarrierError(KernelError):
    """Some threads of a block wait at a barrier that others never reach."""


@dataclass(frozen=True)
class KernelExercise(Exercise):
    """An exercise whose `starter` launches a kernel; its first argument is the function that does so.

    The results are those in three orders of the warps: a kernel that lacks a barrier gives others in one of them.
    """

    kernel: str = ""  # the name of the kernel
    declaration: str = ""  # the text of the kernel, without a body
    suffix: str = ".cu"
    compiling: int = 180

    def text(self, path: Path) -> str:
        head = f"minillm exercise {self.name}: {self.statement}\n\nCheck it with: minillm exercise check {path}"
        comment = "\n".join(f"// {line}".rstrip() for line in head.splitlines())
        return f'{comment}\n#include "common.cuh"\n\n{self.declaration.strip()}\n\n// instances: {self.kernel}\n'

    def load(self, path: Path) -> Callable[..., Any]:
        kernel = Kernel(path, self.kernel)
        # compiled now, so that what the compiler says is not taken for a fault of the first case
        emulated_library(kernel.source, kernel.group.names, os.environ.get("MINILLM_EMULATE_FLAGS", ""))
        code = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        return functools.partial(self.starter, functools.partial(launched, kernel), code)


def launched(kernel: Kernel, grid: Any, block: Any, inputs: tuple, numbers: tuple) -> tuple[bool, bool, Array]:
    """Launch a kernel on arrays, a new one like the first of them for the result, and numbers.

    Returns two facts, whether the result is equal in every order of the warps, and whether the kernel wrote into its
    own array alone; and the result.
    """
    results, inside = [], True
    like = inputs[0]
    for order in ORDERS:
        around, out = guarded(np.full(like.shape, np.nan, np.float32), GUARD)
        given = (guarded(x, np.nan)[1] for x in inputs)  # what is read beyond an array shows in the result
        try:
            with emulation(order):
                kernel(grid, block, (*given, out, *numbers))
        except KernelError as error:
            raise (BarrierError if "__syncthreads" in str(error) else KernelError)(str(error)) from None
        results.append(out)
        inside = inside and bool((around == GUARD).sum() >= 2 * MARGIN)
    same_in_every_order = all(np.allclose(results[0], other, 1e-5, 1e-6, equal_nan=True) for other in results)
    return same_in_every_order, inside, results[0]


def guarded(array: Array, value: float) -> tuple[Array, Array]:
    """An array with a margin of this value on both sides, and the copy of `array` within it."""
    around = np.full(array.size + 2 * MARGIN, value, np.float32)
    inner = around[MARGIN : MARGIN + array.size].reshape(array.shape)
    inner[...] = array
    return around, inner
