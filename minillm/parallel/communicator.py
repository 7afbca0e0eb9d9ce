"""The operations between ranks, of which every way of training in parallel is made.

A communicator is one rank's place in a group of `size` ranks. A collective operation is called by all ranks of the
group, in the same order, with arrays of the same size; it starts at once and returns a `Work`, and the array may be
used again when `wait()` has returned. With n ranks and an array of N bytes, each rank sends

    all_reduce        2 (n - 1) / n N      a reduce_scatter and an all_gather
    reduce_scatter      (n - 1) / n N      N of what goes in
    all_gather          (n - 1) / n N      N of what comes out
    broadcast         (n - 1) N by the root over shared memory, N at most along a ring
    reduce            N, all but the root

as a ring does (Patarasuk, Yuan 2009, "Bandwidth optimal all-reduce algorithms"). Over shared memory there
is no ring: each rank reads from every other rank, and the total is equal.

Sums are made in the order of the ranks, in float32 at least, and made once, so every rank has the same bits, in every
run. A `Trace` keeps a record of each message, where one is switched on.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from minillm.backend import Array
from minillm.device import like, to_host
from minillm.dtypes import as_dtype
from minillm.errors import InputError, ParallelError, ShapeError

REDUCTIONS = ("sum", "mean", "max")


class Work(Protocol):
    """An operation that has been started."""

    def wait(self) -> None:
        """Return when its arrays may be used; on a GPU what is launched from then on waits, and not the host.

        Raises: ParallelError where another rank failed, or did not come in time.
        """


class Message(NamedTuple):
    """Bytes that came from another rank; ranks are those of the whole job."""

    seconds: float  # since the trace began
    operation: str
    what: str  # "gradients", "activations", ...; as the caller says
    source: int
    target: int
    bytes: int


class Trace:
    """A record of the messages that this rank received, in the order they came: kept, or written to a file.

    path: of a file that gets each message at once, a JSON object a line; `messages` stays empty then.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.messages: list[Message] = []
        self.file = open(path, "w", buffering=1) if path else None  # noqa: SIM115 - it is open as long as the ranks talk
        self.start = time.perf_counter()

    def add(self, operation: str, what: str, source: int, target: int, count: int) -> None:
        """Add a message of `count` bytes, now."""
        message = Message(time.perf_counter() - self.start, operation, what, source, target, count)
        if count and self.file:
            self.file.write(json.dumps(message._asdict()) + "\n")  # a whole line at once: threads take turns
        elif count:
            self.messages.append(message)

    @classmethod
    def read(cls, path: Path) -> list[Message]:
        """The messages in a file."""
        return [Message(**json.loads(line)) for line in path.read_text().splitlines()]


def bytes_sent(messages: Iterable[Message]) -> Counter[tuple[int, str]]:
    """Bytes sent by each rank for each kind of content, from the messages that all ranks received."""
    sent: Counter[tuple[int, str]] = Counter()
    for message in messages:
        sent[message.source, message.what] += message.bytes
    return sent


