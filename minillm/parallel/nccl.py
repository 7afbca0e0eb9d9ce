"""Ranks as processes with a GPU each, which talk through NVIDIA's NCCL, called directly by CuPy's thin binding.

NCCL runs an operation as a kernel on a CUDA stream: the call returns at once, and the kernel ends when all ranks of its
group have come to theirs. Each group here has a stream of its own, so that gradients travel while backward goes on.
Two events keep the order, and the host waits for neither:

    what the current stream was given before the call   ->  the operation, on the group's stream
    the operation                                       ->  what the current stream is given after `Work.wait()`

**send and recv do not stand in each other's way.** On one NCCL communicator operations run in the order of their calls,
and a send ends when the other rank has come to its recv. Two ranks that both send first and then receive, as
neighbours in a pipeline do, would wait for ever. NCCL's own answer is to start both in one group, but a rank does not
always know what it will receive when it sends. So each direction between two neighbours is a lane: an NCCL communicator
of those two ranks, with a stream of its own. Neighbours are rank i and rank i + 1, and the last and the first; each
rank is in four lanes at most, in a group of any size. `ncclCommSplit` makes them, for many disjoint pairs at once:

    first 0-1, 2-3, ..., then 1-2, 3-4, ..., and in a ring of odd length the last pair by itself; once per direction

Ranks that are not neighbours can send, too: over the communicator of the whole group, one after another with its
collectives, where all that was said of waiting for ever holds.

**A rank that fails** leaves the others in a kernel that never ends, and the host in a wait for that kernel. The job
knows (see rendezvous.py): it calls `abort`, NCCL's kernels end, and the next call here raises the job's error, before
anything that was computed meanwhile is used. An operation that takes longer than the timeout ends the same way.

Sums are made by NCCL in an order of its own: equal on all ranks, and in every run on the same machines, but not bit by
bit those of shared_memory.py.

Sources: NCCL's user guide (Group Calls; Point-to-point communication; Fault Tolerance; In-place Operations), and
CuPy 14's `cupy_backends/cuda/libs/nccl.pyx`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from minillm.backend import Array
from minillm.device import check_device, is_on_gpu
from minillm.errors import DeviceError, DtypeError, InputError, ParallelError
from minillm.parallel.communicator import (
    DONE,
    Alone,
    Communicator,
    Trace,
    Work,
    bounds,
    check_call,
    check_parts,
)

TIMEOUT = 300.0  # seconds that an operation may take, with all that it waits for
NO_COLOR = -1  # NCCL_SPLIT_NOCOLOR: takes part in a split, but is in none of the new groups
# What NCCL can reduce; everything else is only moved, as bytes.
DTYPES = "int8 uint8 int32 uint32 int64 uint64 float16 float32 float64 bfloat16".split()
OPS = {"sum": "NCCL_SUM", "mean": "NCCL_AVG", "max": "NCCL_MAX"}
FAR_CAUSES = (1, 2, 6)  # statuses of NCCL that another rank's end can have: CUDA, system and remote errors


class Job(Protocol):
    """The part of rendezvous.Job that a communicator uses."""

    rank: int
    size: int

    def share(self, value: bytes) -> bytes:
        """Rank 0's value, on every rank."""

    def check(self) -> None:
        """Raise ParallelError if a rank has failed."""

    def on_failure(self, callback: Callable[..., None]) -> None:
        """Call `callback` on another thread when a rank has failed."""


