"""Cutting work on a CPU: rows into blocks that fit in the cache, blocks and matrix products over a few threads.

NumPy runs one operation at a time over a whole array. Two things make that slow, and this file removes both: each pass
over an array larger than the cache is a trip to memory, and a pass uses one core. `row_blocks` calls a formula on
blocks of rows that stay in the cache, on every core; NumPy releases the interpreter lock meanwhile.

How far cutting pays depends on the machine: waking another thread takes 10 to 150 microseconds, and a task that is
shorter is done sooner where it is. `cutting` holds the numbers that decide it, and tuning.py finds those of a machine.

Cutting changes no result of this project's own code: sums over rows are always cut in the same places and added in the
same order. A BLAS may round a part of a matrix product otherwise than the whole, in the last bit.

`MINILLM_THREADS=1` keeps everything on the calling thread, and so does the engine "plain". On a GPU nothing is cut:
`row_blocks` calls its formula once, with all rows, and `matmul` asks cuBLAS (see device.py).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from minillm.device import Array, gemm, is_on_gpu

T = TypeVar("T")
CACHE_BYTES = 768 * 1024  # of one array in a block: with fewer, threads spend their time handing each other the lock
SUM_BYTES = 512 * 1024  # an array of this size is summed in two blocks at least, whether threads share it or not


class Cutting(NamedTuple):
    """The settings of cutting: the number of threads, and the sizes from which work is shared.

    The sizes are those at which two threads take as long as one, where a hand-over takes 50 us.
    """

    threads: int  # row blocks, attention's heads and, where blas_threads is 1, matrix products are spread over these
    blas_threads: int | None = None  # 1: matrix products are cut here. None: the BLAS uses as many as it likes
    parallel_bytes: int = 512 * 1024  # a smaller array stays on the calling thread
    parallel_flops: int = 16_000_000  # and so does a smaller matrix product


def core_count() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count() -> int:
    """Number of threads that MINILLM_THREADS asks for; by default all cores, or one for the plain engine."""
    cores = 1 if os.environ.get("MINILLM_ENGINE") == "plain" else core_count()
    asked = os.environ.get("MINILLM_THREADS", str(cores))
    if asked.isdigit() and int(asked) >= 1:
        return int(asked)
    # Nothing to raise an error to: this is read while minillm is imported.
    warnings.warn(
        f"MINILLM_THREADS is {asked!r}; set it to a number of threads, 1 or more; using {cores}", stacklevel=2
    )
    return cores


class Mode(NamedTuple):
    """The mode of a thread, and of the workers to which it hands work; `abstract` and `observe_products` set it."""

    abstract: bool = False
    on_products: tuple[Callable[[tuple[Product, ...]], Any], ...] = ()


_mode: contextvars.ContextVar[Mode] = contextvars.ContextVar("mode", default=Mode())  # noqa: B039


@contextlib.contextmanager
def _mode_with(mode: Mode) -> Iterator[None]:
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def abstract() -> contextlib.AbstractContextManager[None]:
    """Do hardly any work within this context, but allocate the memory that it always takes.

    Matrix products are left out, each thread stops after its first block of rows or its first part, and only the last
    of attention's blocks of queries is computed. Shapes and dtypes are right; the numbers mean nothing.
    """
    return _mode_with(_mode.get()._replace(abstract=True))


def observe_products(function: Callable[[tuple[Product, ...]], Any]) -> contextlib.AbstractContextManager[None]:
    """Call `function(products)` within this context before the products of each call of `matmuls` are made."""
    mode = _mode.get()
    return _mode_with(mode._replace(on_products=(*mode.on_products, function)))


def blocks_to_run(blocks: Sequence[T]) -> Sequence[T]:
    """All these blocks, the largest at the end; while work is abstract, the last one alone."""
    return blocks[-1:] if _mode.get().abstract else blocks


class _Worker(threading.Thread):
    """A thread that runs the functions handed to it; created on first use."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="minillm-worker")
        self.tasks: queue.SimpleQueue = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        np.seterr(all="ignore")  # as the engine has it on the thread that hands out the work
        while True:
            context, function, start, stop, done = self.tasks.get()
            if wake_up_delay:
                time.sleep(wake_up_delay)
            try:
                context.run(function, start, stop)
                result = None
            except BaseException as error:  # handed to the caller, who raises it
                result = error
            # The function holds arrays: forget it before reporting, or they would live until the next task.
            del function
            done.put(result)


