"""Worker processes: a function of each unit, results in the order of the units, and few units in memory.

Every worker has a pipe of its own, so that a worker that dies is known together with the unit on which it died (a pool
of concurrent.futures only says that one of its processes is gone). A worker ends when its pipe is closed, by whatever
its parent ended with; Ctrl-C reaches the parent alone, which ends the workers.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from minillm.errors import InputError, ParallelError

U = TypeVar("U")
T = TypeVar("T")
QUEUED = 2  # units that a worker has: one to work on, and one that waits
AHEAD = 4  # units for each worker that are under way, or done and waiting for one before them


class WorkerDiedError(ParallelError):
    """A worker process that ended by itself; `unit` is what it worked on."""

    def __init__(self, unit: Any, status: int):
        from minillm.parallel.launch import ended

        super().__init__(f"a worker process {ended(status)}")
        self.unit = unit


def map_units(function: Callable[[U], T], units: Iterable[U], processes: int = 1) -> Generator[T]:
    """`function` of each unit, in the order of the units.

    One process is this one, where a debugger can stop; more are worker processes, to which `function`, units and
    results are sent by pickle. A single unit is done here too, since that is faster than starting a process. At most
    `AHEAD` units for each process are in memory. An error of `function` is raised here, with the traceback of the
    worker as a note.

    Raises: WorkerDiedError where a worker ended by itself.
    """
    if processes < 1:
        raise InputError(f"map_units: processes is {processes}; give 1 or more")
    units = iter(units)
    first = list(itertools.islice(units, 2))
    units = itertools.chain(first, units)
    if processes == 1 or len(first) < 2:
        yield from map(function, units)
        return
    workers: list[_Worker] = []
    end = atexit.register(lambda: _end(workers))  # before Python itself waits for them
    try:
        workers += (_Worker(function) for _ in range(processes))
        yield from _in_order(workers, units)
    finally:
        _end(workers)
        atexit.unregister(end)


def _in_order(workers: list[_Worker], units: Iterator[Any]) -> Iterator[Any]:
    """Give units to the workers as these have room, and yield the results in order.

    An error is raised when its unit is due, so that it is the error of the first unit that has one.
    """
    done: dict[int, tuple[bool, Any]] = {}  # results and errors that wait for those before them
    given = due = 0  # the number of the next unit to give out, and of the next result to yield
    more = True
    while more or due < given:
        while more and given - due < AHEAD * len(workers):
            worker = min(workers, key=lambda one: len(one.units))
            if len(worker.units) == QUEUED:
                break
            try:
                unit = next(units)
            except StopIteration:
                more = False
                break
            worker.give(given, unit)
            given += 1
        busy = {worker.pipe: worker for worker in workers if worker.units and not worker.died}
        for pipe in wait(list(busy)) if busy else ():
            number, succeeded, result = busy[pipe].take()  # type: ignore[index]
            done[number] = succeeded, result
            more = more and succeeded
        while due in done:
            succeeded, result = done.pop(due)
            if not succeeded:
                raise result
            yield result
            due += 1


class _Worker:
    """A process, the pipe to it, and the units that it has, with their numbers."""

    def __init__(self, function: Callable[[Any], Any]):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.units: deque[tuple[int, Any]] = deque()
        self.died = False
        self.process = context.Process(target=_work, args=(theirs, function))
        self.process.start()
        theirs.close()

    def give(self, number: int, unit: Any) -> None:
        self.units.append((number, unit))
        with contextlib.suppress(OSError):  # it has died, which `take` finds out
            self.pipe.send(unit)

    def take(self) -> tuple[int, bool, Any]:
        """The number of its first unit; True and the result, or False and the error."""
        number, unit = self.units.popleft()
        try:
            return number, *self.pipe.recv()
        except (EOFError, OSError):
            self.died = True
            self.process.join()
            return number, False, WorkerDiedError(unit, self.process.exitcode or 0)


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join()
        worker.pipe.close()
    workers.clear()


def _work(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """Answer each unit that comes through the pipe: the main function of a worker.

    A thread receives them, so that the parent never waits to send one while this process waits to send a result.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    units: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, units), daemon=True).start()
    while True:
        unit = units.get()
        try:
            answer = pickle.dumps((True, function(unit)), protocol=5)
        except Exception as error:
            answer = pickle.dumps((False, _sendable(error)))
        with contextlib.suppress(OSError):  # the parent is gone, and the thread ends this process
            pipe.send_bytes(answer)


def _receive(pipe: Connection, units: queue.SimpleQueue) -> None:
    """Put what comes into the queue, and end this process at once when the other end of the pipe is closed."""
    try:
        while True:
            units.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(0)


def _sendable(error: Exception) -> Exception:
    """The error with its traceback as a note; another in its place if it cannot be pickled."""
    error.add_note(f"in a worker process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ParallelError(f"a worker process failed with {type(error).__name__}: {error}")
    return error
