"""What the kernel tests share: kernels that exist only for tests, and the ways in which a launch can be emulated."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from minillm import kernels

CUDA = Path(__file__).parent / "cuda"
ORDERS = (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2))


@pytest.fixture(scope="session")
def _compiler() -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, and kernels on NumPy arrays are compiled by it")


@pytest.fixture
def load(_compiler) -> Callable[[str, str], kernels.Kernel]:
    """Load a kernel of tests/kernels/cuda/, or of kernels/ where there is none of that name."""

    def load_kernel(file: str, instance: str) -> kernels.Kernel:
        return kernels.Kernel(CUDA / file if (CUDA / file).is_file() else file, instance)

    return load_kernel


@pytest.fixture(params=[f"{order}{seed or ''}" for order, seed in ORDERS])
def warp_order(request) -> Iterator[str]:
    """Every order of warps and lanes."""
    order, seed = request.param.rstrip("0123456789"), int(request.param.lstrip("abcdefghijklmnopqrstuvwxyz") or 0)
    with kernels.emulation(order=order, seed=seed):
        yield order


@pytest.fixture(scope="session")
def bfloat16() -> np.dtype:
    """The dtype, or a skip."""
    return np.dtype(pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes").bfloat16)


@pytest.fixture
def mutated(_compiler, request) -> Callable[..., kernels.Kernel]:
    """Load a kernel from a copy in which one piece of text is replaced: a planted fault.

    The copies lie where they lay the last time, so that they are compiled once.
    """
    folder = Path(request.config.cache.mkdir("kernels"))

    def load_mutated(name: str, file: str, old: str, new: str, kernel: str, instance: str) -> kernels.Kernel:
        here = folder / name
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        for copied in {file, kernel}:
            source = CUDA / copied if (CUDA / copied).is_file() else kernels.FOLDER / copied
            text = source.read_text()
            if copied == file:
                assert text.count(old) == 1, f"{file} has {text.count(old)} times {old!r}; the fault needs exactly one"
                text = text.replace(old, new)
            (here / copied).write_text(text)
        return kernels.Kernel(here / kernel, instance)

    return load_mutated
