"""A job of the GPU report: its device, the tables that it fills, and the time that it has left.

Every section runs in a process of its own, because one illegal address ends all CUDA work of a process, and a kernel
that never returns can only be killed. Every row that a section puts into a table is written to disk at once.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

STANDIN = Path(__file__).parents[1] / "tests" / "standin"  # a `cupy` for machines without a GPU
PASS, FAIL, DRY = "pass", "FAIL", "dry"


def verdict(passed: Any) -> str:
    """The word in a table for the result of a check."""
    return PASS if passed else FAIL


class Table:
    """Rows under a title; saved with every row."""

    def __init__(self, job: Job, title: str, columns: tuple[str, ...]):
        self.job, self.content = job, {"title": title, "columns": list(columns), "rows": []}

    def row(self, *values: Any) -> None:
        """Add a row of texts and numbers; None leaves a cell empty."""
        assert len(values) == len(self.content["columns"]), values
        self.content["rows"].append([plain(value) for value in values])
        self.job.save()


def plain(value: Any) -> Any:
    """The value as JSON can hold it: Python's numbers for NumPy's, and text for numbers that are not finite."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


class Job:
    """A section at work. `dry` means a machine without a GPU: all sizes are tiny, and the times mean nothing."""

    def __init__(self, file: Path, seconds: float, dry: bool = False, small: bool = False, plain_memory: bool = False):
        self.file, self.deadline = file, time.monotonic() + seconds
        self.dry, self.small, self.plain_memory = dry, small or dry, plain_memory
        self.results: dict[str, Any] = {"tables": [], "notes": []}
        self.tables: dict[str, Table] = {}
        if dry:
            sys.path.insert(0, str(STANDIN))

    @functools.cached_property
    def cupy(self) -> Any:
        """The module, on a machine where it has a GPU; else minillm's DeviceError, which says what is missing."""
        from minillm.device import check_device

        check_device("cuda")
        import cupy

        if self.plain_memory:  # each array an allocation of its own, whose end compute-sanitizer knows
            cupy.cuda.set_allocator(None)
        return cupy

    @functools.cached_property
    def nccl(self) -> Any:
        """cupy.cuda.nccl, which CuPy imports when it is asked for; None where the library is missing."""
        _ = self.cupy
        from cupy.cuda import nccl

        if not nccl.available:
            self.note("the NCCL library is missing: pip install nvidia-nccl-cu13 (or -cu12, as CuPy)")
        return nccl if nccl.available else None

    @property
    def torch(self) -> Any:
        """The module, or None where it is not installed."""
        return None if importlib.util.find_spec("torch") is None else importlib.import_module("torch")

    def table(self, title: str, *columns: str) -> Table:
        """The table of this section with this title; the report joins those of parts that run side by side."""
        if title not in self.tables:
            self.tables[title] = Table(self, title, columns)
            self.results["tables"].append(self.tables[title].content)
        return self.tables[title]

    def note(self, text: str) -> None:
        """A sentence below the tables."""
        if text not in self.results["notes"]:
            self.results["notes"].append(text)
            self.save()

    def save(self) -> None:
        """Write the tables, under another name first, so that nobody reads half of them."""
        unfinished = self.file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.results))
        os.replace(unfinished, self.file)

    def in_time(self, seconds: float, what: str) -> bool:
        """Tell if so many seconds are left; if not, a note says what was left out."""
        if time.monotonic() + seconds <= self.deadline:
            return True
        self.note(f"no time was left for {what}")
        return False

    def size(self, full: int, dry: int) -> int:
        """A size on a GPU, or in a dry run."""
        return dry if self.dry else full

    def measured(self, value: float) -> float | str:
        """The measurement, or None in a dry run."""
        return DRY if self.dry else value

    def random(self, shape: tuple[int, ...], dtype: Any, scale: float = 1.0, positive: bool = False) -> Any:
        """Normal numbers on the device: a million of them, over and over. (On zeros a GPU is faster than on data.)"""
        count = int(np.prod(shape))
        block = scale * np.random.default_rng(0).standard_normal(min(count, 1 << 20))
        block = self.cupy.asarray((np.abs(block) if positive else block).astype(dtype))
        out = self.cupy.empty(count, dtype)
        for start in range(0, count, block.size):
            out[start : start + block.size] = block[: count - start]
        return out.reshape(shape)