class Communicator:
    """A rank's place in a group. `ranks` are the members' numbers in the whole job, in the order of the group.

    Arrays are C-contiguous. Sums, means and maxima need numbers; all other operations take any dtype.
    """

    rank: int
    size: int
    ranks: tuple[int, ...]
    trace: Trace | None = None

    def all_reduce(self, array: Array, op: str = "sum", what: str = "") -> Work:
        """Replace the array on every rank by the sum, mean or maximum over the ranks."""
        raise NotImplementedError

    def reduce_scatter(self, array: Array, out: Array, op: str = "sum", what: str = "") -> Work:
        """Reduce, and give rank i the i-th of n equal parts, in `out`, which may be that part of `array` itself."""
        raise NotImplementedError

    def all_gather(self, array: Array, out: Array, what: str = "") -> Work:
        """Lay the ranks' arrays one after another into `out`; `array` may be this rank's part of `out` itself."""
        raise NotImplementedError

    def broadcast(self, array: Array, root: int = 0, what: str = "") -> Work:
        """Replace the array by that of rank `root` of this group."""
        raise NotImplementedError

    def reduce(self, array: Array, root: int = 0, op: str = "sum", what: str = "") -> Work:
        """Replace the array on rank `root` by the reduction; on the others it stays as it is."""
        raise NotImplementedError

    def send(self, array: Array, target: int, what: str = "") -> Work:
        """Send to rank `target` of this group, which calls recv; what goes to one rank arrives in order."""
        raise NotImplementedError

    def recv(self, array: Array, source: int, what: str = "") -> Work:
        """Fill the array with what rank `source` of this group sends."""
        raise NotImplementedError

    def barrier(self) -> None:
        """Return when every rank has called it."""
        raise NotImplementedError

    def split(self, color: int, key: int | None = None) -> Communicator:
        """Divide the group: ranks of one color form a new group, in the order of key (their rank, by default)."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back threads and memory; nothing may be under way."""

    def check(self) -> None:
        """Raise ParallelError if a rank of the job has failed."""

    def sum_of(self, *numbers: float) -> list[float]:
        """The sum over the ranks of each number, in float64."""
        return self._numbers(numbers, "sum")

    def max_of(self, *numbers: float) -> list[float]:
        """The maximum over the ranks of each number."""
        return self._numbers(numbers, "max")

    def _numbers(self, numbers: Iterable[float], op: str) -> list[float]:
        array = self.host_array(numbers)
        self.all_reduce(array, op, what="numbers").wait()
        return array.tolist()

    def host_array(self, numbers: Iterable[float]) -> Array:
        """Numbers as an array of float64 that this communicator can send."""
        return np.array(list(numbers), np.float64)


class Alone(Communicator):
    """The group of one rank: nothing is sent, and every operation is done already."""

    def __init__(self, rank: int = 0):
        self.rank, self.size, self.ranks = 0, 1, (rank,)

    def all_reduce(self, array: Array, op: str = "sum", what: str = "") -> Work:
        return DONE

    def reduce_scatter(self, array: Array, out: Array, op: str = "sum", what: str = "") -> Work:
        if out is not array:
            out[...] = array
        return DONE

    def all_gather(self, array: Array, out: Array, what: str = "") -> Work:
        if out is not array:
            out[...] = array
        return DONE

    def broadcast(self, array: Array, root: int = 0, what: str = "") -> Work:
        return DONE

    def reduce(self, array: Array, root: int = 0, op: str = "sum", what: str = "") -> Work:
        return DONE

    def send(self, array: Array, target: int, what: str = "") -> Work:
        raise InputError("send: there is one rank alone; start more with --nproc")

    def recv(self, array: Array, source: int, what: str = "") -> Work:
        raise InputError("recv: there is one rank alone; start more with --nproc")

    def barrier(self) -> None:
        return None

    def split(self, color: int, key: int | None = None) -> Communicator:
        return self


class Done:
    """The Work of an operation that has already ended."""

    def wait(self) -> None:
        return None


DONE = Done()


