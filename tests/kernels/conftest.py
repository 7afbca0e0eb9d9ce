"""What the kernel tests share: kernels that exist only for tests, and the ways in which a launch can be emulated."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from minillm import cuda
from minillm.autograd import Tensor
from minillm.cuda.source import C_TYPES, FOLDER
from minillm.engine import engine

CUDA = Path(__file__).parent / "cuda"
ORDERS = (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2))


@pytest.fixture(scope="session")
def _compiler() -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, and kernels on NumPy arrays are compiled by it")


@pytest.fixture
def load(_compiler) -> Callable[[str, str], cuda.Kernel]:
    """Load a kernel of tests/kernels/cuda/, or of kernels/ where there is none of that name."""

    def load_kernel(file: str, instance: str) -> cuda.Kernel:
        return cuda.Kernel(CUDA / file if (CUDA / file).is_file() else file, instance)

    return load_kernel


@pytest.fixture(params=[f"{order}{seed or ''}" for order, seed in ORDERS])
def warp_order(request) -> Iterator[str]:
    """Every order of warps and lanes."""
    order, seed = request.param.rstrip("0123456789"), int(request.param.lstrip("abcdefghijklmnopqrstuvwxyz") or 0)
    with cuda.emulation(order=order, seed=seed):
        yield order


@pytest.fixture(scope="session")
def bfloat16() -> np.dtype:
    """The dtype, or a skip."""
    return np.dtype(pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes").bfloat16)


@pytest.fixture
def mutated(_compiler, request) -> Callable[..., cuda.Kernel]:
    """Load a kernel from a copy in which one piece of text is replaced: a planted fault.

    The copies lie where they lay the last time, so that they are compiled once.
    """
    folder = Path(request.config.cache.mkdir("kernels"))

    def load_mutated(name: str, file: str, old: str, new: str, kernel: str, instance: str) -> cuda.Kernel:
        here = folder / name
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        for copied in {file, kernel}:
            source = CUDA / copied if (CUDA / copied).is_file() else FOLDER / copied
            text = source.read_text()
            if copied == file:
                assert text.count(old) == 1, f"{file} has {text.count(old)} times {old!r}; the fault needs exactly one"
                text = text.replace(old, new)
            (here / copied).write_text(text)
        return cuda.Kernel(here / kernel, instance)

    return load_mutated


@pytest.fixture(params=["float32", "float64", "bfloat16"])
def dtype(request) -> np.dtype:
    """What kernels keep their arrays in."""
    return request.getfixturevalue("bfloat16") if request.param == "bfloat16" else np.dtype(request.param)


@pytest.fixture(scope="session")
def check() -> Callable[..., None]:
    """Assert that a kernel is at most `factor` times as wrong as NumPy is with the formula in the same dtype.

    For bfloat16, NumPy computes in float32 and rounds once. Both are compared with the formula in a wider dtype, by
    their root mean square and, less strictly as it is a matter of luck, by their largest. Where NumPy's errors happen
    to be nothing, a kernel's may be those of one rounding.
    """

    def check_outputs(received, formula: Callable, arguments: tuple, factor: float) -> None:
        narrow = received[0].dtype if isinstance(received, tuple) else received.dtype
        wide, wider = {"float64": (np.float64, np.longdouble)}.get(narrow.name, (np.float32, np.float64))
        expected, by_numpy = (formula(*(a.astype(t) for a in arguments)) for t in (wider, wide))
        if not isinstance(received, tuple):
            received, expected, by_numpy = (received,), (expected,), (by_numpy,)
        for i, (y, right, usual) in enumerate(zip(received, expected, by_numpy, strict=True)):
            assert y.shape == right.shape
            assert np.isfinite(y.astype(np.float64)).all(), f"output {i} is not finite"
            scale = np.abs(right).max(initial=0) or 1
            errors = [(a.astype(wider) - right) / scale for a in (y, usual.astype(y.dtype))]
            rounding = {"float32": 2**-24, "float64": 2**-53, "bfloat16": 2**-9}[y.dtype.name]
            least = rounding / 4 if y.size >= 100 else rounding
            for name, norm, slack in (("root mean square", rms, 1), ("largest", largest, 2)):
                error, allowed = map(norm, errors)
                message = f"output {i}: {name} error {error:.2e}, NumPy {allowed:.2e}, a rounding {rounding:.2e}"
                assert error <= factor * slack * max(allowed, least), message

    return check_outputs


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean())) if x.size else 0.0


def largest(x: np.ndarray) -> float:
    return float(np.abs(x).max(initial=0))


@pytest.fixture
def agree(_compiler, rng) -> Callable[..., None]:
    """Assert that an operation gives the same values and gradients by emulated kernels as by its formula."""

    def run(fn: Callable, arrays: list[np.ndarray], mode: str) -> list[np.ndarray]:
        leaves = [Tensor(x.copy(), requires_grad=True) for x in arrays]
        with engine(mode):
            y = fn(*leaves)
            y.backward(np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype))
        return [y.data, *(leaf.grad for leaf in leaves)]

    def compare(fn: Callable, *arrays: np.ndarray, ran: str) -> None:
        for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 2e-5)):
            narrow = [np.asarray(x, dtype) for x in arrays]
            before = cuda.launch_counts()
            by_kernel = run(fn, narrow, "require")
            launched = {name for name, _ in (cuda.launch_counts() - before).items()}
            assert any(name.startswith(f"{ran}<{C_TYPES[np.dtype(dtype).name]}") for name in launched), launched
            for received, expected in zip(by_kernel, run(fn, narrow, "plain"), strict=True):
                assert received.shape == expected.shape
                assert received.dtype == expected.dtype == dtype
                scale = np.abs(expected).max(initial=1)
                np.testing.assert_allclose(received, expected, rtol=0, atol=tolerance * scale)

    return compare