def connect(job: Job, local_rank: int | None, trace: Trace | None = None, timeout: float = TIMEOUT) -> NcclCommunicator:
    """The communicator of all ranks of the job; makes GPU number `local_rank` of this machine the current one.

    Every rank calls it. timeout: the most seconds that an operation may take.
    With `local_rank` None arrays are NumPy's, for a stand-in for NCCL that works on host memory.
    Raises: DeviceError without CuPy, NCCL or that GPU; ParallelError where ranks cannot be connected.
    """
    cuda = None
    if local_rank is not None:
        # Streams that share one of the GPU's queues wait for each other; 32 is the most it has, and 8 what it takes.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
        check_device(f"cuda:{local_rank}")
        cuda = _cupy().cuda
        cuda.Device(local_rank).use()
    try:
        from cupy.cuda import nccl

        if not nccl.available:
            raise ImportError("libnccl.so.2 is not there")
    except ImportError as error:
        raise DeviceError(
            f"connect: several GPUs need NCCL, and CuPy does not find it ({str(error).splitlines()[0]}); "
            "pip install nvidia-nccl-cu13 (or -cu12, as your CuPy)"
        ) from None
    party = Party(job, nccl, cuda, timeout)
    name = job.share(nccl.get_unique_id() if job.rank == 0 else b"")
    with party.calling("connect"):
        comm = nccl.NcclCommunicator(job.size, name, job.rank)
    return NcclCommunicator(party, comm, job.rank, tuple(range(job.size)), trace)


def _cupy() -> Any:
    import cupy

    return cupy


class Party:
    """State that all communicators of this process share: the job, the library, the GPU, and whether it was aborted."""

    def __init__(self, job: Job, nccl: Any, cuda: Any, timeout: float):
        self.job, self.nccl, self.cuda, self.timeout = job, nccl, cuda, timeout
        self.device = None if cuda is None else cuda.Device()  # the current one
        self.lines: list[Line] = []
        self.error: ParallelError | None = None  # of an operation that took too long
        self.lock = threading.Lock()  # held in calls of NCCL, for none may use a communicator that is being aborted
        self.closed = threading.Event()
        job.on_failure(self.abort)
        atexit.register(self.abort)  # a communicator that is left to Python's end waits for what is under way
        threading.Thread(target=self._watch, name="minillm-nccl-watch", daemon=True).start()

    def check(self) -> None:
        """Raise ParallelError if a rank of the job has failed, or an operation took too long."""
        self.job.check()
        if self.error is not None:
            raise self.error

    def abort(self, *_: object) -> None:
        """End every operation that is under way, and all communicators."""
        self.close()
        # A call that waits for another rank within NCCL does not give the lock back; then it is what must be ended.
        locked = self.lock.acquire(timeout=1.0)
        try:
            for line in list(self.lines):
                line.comm.abort()
        finally:
            if locked:
                self.lock.release()

    def close(self) -> None:
        """Stop watching."""
        self.closed.set()
        atexit.unregister(self.abort)

    @contextlib.contextmanager
    def calling(self, function: str) -> Iterator[None]:
        """A context in which NCCL is called: its error is replaced by that of the job, if a rank has failed."""
        with self.lock:
            self.check()
            try:
                yield
            except self.nccl.NcclError as error:
                self._wait_for_news(5.0 if error.status in FAR_CAUSES else 0.0)
                raise ParallelError(
                    f"{function}: NCCL fails on rank {self.job.rank} ({error}); the ranks must call the same, with "
                    "arrays alike; NCCL_DEBUG=WARN in the environment has NCCL say more"
                ) from error

    def _wait_for_news(self, seconds: float) -> None:
        """Raise the job's error, if it comes within so many seconds: NCCL may see a rank's end before the job does."""
        deadline = time.monotonic() + seconds
        self.check()
        while time.monotonic() < deadline:
            time.sleep(0.02)
            self.check()

    def _watch(self) -> None:
        """End everything when an operation takes longer than the timeout."""
        if self.device is not None:
            self.device.use()  # a new thread begins on GPU 0, and would take memory there
        while not self.closed.wait(min(1.0, self.timeout / 4)):
            late = [work for line in list(self.lines) for work in line.works if work.is_late(self.timeout)]
            if late and self.error is None:
                self.error = ParallelError(
                    f"{late[0].function}: rank {self.job.rank} waited {self.timeout:g} s for the others of ranks "
                    f"{', '.join(map(str, late[0].line.ranks))}; see what they were doing, or give them longer with "
                    "--timeout"
                )
                self.abort()


