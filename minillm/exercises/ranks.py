"""Ranks as threads of one process, for exercises: messages are counted, and ranks that all wait are told so.

Each rank has the communicator of the engine (parallel/communicator.py), so what is written here runs on real processes
and GPUs as well. A message is copied when it is sent. An array that is received is filled by `wait()`, not before.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np

from minillm.backend import Array
from minillm.parallel.communicator import DONE, Communicator, Work, check_call, check_parts


class Deadlock(Exception):
    """Every rank waits for another one."""


class Waiting:
    """The Work of an operation that is done by `wait`."""

    def __init__(self, finish: Callable[[], None]):
        self.finish: Callable[[], None] | None = finish

    def wait(self) -> None:
        if self.finish is not None:
            finish, self.finish = self.finish, None
            finish()


class Group:
    """The messages under way between the ranks, and which ranks can still go on."""

    def __init__(self, size: int):
        self.size = size
        self.changed = threading.Condition()
        self.mail: dict[tuple[int, int], deque[Array]] = {}
        self.waiting: dict[int, tuple[Callable[[], bool], str]] = {}  # what each waiting rank needs, in words too
        self.ended = 0
        self.sent: Counter[int] = Counter()  # elements, by rank
        self.stopped: str | None = None

    def wait_for(self, rank: int, ready: Callable[[], bool], what: str) -> None:
        """Return when `ready()`; Deadlock if no rank can go on any more. The condition is held."""
        self.waiting[rank] = ready, what
        self.look()
        while not ready() and self.stopped is None:
            self.changed.wait()
        self.waiting.pop(rank, None)
        if self.stopped is not None:
            raise Deadlock(self.stopped)

    def look(self) -> None:
        """Wake all ranks, and stop them if each one has ended or waits for what will not come."""
        stuck = [rank for rank, (ready, _) in self.waiting.items() if not ready()]
        if stuck and len(stuck) + self.ended == self.size:
            self.stopped = "no rank can go on: " + "; ".join(f"rank {r} waits for {self.waiting[r][1]}" for r in stuck)
        self.changed.notify_all()


class Rank(Communicator):
    """The place of a rank in a Group."""

    def __init__(self, group: Group, rank: int):
        self.group, self.rank, self.size, self.ranks = group, rank, group.size, tuple(range(group.size))

    def send(self, array: Array, target: int, what: str = "") -> Work:
        check_call("send", self, peer=target)
        with self.group.changed:
            self.group.mail.setdefault((self.rank, target), deque()).append(np.array(array))
            self.group.sent[self.rank] += np.size(array)
            self.group.look()
        return DONE

    def recv(self, array: Array, source: int, what: str = "") -> Work:
        check_call("recv", self, peer=source)
        return Waiting(lambda: self._fill(array, source))

    def _fill(self, array: Array, source: int) -> None:
        with self.group.changed:
            box = self.group.mail.setdefault((source, self.rank), deque())
            self.group.wait_for(self.rank, lambda: bool(box), f"a message of rank {source}")
            array[...] = box.popleft()

    def all_reduce(self, array: Array, op: str = "sum", what: str = "") -> Work:
        check_call("all_reduce", self, op, array=array)
        array[...] = self._reduced(array, op)
        self._count(2 * array.size // self.size)
        return DONE

    def reduce_scatter(self, array: Array, out: Array, op: str = "sum", what: str = "") -> Work:
        check_call("reduce_scatter", self, op, array=array)
        check_parts("reduce_scatter", self, array, out)
        out[...] = self._reduced(array, op).reshape(self.size, -1)[self.rank].reshape(out.shape)
        self._count(out.size)
        return DONE

    def all_gather(self, array: Array, out: Array, what: str = "") -> Work:
        check_call("all_gather", self, array=array)
        check_parts("all_gather", self, out, array)
        out.reshape(self.size, -1)[...] = np.stack([part.reshape(-1) for part in self._exchanged(array)])
        self._count(array.size)
        return DONE

    def _count(self, part: int) -> None:
        with self.group.changed:
            self.group.sent[self.rank] += (self.size - 1) * part

    def _reduced(self, array: Array, op: str) -> Array:
        reduce: Any = {"sum": np.sum, "mean": np.mean, "max": np.max}[op]
        return reduce(np.stack(self._exchanged(array)), axis=0)

    def _exchanged(self, array: Array) -> list[Array]:
        """The arrays of all ranks; nothing is counted, as a collective operation sends along a ring."""
        with self.group.changed:
            for target in range(self.size):
                self.group.mail.setdefault((self.rank, target), deque()).append(np.array(array))
            self.group.look()
        found = [np.empty_like(array) for _ in range(self.size)]
        for source, place in enumerate(found):
            self._fill(place, source)
        return found


def run_ranks(size: int, function: Callable[[Communicator], Any]) -> tuple[list[Any], list[int]]:
    """Run a function on every rank at once; returns their results, and the elements that each of them sent.

    Raises: the exception of the first rank that failed; Deadlock only if nothing else is wrong.
    """
    group = Group(size)
    results: list[Any] = [None] * size
    errors: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        try:
            with np.errstate(all="ignore"):  # a thread begins with NumPy's own settings
                results[rank] = function(Rank(group, rank))
        except (Exception, SystemExit) as error:
            errors[rank] = error
        with group.changed:
            group.ended += 1
            group.look()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(errors.values(), key=lambda error: isinstance(error, Deadlock)):
        raise error
    return results, [group.sent[rank] for rank in range(size)]
