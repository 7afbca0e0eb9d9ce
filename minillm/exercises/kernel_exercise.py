"""An exercise in CUDA C++: the learner's file is a .cu, which runs in the emulator, so that no GPU is needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minillm.backend import Array
from minillm.cuda import Kernel, emulation
from minillm.exercises.exercise import Exercise

MARGIN = 64  # elements before and after an array of results, which a kernel must not touch
GUARD = -123.0
ORDERS = ("forward", "reverse", "random")


@dataclass(frozen=True)
class KernelExercise(Exercise):
    """An exercise whose `starter` launches a kernel; its first argument is the function that does so.

    The results are those in three orders of the warps: a kernel that lacks a barrier gives others in one of them.
    """

    kernel: str = ""  # the name of the kernel
    declaration: str = ""  # the text of the kernel, without a body
    suffix: str = ".cu"
    seconds: int = 180

    def text(self, path: Path) -> str:
        head = f"minillm exercise {self.name}: {self.statement}\n\nCheck it with: minillm exercise check {path}"
        comment = "\n".join(f"// {line}".rstrip() for line in head.splitlines())
        return f'{comment}\n#include "common.cuh"\n\n{self.declaration.strip()}\n\n// instances: {self.kernel}\n'

    def load(self, path: Path) -> Callable[..., Any]:
        text = path.read_text(encoding="utf-8")
        kernel = Kernel(path, self.kernel)
        return functools.partial(self.starter, functools.partial(launched, kernel), code_of(text))


def code_of(text: str) -> str:
    """The text of a .cu file without its comments."""
    return "\n".join(line.partition("//")[0] for line in text.splitlines())


def launched(kernel: Kernel, grid: Any, block: Any, inputs: tuple, like: Array, numbers: tuple) -> tuple[Array, bool, bool]:
    """Launch a kernel on arrays, a new one like `like` for the result, and numbers.

    Returns the result, and two facts: whether it is equal in every order of the warps, and whether the kernel wrote
    into its own array alone.
    """
    found, inside = [], True
    for order in ORDERS:
        around = np.full(like.size + 2 * MARGIN, GUARD, np.float32)
        out = around[MARGIN : MARGIN + like.size].reshape(like.shape)
        out[...] = np.nan
        with emulation(order):
            kernel(grid, block, (*inputs, out, *numbers))
        found.append(out)
        inside = inside and bool((np.delete(around, np.s_[MARGIN : MARGIN + like.size]) == GUARD).all())
    ordered = all(np.allclose(found[0], other, rtol=1e-5, atol=1e-6, equal_nan=True) for other in found)
    return found[0], ordered, inside
