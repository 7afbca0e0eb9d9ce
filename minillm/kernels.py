"""Deprecated names: `use_kernels` is now `minillm.engine`, and kernels are in minillm.cuda."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from typing import Any

from minillm import cuda
from minillm.engine import BEFORE, engine


def use_kernels(mode: str) -> AbstractContextManager[None]:
    """The old name of `minillm.engine`, with "off" for "fast"."""
    name = BEFORE.get(mode, mode)
    warnings.warn(f'use_kernels("{mode}") is now minillm.engine("{name}")', FutureWarning, stacklevel=2)
    return engine(name)


def __getattr__(name: str) -> Any:
    if name in cuda.__all__:
        warnings.warn(f"minillm.kernels.{name} is now minillm.cuda.{name}", FutureWarning, stacklevel=2)
        return getattr(cuda, name)
    raise AttributeError(f"minillm.kernels has no {name!r}; kernels are in minillm.cuda")