def bounds(count: int, parts: int) -> list[int]:
    """The starts of `parts` nearly equal parts of `count`, and the end of the last; as np.array_split cuts."""
    return [i * (count // parts) + min(i, count % parts) for i in range(parts + 1)]


def check_call(function: str, communicator: Communicator, op: str = "sum", peer: int = 0, **arrays: Array) -> None:
    """Raise for an unknown reduction or rank, or an array that is not contiguous."""
    if op not in REDUCTIONS:
        raise InputError(f"{function}: op is {op!r}; choose {', '.join(REDUCTIONS)}")
    if not 0 <= peer < communicator.size:
        raise InputError(f"{function}: there is no rank {peer} in a group of {communicator.size}")
    for name, array in arrays.items():
        if not array.flags.c_contiguous:
            raise ShapeError(f"{function}: {name} is not contiguous; give array.copy(), or the whole of it")


def check_parts(function: str, communicator: Communicator, whole: Array, part: Array) -> None:
    """Raise ShapeError unless `whole` holds one `part` for each rank."""
    if whole.size != part.size * communicator.size or whole.dtype != part.dtype:
        raise ShapeError(
            f"{function}: {communicator.size} parts of {part.size} {part.dtype} do not make {whole.size} "
            f"{whole.dtype}; give {math.ceil(whole.size / communicator.size)} a rank, all alike"
        )


def differing(function: str, calls: dict[int, str]) -> ParallelError:
    """The error to raise when ranks call different operations."""
    told = "; ".join(f"rank {rank} calls {call}" for rank, call in sorted(calls.items()))
    return ParallelError(f"{function}: the ranks do not do the same: {told}; every rank must run the same step")


# --- small values that all ranks need ------------------------------------------------------------------------------


def broadcast_bytes(communicator: Communicator, content: bytes = b"") -> bytes:
    """Rank 0's bytes, on all ranks."""
    if communicator.size == 1:
        return content
    size = communicator.host_array([len(content)])
    communicator.broadcast(size, what="settings").wait()
    count = int(size[0])
    communicator.check()  # on a GPU a rank that fails while the host waits leaves anything there
    array = like(np.frombuffer(content.ljust(count, b"\0"), np.uint8)[:count].copy(), size)
    communicator.broadcast(array, what="settings").wait()
    found = to_host(array).tobytes()
    communicator.check()
    return found


def broadcast_arrays(communicator: Communicator, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Rank 0's arrays by name, on all ranks, one after the other; on the host."""
    if communicator.size == 1:
        return dict(arrays)
    header = json.dumps({name: [list(np.shape(array)), array.dtype.name] for name, array in arrays.items()})
    told = json.loads(broadcast_bytes(communicator, header.encode() if communicator.rank == 0 else b""))
    found = {}
    for name, (shape, dtype) in told.items():
        array = np.array(arrays[name]) if communicator.rank == 0 else np.empty(shape, as_dtype(dtype))
        content = like(array.reshape(-1).view(np.uint8), communicator.host_array([]))
        communicator.broadcast(content, what="state").wait()
        found[name] = to_host(content).view(array.dtype).reshape(shape)
    communicator.check()
    return found


def agree(communicator: Communicator, what: str, value: str, advice: str) -> None:
    """Raise ParallelError on all ranks unless `value` is equal on all of them; the error names the others."""
    if communicator.size == 1:
        return
    digest = hashlib.sha256(value.encode()).digest()
    mine = communicator.host_array(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4))
    everyone = np.empty_like(mine, shape=(communicator.size, mine.size))
    communicator.all_gather(mine, everyone, what="settings").wait()
    found = to_host(everyone)
    communicator.check()
    differing = [rank for rank, row in zip(communicator.ranks, found, strict=True) if (row != found[0]).any()]
    if differing:
        raise ParallelError(f"rank {', '.join(map(str, differing))}: not the same {what} as rank 0; {advice}")


def agree_on_weights(communicator: Communicator, function: str, arrays: Mapping[str, Array]) -> None:
    """Raise ParallelError on all ranks unless these named arrays are equal on all of them, bit for bit.

    The error names the ranks that differ from the first, and the first array that does. Only checksums are sent.
    """
    if communicator.size == 1:
        return
    shapes = {name: [list(np.shape(array)), array.dtype.name] for name, array in arrays.items()}
    agree(communicator, "model", json.dumps(shapes), "build the same model on all ranks")
    hosts = (np.ascontiguousarray(to_host(array)).reshape(-1) for array in arrays.values())
    mine = communicator.host_array(zlib.crc32(host.view(np.uint8).data) for host in hosts)
    everyone = np.empty_like(mine, shape=(communicator.size, mine.size))
    communicator.all_gather(mine, everyone, what="settings").wait()
    found = to_host(everyone)
    communicator.check()
    differs = found != found[0]
    if differs.any():
        ranks = [rank for rank, row in zip(communicator.ranks, differs, strict=True) if row.any()]
        first = list(arrays)[int(differs.any(axis=0).argmax())]
        raise ParallelError(
            f"{function}: {first} on rank {', '.join(map(str, ranks))} is not that of rank {communicator.ranks[0]}; "
            "give all ranks the same seed, or load the same checkpoint, before the model is divided"
        )
