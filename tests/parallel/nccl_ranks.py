"""Ranks that talk through minillm/parallel/nccl.py and the real cupy.cuda.nccl, on the stand-in for libnccl.so.2.

`over_nccl(ranks)(4).run(function, *args)` is to NcclCommunicator what `ranks(4).run(function, *args)` is to shared
memory. The stand-in (tests/standin/nccl/nccl.c) works on host memory, so arrays are NumPy's and no GPU is needed.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm.errors import ParallelError
from minillm.parallel.communicator import Communicator
from tests.parallel.conftest import load

SOURCE = Path(__file__).parents[1] / "standin" / "nccl" / "nccl.c"
PROCESSES = 4  # one pool of these serves all smaller groups: each process takes a second to import CuPy


@functools.cache
def standin_folder() -> str:
    """A folder with the stand-in, compiled; skips where that is impossible."""
    if importlib.util.find_spec("cupy") is None or importlib.util.find_spec("cupy_backends") is None:
        pytest.skip("CuPy is not installed: pip install 'minillm[kernels]'")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("the stand-in for NCCL needs Linux and a C compiler")
    folder = tempfile.mkdtemp(prefix="minillm-nccl-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    flags = ["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-pthread", "-Wl,-soname,libnccl.so.2"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", f"{folder}/libnccl.so.2", "-lrt"], check=True)
    return folder


class NcclRanks:
    """`n` ranks; see the text on top."""

    def __init__(self, ranks: Callable[..., Any], n: int):
        # CuPy finds it by the path; preloaded, it also comes before a real NCCL that is installed with pip.
        folder = standin_folder()
        path = os.pathsep.join(filter(None, [folder, os.environ.get("LD_LIBRARY_PATH")]))
        environment = {"LD_LIBRARY_PATH": path, "LD_PRELOAD": f"{folder}/libnccl.so.2"}
        self.n, self.pool = n, ranks(max(n, PROCESSES), **environment)

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        """The result of `function(communicator, *args)` on each rank."""
        return self.pool.run(on_nccl, *self._arguments(function, args), **options)[: self.n]

    def outcomes(self, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        """The result of the function on each rank, or the RankError of that rank."""
        return self.pool.outcomes(on_nccl, *self._arguments(function, args), **options)[: self.n]

    def _arguments(self, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
        module = sys.modules[function.__module__]
        return self.n, module.__name__, module.__file__, pickle.dumps((function, args))


def over_nccl(ranks: Callable[..., Any]) -> Callable[[int], NcclRanks]:
    """From the `ranks` fixture, its twin over NCCL."""
    return functools.partial(NcclRanks, ranks)


def on_nccl(shared: Communicator, n: int, module: str, file: str, pickled: bytes) -> Any:
    """Run the function with an NcclCommunicator on the first n ranks."""
    from minillm.parallel.nccl import connect

    group = shared.split(int(shared.rank >= n))
    if shared.rank >= n:
        return None
    load(module, file)
    function, args = pickle.loads(pickled)
    job = JobOfTest(shared, group)
    communicator = connect(job, local_rank=None)
    try:
        result = function(communicator, *args)
        communicator.close()
        return result
    except BaseException:
        communicator.abort()
        raise
    finally:
        job.ended.set()


class JobOfTest:
    """A job for nccl.py, made of the communicator of the `ranks` fixture."""

    def __init__(self, shared: Communicator, group: Communicator):
        self.shared, self.group = shared, group
        self.rank, self.size = group.rank, group.size
        self.ended = threading.Event()

    def share(self, value: bytes) -> bytes:
        array = np.zeros(128, np.uint8)
        if self.rank == 0:
            array[:] = np.frombuffer(value, np.uint8)
        self.group.broadcast(array).wait()
        return array.tobytes()

    def check(self) -> None:
        self.shared.check()

    def on_failure(self, callback: Callable[[], None]) -> None:
        def watch() -> None:
            while not self.ended.wait(0.05):
                try:
                    self.check()
                except ParallelError:
                    callback()
                    return

        threading.Thread(target=watch, daemon=True).start()
