"""How the work is cut: row blocks that fit in cache, on a few threads; matrix products; the settings of the process.

NumPy runs one operation at a time over a whole array. Two things make that slow on a CPU, and this file removes both:
each pass over an array larger than the cache is a trip to memory, and a pass uses one core. `row_blocks` calls the
same formula on blocks of rows that stay in cache, on every core; NumPy lets go of the interpreter lock meanwhile.

Cutting changes no result but the last bits of sums over rows, which are added block by block, always in row order.
`MINILLM_THREADS=1` keeps everything on the calling thread, which is what a debugger wants.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minillm.errors import DeviceError

Array = Any  # a numpy.ndarray: arrays in, arrays out, no Tensor below autograd.py

CACHE_BYTES = 256 * 1024  # a block's share of the L2 cache: a formula holds two to four such blocks at once
PARALLEL_BYTES = 512 * 1024  # below this, handing work to another thread (about 50 us) costs more than it saves
PARALLEL_FLOPS = 8e6  # the same for a matrix product


def _thread_count() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("MINILLM_THREADS", str(cores))
    if asked.isdigit() and int(asked) >= 1:
        return int(asked)
    # Nothing to raise an error to: this is read while minillm is imported.
    warnings.warn(
        f"MINILLM_THREADS is {asked!r}; set it to a number of threads, 1 or more; using {cores}", stacklevel=2
    )
    return cores


class _Worker(threading.Thread):
    """One thread that runs what it is handed; created on first use."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="minillm-worker")
        self.tasks: queue.SimpleQueue = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while True:
            function, start, stop, done = self.tasks.get()
            try:
                function(start, stop)
                result = None
            except BaseException as error:  # handed to the caller, who raises it
                result = error
            # The function holds arrays: forget it before reporting, or they would live until the next task.
            del function
            done.put(result)


_workers: list[_Worker] = []
_workers_pid = 0
_pool_lock = threading.Lock()
threads = _thread_count()  # how many threads row blocks and matrix products are spread over
_blas_is_single = False  # True inside tuned_process: then matrix products are cut here


def _pool() -> list[_Worker]:
    global _workers, _workers_pid
    if _workers_pid != os.getpid():  # threads do not survive a fork
        _workers, _workers_pid = [], os.getpid()
    while len(_workers) < threads - 1:
        _workers.append(_Worker())
    return _workers[: threads - 1]


def parallel(function: Callable[[int, int], Any], count: int) -> None:
    """Call `function(start, stop)` on equal ranges that cover `range(count)`, one per thread, and wait for all.

    The first exception that a range raised is raised here, after every range has ended.
    """
    parts = min(threads, count)
    if parts <= 1 or not _pool_lock.acquire(blocking=False):  # the pool is taken: we are inside another section
        function(0, count)
        return
    try:
        bounds = [count * i // parts for i in range(parts + 1)]
        workers = _pool()[: parts - 1]
        done: queue.SimpleQueue = queue.SimpleQueue()  # of this call alone: an interrupted wait leaves nothing behind
        for worker, start, stop in zip(workers, bounds[1:-1], bounds[2:], strict=True):
            worker.tasks.put((function, start, stop, done))
        errors: list[BaseException | None] = []
        try:
            function(0, bounds[1])
        except BaseException as raised:
            errors.append(raised)
        finally:
            errors.extend(done.get() for _ in workers)
    finally:
        _pool_lock.release()
    for error in errors:
        if error is not None:
            raise error


def row_blocks(formula: Callable[[slice], Any], array: Array) -> None:
    """Call `formula(rows)` on slices that cover all rows of `array`, each small enough for the cache, on every thread.

    `array` (rows, channels) is one that the formula passes over; it only says how to cut. Blocks do not overlap, so a
    formula that writes to its own rows alone needs no lock. For sums over rows see `sum_over_blocks`.
    """
    rows, row_bytes = len(array), array[:1].nbytes
    block = max(1, CACHE_BYTES // max(1, row_bytes))

    def run(start: int, stop: int) -> None:
        for first in range(start, stop, block):
            formula(slice(first, min(first + block, stop)))

    if rows * row_bytes < PARALLEL_BYTES:
        run(0, rows)
    else:
        parallel(run, rows)


def sum_over_blocks(formula: Callable[[slice], tuple[Array, ...]], array: Array) -> tuple[Array, ...]:
    """Like `row_blocks`, for a formula that returns sums over its rows: add the sums of all blocks, in row order."""
    partial: dict[int, tuple[Array, ...]] = {}

    def run(block: slice) -> None:
        partial[block.start] = formula(block)

    if len(array) == 0:
        return formula(slice(0, 0))
    row_blocks(run, array)
    totals, *rest = (partial[start] for start in sorted(partial))
    for sums in rest:
        for total, addend in zip(totals, sums, strict=True):
            total += addend
    return totals


def as_rows(x: Array) -> Array:
    """View x as (rows, channels), the last axis kept: the shape that row blocks cut. Copies if x is not contiguous."""
    channels = x.shape[-1] if x.ndim else 1
    return x.reshape(x.size // channels if channels else int(np.prod(x.shape[:-1])), channels)


def contiguous(x: Array) -> Array:
    """x itself if its elements lie in memory in order, as kernels need them, else a copy that does."""
    return x if x.flags.c_contiguous else x.copy(order="C")


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """The matrix product of a (M, K) and b (K, N), cut over the threads where the BLAS is left with one.

    Cut along the longer side of the result, so that each thread packs as little as it can.
    """
    rows, inner = a.shape
    columns = b.shape[1]
    if not _blas_is_single or 2.0 * rows * inner * columns < PARALLEL_FLOPS:
        return np.matmul(a, b, out=out)
    if out is None:
        out = np.empty_like(a, shape=(rows, columns), dtype=np.result_type(a, b), order="C")
    if rows >= columns:
        parallel(lambda start, stop: np.matmul(a[start:stop], b, out=out[start:stop]), rows)
    else:
        parallel(lambda start, stop: np.matmul(a, b[:, start:stop], out=out[:, start:stop]), columns)
    return out


@contextlib.contextmanager
def tuned_process() -> Iterator[None]:
    """Settings of the whole process that make training fast; for a program's main function, never for a library.

    - BLAS gets one thread, because `matmul` and attention cut the work themselves; restored on leaving.
    - glibc keeps freed memory instead of handing it back to the kernel (mallopt M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
      a fresh 12 MB array otherwise page-faults all through its first use. This one cannot be undone; it costs memory
      that the process once used and does not give back before it ends.
    """
    global _blas_is_single
    from threadpoolctl import threadpool_limits

    with contextlib.suppress(OSError, AttributeError):  # only glibc has mallopt
        libc = ctypes.CDLL(None)
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
        libc.mallopt(top_pad, 64 << 20)
    before = _blas_is_single
    with threadpool_limits(limits=1, user_api="blas"):
        _blas_is_single = True
        try:
            yield
        finally:
            _blas_is_single = before


def check_device(device: str) -> None:
    """Raise DeviceError for a device that this installation cannot use."""
    if device != "cpu":
        raise DeviceError(f"device: {device!r} cannot be used, because this version computes with NumPy; choose 'cpu'")
