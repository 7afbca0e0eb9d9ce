"""Tune a process to its machine: measure the hand-over between threads, and find the fastest way of cutting work.

`tuned_process` is for a program's main function. It measures how long it takes to hand work to another thread and sets
the sizes from which work is shared by it. A long training then tries whole ways of cutting on its own model, with
`fastest_way`: which one wins depends on the machine and on the model, and cannot be told from the hand-over alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from minillm import backend
from minillm.backend import Cutting, cut_by

HAND_OVER = 50e-6  # seconds for which the sizes of `Cutting` hold
REST = 100e-6  # seconds between the measured hand-overs: an idle core takes longer to wake
BLAS_AWAKE = 0.03  # seconds for which the BLAS's threads wait awake after a product, and keep a core busy
WAIT = "OPENBLAS_THREAD_TIMEOUT"  # a thread of OpenBLAS waits awake for 2^this many ticks of the processor's clock
SHORT, LONG = 18, 26  # a tenth of a millisecond; OpenBLAS's own, 25 milliseconds
READS_AGAIN = "openblas_read_env", "blas_thread_shutdown_"  # functions of OpenBLAS
SLOWER = 3.0, 1.25  # a way so many times as slow as the fastest is dropped: after the first round, and later on
GAIN = 1.02  # the first way is kept unless another is this many times as fast


class Choice(NamedTuple):
    """The chosen way of cutting, by its name, and the ways that were tried."""

    name: str
    cutting: Cutting
    seconds: dict[str, float]  # of a step, for each way that was tried: the median

    def __str__(self) -> str:
        if not self.seconds:
            return self.name
        others = ", ".join(f"{name} {1e3 * s:.3g} ms" for name, s in self.seconds.items() if name != self.name)
        return f"{self.name}, {1e3 * self.seconds[self.name]:.3g} ms a step (others: {others})"

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return {"name": self.name, "cutting": self.cutting._asdict(), "seconds": self.seconds}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Choice:
        """The inverse of to_json."""
        return cls(content["name"], Cutting(**content["cutting"]), content["seconds"])


@contextlib.contextmanager
def tuned_process(cutting: Cutting | None = None) -> Iterator[None]:
    """Settings of the whole process that make training fast; for a program's main function, never for a library.

    They do not help where text is generated token by token: the BLAS's own threads, which wait awake, are faster there.

    - Work is cut by `cutting`; by default over our own threads, from the sizes on that the hand-over between threads
      gives, which is measured here and takes a millisecond or two.
    - The BLAS gets as many threads as that says, mostly one.
    - The threads of OpenBLAS, where it has several, wait awake for a tenth of a millisecond after a product, and then
      sleep. They do so for 25 otherwise, and keep a core busy that our own threads need. All this is undone on leaving.
    - glibc keeps freed memory instead of handing it back to the kernel (mallopt M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
      a fresh 12 MB array otherwise page-faults all through its first use. This cannot be undone; the process keeps
      the memory that it once used until it ends.
    """
    with contextlib.suppress(OSError, AttributeError):  # only glibc has mallopt
        libc = ctypes.CDLL(None)
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
        libc.mallopt(top_pad, 64 << 20)
    with short_waits(), cut_by(cutting or own_choice().cutting):
        yield


@contextlib.contextmanager
def short_waits() -> Iterator[None]:
    """Have the threads of OpenBLAS sleep soon after a product, until the block ends.

    OpenBLAS reads the time from OPENBLAS_THREAD_TIMEOUT when it is loaded, which is before a program can set it. Two of
    its functions make it read the variable again, and start its threads anew. Nothing happens where it lacks them, or
    where the variable is set already. No other thread may use the BLAS meanwhile.
    """
    from threadpoolctl import threadpool_info

    found = [ctypes.CDLL(pool["filepath"]) for pool in threadpool_info() if pool["internal_api"] == "openblas"]
    libraries = [library for library in found if all(hasattr(library, name) for name in READS_AGAIN)]
    if WAIT in os.environ or not libraries:
        yield
        return

    def wait(exponent: int) -> None:
        os.environ[WAIT] = str(exponent)
        for library in libraries:
            for name in READS_AGAIN:
                library[name]()

    wait(SHORT)
    try:
        yield
    finally:
        wait(LONG)
        del os.environ[WAIT]


def measured_hand_over(repeats: int = 9) -> float:
    """Median seconds of handing an empty task to every thread and waiting for all, each time after a short rest."""

    def nothing(start: int, stop: int) -> None:
        pass

    threads = backend.cutting.threads
    backend.parallel(nothing, threads)  # starts the threads
    seconds = []
    for _ in range(repeats):
        rested = time.perf_counter() + REST
        while time.perf_counter() < rested:
            pass  # awake, like a thread that computes
        start = time.perf_counter()
        backend.parallel(nothing, threads)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def own_threads(threads: int, hand_over: float = HAND_OVER) -> Cutting:
    """Cut everything over our own threads, from sizes on that are proportional to the hand-over.

    The hand-over counts in steps of a factor of two, so that the noise of a measurement seldom changes how work is cut.
    """
    steps = round(math.log2(max(hand_over, 1e-9) / HAND_OVER))
    factor = 2.0 ** min(max(steps, -2), 5)  # from 12 us, below which Python's own time counts, to 1.6 ms
    whole = Cutting(threads, blas_threads=1)
    return whole._replace(
        parallel_bytes=int(whole.parallel_bytes * factor), parallel_flops=int(whole.parallel_flops * factor)
    )


def own_choice(threads: int | None = None) -> Choice:
    """Our own threads, as many as given or as hold now, from the sizes on that this machine's hand-over gives."""
    threads = threads or backend.cutting.threads
    with cut_by(backend.cutting._replace(threads=threads)):
        return Choice(f"{threads} own threads", own_threads(threads, measured_hand_over()), {})


def ways_of_cutting(own: Choice) -> dict[str, Cutting]:
    """The ways that `fastest_way` tries, each with a name; the first is the one that holds where nothing is tried."""
    threads, _, parallel_bytes, parallel_flops = own.cutting
    ways = {own.name: own.cutting}
    if threads > 1:
        ways |= {
            f"{threads} own threads for large tasks": Cutting(threads, 1, 4 * parallel_bytes, 4 * parallel_flops),
            f"{threads} own threads, the BLAS's for products": own.cutting._replace(blas_threads=threads),
            f"{threads} threads of the BLAS alone": Cutting(1, blas_threads=threads),
            "one thread": own_threads(1),
        }
    return ways


def fastest_way(
    step: Callable[[], object],
    ways: dict[str, Cutting],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Time `step` under each way in turn, `rounds` times, and keep the way with the least median.

    The ways take turns, so that other work on the machine meets all alike, and slow ones are dropped on the way. Each
    has a step that is not timed first: it finds the threads asleep and the BLAS with other threads, as no step of a
    training does. The first way is kept unless the other was faster in the median of the rounds that had both.
    """
    step()  # makes what is made once
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    left = list(ways)
    for number in range(rounds):
        for name in left:
            with cut_by(ways[name]):
                time.sleep(BLAS_AWAKE)
                step()
                start = clock()
                step()
                seconds[name].append(clock() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        slowest = SLOWER[min(number, 1)] * min(medians.values())
        left = [name for name in left if medians[name] <= slowest]
        if len(left) == 1:
            break
    first, best = next(iter(ways)), min(left, key=medians.__getitem__)
    gain = statistics.median(slow / fast for slow, fast in zip(seconds[first], seconds[best], strict=False))
    kept = best if gain > GAIN else first
    return Choice(kept, ways[kept], medians)