_workers: list[_Worker] = []
_workers_pid = 0
_pool_lock = threading.Lock()
cutting = Cutting(thread_count())  # how work is cut now; `cut_by` changes it
_one_thread = False  # in the plain engine, which a debugger steps through
wake_up_delay = 0.0  # seconds that a woken thread sleeps first: benchmarks play a machine with slow hand-overs by it


@contextlib.contextmanager
def cut_by(way: Cutting) -> Iterator[None]:
    """Cut work by `way`, with as many threads of the BLAS as it says, until the block ends; for all threads."""
    global cutting
    before, cutting = cutting, way
    try:
        with contextlib.nullcontext() if way.blas_threads == before.blas_threads else _blas_limited(way.blas_threads):
            yield
    finally:
        cutting = before


def is_abstract() -> bool:
    """True where work takes its memory and is hardly done (see `abstract`)."""
    return _mode.get().abstract


def keep_to_one_thread(only: bool) -> None:
    """Run every part of the work on the calling thread, whatever `cutting` says, or no longer."""
    global _one_thread
    _one_thread = only


def _blas_limited(threads: int | None) -> contextlib.AbstractContextManager:
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=threads, user_api="blas")


@functools.cache
def _blas_libraries() -> list[Any]:
    """The BLAS libraries of this process, with functions that read and set their numbers of threads.

    None where threadpoolctl is absent, which the engine does not need: the BLAS then keeps its threads.
    """
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return []
    return ThreadpoolController().select(user_api="blas").lib_controllers


def _pool() -> list[_Worker]:
    global _workers, _workers_pid
    if _workers_pid != os.getpid():  # threads do not survive a fork
        _workers, _workers_pid = [], os.getpid()
    while len(_workers) < cutting.threads - 1:
        _workers.append(_Worker())
    return _workers[: cutting.threads - 1]


def parallel(function: Callable[[int, int], Any], count: int) -> None:
    """Call `function(start, stop)` on equal ranges that cover `range(count)`, one per thread, and wait for all.

    The first exception that a range raised is raised here, after every range has ended.
    """
    _share(function, min(cutting.threads, count) if _mode.get().abstract else count)


