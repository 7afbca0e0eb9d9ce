"""Ranks as processes on one machine that share memory: every parallel algorithm runs on a laptop.

A group of n ranks has one segment of memory. In it each rank has a slot, where only it writes, and two counters:
`posted`, the number of exchanges for which it has written, and `done`, the number that it has read. Every collective
operation is made of exchanges, and an exchange is

    wait until all ranks are done with the exchange before, because they may still read my slot
    write my slot, and post
    wait until all ranks have posted, read their slots, and say done

A slot holds one piece; longer arrays are sent piece by piece. In an all_reduce every rank adds up its n-th part of a
piece, in the order of the ranks, and then all of them read the n sums: the bits are equal on every rank and in every
run. For send and recv each pair of ranks has a box, which the sender fills and the receiver empties.

Operations run on threads of their own, so that they go on while the caller computes: one for the collectives of a
group, in the order they were called, and one for each direction of each pair, so that no send stands before a recv.

A rank that waits also looks whether another rank has failed or has not come in time, and raises then.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.errors import ParallelError
from minillm.parallel.communicator import Alone, Communicator, Trace, bounds, check_call, check_parts, differing
from minillm.parallel.lanes import Lane, Work
from minillm.parallel.segments import BOX, LINE, SLOT, Unwatched, Watch, attach_to, counter_numbers, create_segment

CALLS = ("barrier", "all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce")
TIMEOUT = 300.0  # seconds that an operation waits for other ranks
SLOW = 20.0  # seconds after which the ranks that are waited for are named
STOPPED = 1.0  # a nap of a millisecond that lasted so many seconds was none: the process did not run


class Call(NamedTuple):
    """A collective operation: its name, what it carries, its array and its root."""

    name: str
    what: str = ""
    array: Array | None = None
    root: int = 0

    def code(self) -> tuple[int, int, int, int]:
        """The call as four numbers, to compare it with the calls of other ranks."""
        if self.array is None:
            return CALLS.index(self.name), 0, 0, 0
        return CALLS.index(self.name), self.array.nbytes, self.array.dtype.num, self.root


class SharedMemoryCommunicator(Communicator):
    """A group of processes on one machine; see `launch.connect` for how ranks come to have one.

    memory: a segment of `segment_bytes(len(ranks))`, the same for all; `ranks`: the members; `rank`: which one this is.
    timeout: the most seconds that an operation waits for the others.
    """

    def __init__(
        self,
        rank: int,
        ranks: tuple[int, ...],
        memory: Any,
        watch: Watch | None = None,
        timeout: float = TIMEOUT,
        trace: Trace | None = None,
    ):
        self.rank, self.size, self.ranks = rank, len(ranks), ranks
        self.memory, self.watch, self.timeout, self.trace = memory, watch or Unwatched(), timeout, trace
        n = self.size
        self._bytes: Array = np.ndarray(memory.size, np.uint8, memory.buf)
        counters = self._bytes[: 8 * counter_numbers(n)].view(np.int64)
        self._posted, self._done = counters[: 2 * n * LINE].reshape(2, n, LINE)[:, :, 0]
        self._calls = counters[2 * n * LINE : 3 * n * LINE].reshape(n, LINE)
        boxes = counters[3 * n * LINE :].reshape(n, n, LINE)  # by source and target
        self._written, self._read, self._announced = (boxes[:, :, i] for i in range(3))
        start = 8 * counter_numbers(n)
        self._slots = self._bytes[start : start + n * SLOT].reshape(n, SLOT)
        self._boxes = self._bytes[start + n * SLOT : start + n * SLOT + n * n * BOX].reshape(n, n, BOX)
        self._exchanges = 0
        self._lanes: dict[Any, Lane] = {}

    # --- collectives -----------------------------------------------------------------------------------------------

    def all_reduce(self, array: Array, op: str = "sum", what: str = "") -> Work:
        check_call("all_reduce", self, op, array=array)
        call = Call("all_reduce", what, array)

        def piece(start: int) -> None:
            part = array.reshape(-1)[start : start + SLOT // array.itemsize]
            slots, edges = self._slots_of(part), bounds(part.size, self.size)
            mine = slice(edges[self.rank], edges[self.rank + 1])
            with self._exchange(call, part):
                total = _reduced(slots[:, mine], op)
                self._record(call, total.nbytes)
            with self._exchange(call, total, mine):
                for source, (first, stop) in enumerate(itertools.pairwise(edges)):
                    part[first:stop] = slots[source, first:stop]
                    self._record(call, part[first:stop].nbytes, source)

        return self._in_pieces(array.size, SLOT // array.itemsize, piece)

    def reduce_scatter(self, array: Array, out: Array, op: str = "sum", what: str = "") -> Work:
        check_call("reduce_scatter", self, op, array=array, out=out)
        check_parts("reduce_scatter", self, array, out)
        call, step = Call("reduce_scatter", what, array), SLOT // array.itemsize // self.size

        def piece(start: int) -> None:
            parts = array.reshape(self.size, -1)[:, start : start + step]  # one for each rank
            with self._exchange(call, parts):
                total = _reduced(self._slots_of(parts)[:, self.rank], op)
                out.reshape(-1)[start : start + step] = total
                self._record(call, total.nbytes)

        return self._in_pieces(out.size, step, piece)

    def all_gather(self, array: Array, out: Array, what: str = "") -> Work:
        check_call("all_gather", self, array=array, out=out)
        check_parts("all_gather", self, out, array)
        call, step = Call("all_gather", what, array), SLOT // array.itemsize

        def piece(start: int) -> None:
            part = array.reshape(-1)[start : start + step]
            with self._exchange(call, part):
                out.reshape(self.size, -1)[:, start : start + step] = self._slots_of(part)
                self._record(call, part.nbytes)

        return self._in_pieces(array.size, step, piece)

    def broadcast(self, array: Array, root: int = 0, what: str = "") -> Work:
        check_call("broadcast", self, peer=root, array=array)
        call, step = Call("broadcast", what, array, root), SLOT // array.itemsize

        def piece(start: int) -> None:
            part = array.reshape(-1)[start : start + step]
            with self._exchange(call, part if self.rank == root else None):
                if self.rank != root:
                    part[...] = self._slots_of(part)[root]
                    self._record(call, part.nbytes, root)

        return self._in_pieces(array.size, step, piece)

    def reduce(self, array: Array, root: int = 0, op: str = "sum", what: str = "") -> Work:
        check_call("reduce", self, op, peer=root, array=array)
        call, step = Call("reduce", what, array, root), SLOT // array.itemsize

        def piece(start: int) -> None:
            part = array.reshape(-1)[start : start + step]
            with self._exchange(call, part):
                if self.rank == root:
                    part[...] = _reduced(self._slots_of(part), op)
                    self._record(call, part.nbytes)

        return self._in_pieces(array.size, step, piece)

    def barrier(self) -> None:
        def meet() -> None:
            with self._exchange(Call("barrier")):
                pass

        self._start("all", meet).wait()

    def _in_pieces(self, count: int, step: int, piece: Callable[[int], None]) -> Work:
        """Start an operation on `count` elements, of which a slot holds `step`."""

        def run() -> None:
            for start in range(0, max(1, count), step):
                piece(start)

        return self._start("all", run)

    def _slots_of(self, piece: Array) -> Array:
        """The slots of all ranks, as arrays of this shape and dtype: (ranks, ...)."""
        return self._slots[:, : piece.nbytes].view(piece.dtype).reshape(self.size, *piece.shape)

    @contextlib.contextmanager
    def _exchange(self, call: Call, values: Array | None = None, place: slice = slice(None)) -> Iterator[None]:
        """Write values to this rank's slot or a part of it; in the block all have written, and slots may be read."""
        me, number = self.rank, self._exchanges + 1
        self._wait_for(call, self._done, number - 1)
        if values is not None:
            start = (place.start or 0) * values.itemsize
            self._slots[me, start : start + values.nbytes].view(values.dtype).reshape(values.shape)[...] = values
        self._calls[me, :4] = call.code()
        fence()
        self._posted[me] = number
        self._wait_for(call, self._posted, number)
        if (self._calls[:, :4] != self._calls[me, :4]).any():
            calls = {rank: _told(self._calls[i].tolist()) for i, rank in enumerate(self.ranks)}
            raise differing(call.name, calls)
        yield
        fence()
        self._done[me] = self._exchanges = number

    def _wait_for(self, call: Call, counters: Array, number: int) -> None:
        """Wait until the counters of all ranks have reached `number`."""

        def missing() -> list[int]:
            return [rank for rank, count in zip(self.ranks, counters.tolist(), strict=True) if count < number]

        self._wait(call.name, lambda: counters.min() >= number, missing)

    # --- between two ranks -----------------------------------------------------------------------------------------

    def send(self, array: Array, target: int, what: str = "") -> Work:
        check_call("send", self, peer=target, array=array)
        flat, box, me = _as_bytes(array), self._boxes[self.rank, target], self.rank

        def room() -> bool:
            return self._read[me, target] == self._written[me, target]

        def run() -> None:
            for start in range(0, max(1, flat.size), BOX):
                piece = flat[start : start + BOX]
                self._wait("send", room, lambda: [self.ranks[target]])
                box[: piece.size] = piece
                self._announced[me, target] = flat.size
                fence()
                self._written[me, target] += 1

        return self._start(("to", target), run)

    def recv(self, array: Array, source: int, what: str = "") -> Work:
        check_call("recv", self, peer=source, array=array)
        flat, box, me = _as_bytes(array), self._boxes[source, self.rank], self.rank

        def arrived() -> bool:
            return self._written[source, me] > self._read[source, me]

        def run() -> None:
            for start in range(0, max(1, flat.size), BOX):
                piece = flat[start : start + BOX]
                self._wait("recv", arrived, lambda: [self.ranks[source]])
                if (announced := int(self._announced[source, me])) != flat.size:
                    raise ParallelError(
                        f"recv: rank {self.ranks[source]} sends {announced} bytes, but rank {self.ranks[me]} expects "
                        f"{flat.size}; every rank must run the same step"
                    )
                piece[...] = box[: piece.size]
                fence()
                self._read[source, me] += 1
            self._record(Call("send", what), flat.size, source)

        return self._start(("from", source), run)

    # --- groups ----------------------------------------------------------------------------------------------------

    def split(self, color: int, key: int | None = None) -> Communicator:
        mine = np.array([color, self.rank if key is None else key, self.rank], np.int64)
        everyone = np.empty((self.size, 3), np.int64)
        self.all_gather(mine, everyone, what="groups").wait()
        members = [r for c, _, r in sorted(map(tuple, everyone.tolist())) if c == color]
        ranks = tuple(self.ranks[member] for member in members)
        name, names = np.zeros(64, np.uint8), np.empty((self.size, 64), np.uint8)
        memory = None
        if members[0] == self.rank and len(members) > 1:
            memory = create_segment(len(members))
            name[: len(memory.name)] = np.frombuffer(memory.name.encode(), np.uint8)
        try:
            self.all_gather(name, names, what="groups").wait()
            if len(members) == 1:
                self.barrier()
                return AloneInJob(ranks[0], self)
            if memory is None:
                name_of_first = names[members[0]].tobytes().rstrip(b"\0").decode()
                memory = attach_to(self.ranks[self.rank], ranks[0], name_of_first, self.watch)
            self.barrier()
        finally:
            if memory is not None and members[0] == self.rank:
                memory.unlink()  # all have it; from here on it ends with the last of them
        rank = members.index(self.rank)
        return SharedMemoryCommunicator(rank, ranks, memory, self.watch, self.timeout, self.trace)

    def check(self) -> None:
        self.watch.check()

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.stop()
        self._lanes = {}
        for name in ("_bytes", "_posted", "_done", "_calls", "_written", "_read", "_announced", "_slots", "_boxes"):
            vars(self).pop(name, None)
        with contextlib.suppress(BufferError):  # somebody still has a view; the process's end frees it
            self.memory.close()

    # --- helpers ---------------------------------------------------------------------------------------

    def _start(self, lane: Any, run: Callable[[], None]) -> Work:
        if lane not in self._lanes:
            self._lanes[lane] = Lane(f"minillm-rank{self.ranks[self.rank]}-{lane}")
        return self._lanes[lane].add(run)

    def _record(self, call: Call, count: int, source: int | None = None) -> None:
        """Record `count` bytes from one rank, or from each of the others."""
        if self.trace is None:
            return
        for other in range(self.size) if source is None else (source,):
            if other != self.rank:
                self.trace.add(call.name, call.what, self.ranks[other], self.ranks[self.rank], count)

    def _wait(self, name: str, ready: Callable[[], Any], missing: Callable[[], list[int]]) -> None:
        """Wait until `ready()`; what other ranks wrote before can be read then."""
        self._poll(name, ready, missing)
        fence()

    def _poll(self, name: str, ready: Callable[[], Any], missing: Callable[[], list[int]]) -> None:
        """Call `ready` until it is true: first in a busy loop, then with naps, which leave the processor to others."""
        for _ in range(50):
            if ready():
                return
            os.sched_yield() if hasattr(os, "sched_yield") else time.sleep(0)
        nap, began = 2e-5, time.monotonic()
        looked, told = began, False
        while not ready():
            time.sleep(nap)
            nap = min(nap * 1.2, 1e-3)
            if nap >= 5e-4:
                self.watch.check()
                now = time.monotonic()
                if now - looked > STOPPED:  # this process was stopped meanwhile, and perhaps the others with it
                    began += now - looked
                looked = now
                if now > began + self.timeout:
                    late = missing()
                    here = [rank for rank in self.ranks if rank not in late]
                    raise ParallelError(
                        f"{name}: rank {self.ranks[self.rank]} waited {self.timeout:g} s for ranks "
                        f"{', '.join(map(str, late))}; ranks {', '.join(map(str, here))} have arrived; see what the "
                        "others were doing, or give them longer with --timeout"
                    )
                if now > began + SLOW and not told:
                    told = True
                    self._tell_of_slow(name, missing())

    def _tell_of_slow(self, name: str, late: list[int]) -> None:
        """Say which ranks the others wait for; the first that waits says it for all."""
        if late and self.ranks[self.rank] == next(rank for rank in self.ranks if rank not in late):
            print(
                f"{name}: rank {self.ranks[self.rank]} has waited {SLOW:g} s for ranks {', '.join(map(str, late))}, "
                f"and waits up to {self.timeout:g} s",
                file=sys.__stderr__,
                flush=True,
            )