class Line:
    """An NCCL communicator of some ranks, and the stream on which its operations run one after another."""

    def __init__(self, party: Party, comm: Any, ranks: tuple[int, ...]):
        self.party, self.comm, self.ranks = party, comm, ranks
        self.stream = None if party.cuda is None else party.cuda.Stream(non_blocking=True)
        self.works: list[NcclWork] = []  # under way
        party.lines.append(self)

    def start(self, function: str, call: Callable[[int], None], *arrays: Array) -> Work:
        """Start an operation by `call(stream)`; it runs after everything that the current stream was given so far."""
        with self.party.calling(function):
            if self.stream is None:
                event = HostEvent()
                call(event.address)
            else:
                self.stream.wait_event(self.party.cuda.get_current_stream().record())
                call(self.stream.ptr)
                event = self.stream.record()
        work = NcclWork(self, function, event, arrays)
        self.works = [work, *(other for other in self.works if not other.event.done)]
        return work

    def close(self) -> None:
        """End the communicator; what is under way ends first."""
        self.party.lines.remove(self)
        self.comm.destroy()


class NcclWork:
    """An operation on a line. It holds its arrays: their memory must not be used for others before it has ended."""

    def __init__(self, line: Line, function: str, event: Any, arrays: tuple[Array, ...]):
        self.line, self.function, self.event, self.arrays = line, function, event, arrays
        self.since = time.monotonic()

    def wait(self) -> None:
        party = self.line.party
        with party.calling(self.function):
            self.line.comm.check_async_error()
        if party.cuda is not None:
            party.cuda.get_current_stream().wait_event(self.event)
        while party.cuda is None and not self.event.done:
            time.sleep(5e-5)
            with party.calling(self.function):
                self.line.comm.check_async_error()
        self.arrays = ()

    def is_late(self, timeout: float) -> bool:
        """True if the operation has run for more seconds than `timeout`."""
        return time.monotonic() - self.since > timeout and not self.event.done


class HostEvent:
    """The stream of a stand-in that works on host memory: the address of a number that is 1 after the operation."""

    def __init__(self) -> None:
        self.number = np.zeros(1, np.int32)
        self.address = self.number.ctypes.data

    @property
    def done(self) -> bool:
        return bool(self.number[0])