def _share(function: Callable[[int, int], Any], count: int) -> None:
    parts = 1 if _one_thread else min(cutting.threads, count)
    if parts <= 1 or not _pool_lock.acquire(blocking=False):  # the pool is taken: we are inside another section
        function(0, count)
        return
    # A BLAS that shares a product among its own threads is called by one thread at a time here: several have been
    # given each other's numbers by it (numpy#29391, numpy#31618).
    libraries = [] if cutting.blas_threads == 1 else _blas_libraries()
    blas_threads = [library.get_num_threads() for library in libraries]
    try:
        for library in libraries:
            library.set_num_threads(1)
        bounds = [count * i // parts for i in range(parts + 1)]
        workers = _pool()[: parts - 1]
        done: queue.SimpleQueue = queue.SimpleQueue()  # of this call alone: an interrupted wait leaves nothing behind
        for worker, start, stop in zip(workers, bounds[1:-1], bounds[2:], strict=True):
            context = contextvars.copy_context()  # so that the caller's np.errstate holds there too
            worker.tasks.put((context, function, start, stop, done))
        errors: list[BaseException | None] = []
        try:
            function(0, bounds[1])
        except BaseException as raised:
            errors.append(raised)
        finally:
            errors.extend(done.get() for _ in workers)
    finally:
        for library, threads in zip(libraries, blas_threads, strict=True):
            library.set_num_threads(threads)
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
    if is_on_gpu(array):
        formula(slice(0, rows))
        return
    block = max(1, CACHE_BYTES // max(1, row_bytes))

    def run(start: int, stop: int) -> None:
        last = min(start + block, stop) if _mode.get().abstract else stop
        for first in range(start, last, block):
            formula(slice(first, min(first + block, stop)))

    if rows * row_bytes < cutting.parallel_bytes:
        run(0, rows)
    else:
        _share(run, rows)


def sum_over_blocks(formula: Callable[[slice], tuple[Array, ...]], array: Array) -> tuple[Array, ...]:
    """Like `row_blocks`, for a formula that returns sums over its rows: add the sums of all blocks, in row order.

    The array's size alone decides where blocks end, so the sums are the same bits on any number of threads.
    In float64: one after the other in float32, the sums of many blocks would lose their last digits (see sums.py).
    """
    rows = len(array)
    count = 1 if is_on_gpu(array) else min(rows, sum_blocks(array.nbytes))
    if count <= 1:
        return formula(slice(0, rows))
    bounds = [rows * i // count for i in range(count + 1)]
    partial: dict[int, tuple[Array, ...]] = {}

    def run(start: int, stop: int) -> None:
        for i in range(start, start + 1 if _mode.get().abstract else stop):
            partial[i] = formula(slice(bounds[i], bounds[i + 1]))

    if array.nbytes < cutting.parallel_bytes:
        run(0, count)
    else:
        _share(run, count)
    first, *rest = (partial[i] for i in sorted(partial))
    totals = [sums.astype(np.float64) for sums in first]
    for sums in rest:
        for total, addend in zip(totals, sums, strict=True):
            total += addend
    return tuple(total.astype(sums.dtype) for total, sums in zip(totals, first, strict=True))


def sum_blocks(size: int) -> int:
    """Number of blocks in which an array of so many bytes is summed: a power of two, which threads can share evenly."""
    fit_the_cache = -(-size // CACHE_BYTES)
    return max(1 << (fit_the_cache - 1).bit_length() if fit_the_cache else 1, 2 if size >= SUM_BYTES else 1)


def elementwise(function: Callable, *arrays: Any) -> Array:
    """`function(*arrays)`, in row blocks on every thread where that is a matter of cutting: large arrays, all alike.

    `function` is a ufunc, or takes `out` as one does.
    """
    first = arrays[0]
    if type(first) is not np.ndarray or first.nbytes < cutting.parallel_bytes or first.dtype.kind != "f":
        return function(*arrays)
    for x in arrays:
        if type(x) is not np.ndarray or x.shape != first.shape or x.dtype != first.dtype or not x.flags.c_contiguous:
            return function(*arrays)
    out = np.empty_like(first)
    y, *xs = (as_rows(array) for array in (out, *arrays))
    row_blocks(lambda rows: function(*(x[rows] for x in xs), out=y[rows]), y)
    return out


def as_rows(x: Array) -> Array:
    """View x as (rows, channels), the last axis kept: the shape that row blocks cut. Copies if x is not contiguous."""
    channels = x.shape[-1] if x.ndim else 1
    return x.reshape(x.size // channels if channels else int(np.prod(x.shape[:-1])), channels)


def contiguous(x: Array) -> Array:
    """x itself if its elements lie in memory in order, as kernels need them, else a copy that does."""
    return x if x.flags.c_contiguous else x.copy(order="C")


def as_array(x: Any) -> Array:
    """x itself if it is an array, on whichever device, else the NumPy array of it."""
    return x if is_on_gpu(x) else np.asarray(x)


def stable_argsort(x: Array) -> Array:
    """The indices that sort x, equal elements in the order in which they came."""
    return x.argsort() if is_on_gpu(x) else x.argsort(kind="stable")  # CuPy has no other, and no name for it


def row_max(x: Array) -> Array:
    """The largest of the last axis, kept with size 1. To find where it is takes a fifth of the time of np.max."""
    if is_on_gpu(x):
        return x.max(axis=-1, keepdims=True)
    place = x.argmax(axis=-1)
    place += np.arange(0, x.size, x.shape[-1]).reshape(place.shape)
    return x.take(place)[..., None]


class Product(NamedTuple):
    """The matrix product of a (..., M, K) and b (..., K, N), and what becomes of it.

    Of two matrices it may be written to `out`, or added to it with `add`, or get a `bias` (N,) added to each row.
    """

    a: Array
    b: Array
    out: Array | None = None
    add: bool = False
    bias: Array | None = None

    def unfilled(self) -> Array:
        """Memory for the result, and for what is added to `out`, with any numbers in it."""
        stack = np.broadcast_shapes(self.a.shape[:-2], self.b.shape[:-2])
        if self.out is None or self.add:
            made = np.empty((*stack, self.a.shape[-2], self.b.shape[-1]), np.result_type(self.a, self.b))
        return made if self.out is None else self.out

    def on_gpu(self) -> Array:
        """The result, made by cuBLAS."""
        a, b, out, add, bias = self
        if a.ndim == b.ndim == 2:
            result = gemm(a, b, out, add)
            return result if bias is None else np.add(result, bias, out=result)
        # CuPy has no products of stacks of 16-bit numbers.
        exact = np.promote_types(a.dtype, np.float32)
        return np.matmul(a.astype(exact, copy=False), b.astype(exact, copy=False)).astype(a.dtype, copy=False)

    def compute(self, out: Array, part: slice = slice(None)) -> None:
        """Write part of the result of two matrices to `out`: along its longer side, so that little is packed twice."""
        a, b, _, add, bias = self
        if out.shape[0] >= out.shape[1]:
            a, out = a[part], out[part]
        else:
            b, out, bias = b[:, part], out[:, part], None if bias is None else bias[part]
        if add:
            out += np.matmul(a, b)
        else:
            np.matmul(a, b, out=out)
        if bias is not None:
            out += bias


def product_flops(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """FLOPs of the product of arrays of these shapes: two for every multiplication and addition."""
    return 2.0 * math.prod(np.broadcast_shapes(a[:-2], b[:-2])) * a[-2] * a[-1] * b[-1]


def matmul(a: Array, b: Array) -> Array:
    """The product of the last two axes of a (..., M, K) and b (..., K, N)."""
    return matmuls(Product(a, b))[0]


def matmuls(*products: Product) -> list[Array]:
    """Matrix products that do not wait for each other.

    On a CPU each product of two matrices is cut over the threads, where the BLAS is left with one, and all are handed
    over together: a hand-over takes as long as a product of 256 x 256 matrices.
    """
    mode = _mode.get()
    for function in mode.on_products:
        function(products)
    if mode.abstract:
        return [product.unfilled() for product in products]
    if is_on_gpu(products[0].a):
        return [product.on_gpu() for product in products]
    outs, flops = [], 0.0
    for a, b, out, *_ in products:
        if a.ndim != 2 or b.ndim != 2:
            return [np.matmul(product.a, product.b) for product in products]
        if out is None:
            out = np.empty((a.shape[0], b.shape[1]), a.dtype if a.dtype == b.dtype else np.result_type(a, b))
        outs.append(out)
        flops += 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
    if cutting.blas_threads != 1 or flops < cutting.parallel_flops:
        for product, out in zip(products, outs, strict=True):
            product.compute(out)
        return outs

    threads = cutting.threads

    def share(start: int, stop: int) -> None:
        for product, out in zip(products, outs, strict=True):
            length = max(out.shape)
            product.compute(out, slice(length * start // threads, length * stop // threads))

    parallel(share, threads)
    return outs