def fence() -> None:
    """A memory barrier: other ranks see what this thread reads and writes before it before what it does afterwards.

    x86 keeps that order by itself; ARM does not. Taking a lock keeps later accesses from moving before it, and giving
    it back keeps earlier ones from moving behind it. Doing both twice lets no access pass in either direction.
    """
    lock = threading.Lock()
    for _ in range(2):
        lock.acquire()
        lock.release()


class AloneInJob(Alone):
    """A group of one rank in a job of several."""

    def __init__(self, rank: int, job: SharedMemoryCommunicator):
        super().__init__(rank)
        self.watch = job.watch

    def check(self) -> None:
        self.watch.check()


def _reduced(parts: Array, op: str) -> Array:
    """The sum, mean or maximum of the rows of `parts` (ranks, ...), in their order; sums in float32 at least."""
    if op == "max":
        return parts.max(axis=0)
    dtype = parts.dtype
    total = parts[0].astype(np.promote_types(dtype, np.float32) if dtype.kind in "fV" else dtype)
    for part in parts[1:]:
        total += part
    return (total / len(parts) if op == "mean" else total).astype(dtype, copy=False)


def _as_bytes(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


def _told(code: list[int]) -> str:
    name = CALLS[code[0]]
    return name if name == "barrier" else f"{name} of {code[1]} bytes"