class NcclCommunicator(Communicator):
    """A group of GPUs, one a process; made by `connect`, and from it by `split`.

    Reductions are of float32, float64, bfloat16, float16 and integers; everything else takes any dtype.
    Its trace has what a ring moves, as coming from the rank before this one, at the time of the call: all_reduce
    2 (n - 1) / n N, reduce_scatter and all_gather (n - 1) / n N of the whole, broadcast N, reduce N, where N is the
    array's bytes. NCCL is free to go other ways (trees, NVLink's switches), and does so for small arrays.
    """

    def __init__(self, party: Party, comm: Any, rank: int, ranks: tuple[int, ...], trace: Trace | None = None):
        self.rank, self.size, self.ranks = rank, len(ranks), ranks
        self.party, self.trace = party, trace
        self.line = Line(party, comm, ranks)
        self.lanes = self._open_lanes()

    # --- collectives -------------------------------------------------------------------------------------------------

    def all_reduce(self, array: Array, op: str = "sum", what: str = "") -> Work:
        check_call("all_reduce", self, op, array=array)
        codes, pointer, comm = self._codes("all_reduce", array, op), address(array), self.line.comm
        first, stop = bounds(array.size, self.size)[self.rank : self.rank + 2]
        self._record("all_reduce", what, 2 * (array.nbytes - (stop - first) * array.itemsize))
        return self._start("all_reduce", lambda s: comm.allReduce(pointer, pointer, array.size, *codes, s), array)

    def reduce_scatter(self, array: Array, out: Array, op: str = "sum", what: str = "") -> Work:
        check_call("reduce_scatter", self, op, array=array, out=out)
        check_parts("reduce_scatter", self, array, out)
        codes, source, target = self._codes("reduce_scatter", array, op), address(array), address(out)
        comm = self.line.comm
        self._record("reduce_scatter", what, array.nbytes - out.nbytes)
        return self._start(
            "reduce_scatter", lambda s: comm.reduceScatter(source, target, out.size, *codes, s), array, out
        )

    def all_gather(self, array: Array, out: Array, what: str = "") -> Work:
        check_call("all_gather", self, array=array, out=out)
        check_parts("all_gather", self, out, array)
        source, target, comm, byte = address(array), address(out), self.line.comm, self._byte
        self._record("all_gather", what, out.nbytes - array.nbytes)
        return self._start("all_gather", lambda s: comm.allGather(source, target, array.nbytes, byte, s), array, out)

    def broadcast(self, array: Array, root: int = 0, what: str = "") -> Work:
        check_call("broadcast", self, peer=root, array=array)
        pointer, comm, byte = address(array), self.line.comm, self._byte
        self._record("broadcast", what, array.nbytes if self.rank != root else 0)
        return self._start("broadcast", lambda s: comm.broadcast(pointer, pointer, array.nbytes, byte, root, s), array)

    def reduce(self, array: Array, root: int = 0, op: str = "sum", what: str = "") -> Work:
        check_call("reduce", self, op, peer=root, array=array)
        codes, pointer, comm = self._codes("reduce", array, op), address(array), self.line.comm
        starts = self.rank == (root + 1) % self.size  # the ring's beginning, to which nothing comes
        self._record("reduce", what, 0 if starts else array.nbytes)
        return self._start("reduce", lambda s: comm.reduce(pointer, pointer, array.size, *codes, root, s), array)

    def barrier(self) -> None:
        meeting = self.host_array([0.0])
        codes, pointer, comm = self._codes("barrier", meeting, "sum"), address(meeting), self.line.comm
        self._start("barrier", lambda s: comm.allReduce(pointer, pointer, 1, *codes, s), meeting).wait()
        meeting.tolist()  # for which the host waits
        self.check()

    # --- between two ranks -------------------------------------------------------------------------------------------

    def send(self, array: Array, target: int, what: str = "") -> Work:
        check_call("send", self, peer=target, array=array)
        line, peer = self._lane("send", self.rank, target)
        pointer, byte = address(array), self._byte
        return self._start("send", lambda s: line.comm.send(pointer, array.nbytes, byte, peer, s), array, line=line)

    def recv(self, array: Array, source: int, what: str = "") -> Work:
        check_call("recv", self, peer=source, array=array)
        line, peer = self._lane("recv", source, self.rank)
        pointer, byte = address(array), self._byte
        self._record("send", what, array.nbytes, source)
        return self._start("recv", lambda s: line.comm.recv(pointer, array.nbytes, byte, peer, s), array, line=line)

    def _open_lanes(self) -> dict[tuple[int, int], Line]:
        """The lanes that begin or end at this rank, by their source and target."""
        n, lanes = self.size, {}
        pairs = [(i, (i + 1) % n) for i in range(n if n > 2 else n - 1)]
        rounds = [pairs[0::2], pairs[1::2]] if n % 2 == 0 else [pairs[0:-1:2], pairs[1::2], pairs[-1:]]
        for disjoint in filter(None, rounds):
            for direction in (1, -1):
                mine = [(number, pair[::direction]) for number, pair in enumerate(disjoint) if self.rank in pair]
                color, (source, target) = mine[0] if mine else (NO_COLOR, (0, 0))
                with self.party.calling("send"):
                    comm = self.line.comm.commSplit(color, int(self.rank == target))  # the source is rank 0 of two
                if mine:
                    lanes[source, target] = Line(self.party, comm, (self.ranks[source], self.ranks[target]))
        return lanes

    def _lane(self, function: str, source: int, target: int) -> tuple[Line, int]:
        """The line that goes from one rank to another, and the number that the other one has there."""
        if source == target:
            raise InputError(f"{function}: rank {self.rank} is this one; what is here need not travel")
        if (source, target) in self.lanes:
            return self.lanes[source, target], int(self.rank == source)
        return self.line, target if self.rank == source else source

    # --- groups ------------------------------------------------------------------------------------------------------

    def split(self, color: int, key: int | None = None) -> Communicator:
        mine = self._to_device(np.array([color, self.rank if key is None else key, self.rank], np.int64))
        everyone = self._to_device(np.empty((self.size, 3), np.int64))
        self.all_gather(mine, everyone, what="groups").wait()
        table = everyone.tolist()
        self.check()  # before what was gathered is used
        members = [r for c, _, r in sorted(table) if c == color]
        ranks = tuple(self.ranks[member] for member in members)
        number, rank = sorted({c for c, _, _ in table}).index(color), members.index(self.rank)
        alone = len(ranks) == 1 < self.size  # a job of one rank keeps to NCCL, so that it can be tried on one GPU
        with self.party.calling("split"):
            comm = self.line.comm.commSplit(NO_COLOR if alone else number, rank)
        if alone:
            return AloneInJob(ranks[0], self.party)
        return NcclCommunicator(self.party, comm, rank, ranks, self.trace)

    def check(self) -> None:
        self.party.check()

    def close(self) -> None:
        for line in (*self.lanes.values(), self.line):
            line.close()
        if not self.party.lines:
            self.party.close()

    def abort(self) -> None:
        """End this rank's part in the job, whatever is under way: in place of close, where this rank has failed."""
        self.party.abort()

    # --- what they are made of ---------------------------------------------------------------------------------------

    def host_array(self, numbers: Iterable[float]) -> Array:
        return self._to_device(np.array(list(numbers), np.float64))

    def _numbers(self, numbers: Iterable[float], op: str) -> list[float]:
        result = super()._numbers(numbers, op)
        self.check()  # where NCCL was aborted, these are not the sums
        return result

    def _to_device(self, array: Array) -> Array:
        return array if self.party.cuda is None else _cupy().asarray(array)

    def _start(self, function: str, call: Callable[[int], None], *arrays: Array, line: Line | None = None) -> Work:
        """Start an operation; of arrays with nothing in them there is none."""
        return (line or self.line).start(function, call, *arrays) if arrays[-1].size else DONE

    def _record(self, operation: str, what: str, count: int, source: int | None = None) -> None:
        """Note `count` bytes from a rank; from the one before this in the ring, by default."""
        source = (self.rank - 1) % self.size if source is None else source
        if self.trace is not None and source != self.rank:
            self.trace.add(operation, what, self.ranks[source], self.ranks[self.rank], count)

    def _codes(self, function: str, array: Array, op: str) -> tuple[int, int]:
        """NCCL's numbers for the dtype and the reduction."""
        if array.dtype.name not in DTYPES:
            raise DtypeError(f"{function}: NCCL reduces no {array.dtype}; convert the array to {', '.join(DTYPES)}")
        return getattr(self.party.nccl, f"NCCL_{array.dtype.name.upper()}"), getattr(self.party.nccl, OPS[op])

    @property
    def _byte(self) -> int:
        return self.party.nccl.NCCL_UINT8


class AloneInJob(Alone):
    """A group of one rank in a job of several."""

    def __init__(self, rank: int, party: Party):
        super().__init__(rank)
        self.party = party

    def check(self) -> None:
        self.party.check()


def address(array: Array) -> int:
    """The address of the array's first number, as NCCL takes it."""
    return array.data.ptr if is_on_gpu(array) else array.ctypes.data
