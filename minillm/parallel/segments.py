"""Segments of memory that processes on one machine share: how large they are, who makes and who frees them."""

from __future__ import annotations

import mmap
import os
import sys
import time
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any, Protocol

from minillm.errors import ParallelError

SLOT = 1 << 20  # bytes of a slot
BOX = 1 << 18  # bytes of a box
LINE = 8  # counters are this many numbers apart: a cache line each, as several ranks watch them
SHARED = Path("/dev/shm")  # where Linux keeps memory that has a name
NEWS = 2.0  # seconds in which a rank hears that another has failed


class Watch(Protocol):
    """An object that knows whether a rank of the job has failed."""

    def check(self) -> None:
        """Raise ParallelError if a rank has failed."""


class Unwatched:
    """For a job that nobody watches: a failed rank is noticed when its messages stay out."""

    def check(self) -> None:
        return None


def counter_numbers(size: int) -> int:
    """Numbers of 8 bytes that the counters of a group of `size` ranks take."""
    return (3 * size + size * size) * LINE


def segment_bytes(size: int) -> int:
    """Bytes of the segment of a group of `size` ranks; pages that are never used take no memory."""
    return 8 * counter_numbers(size) + size * SLOT + size * size * BOX


class Unnamed:
    """Linux's memory without a name (memfd_create): none is left behind, however the processes that hold it end.

    Unlike a named segment it is not limited by the size of /dev/shm, which is 64 MB in a Docker container. Other
    processes of the same user open it through the process that made it, under `name`, until that unlinks it.
    """

    def __init__(self, file: int, name: str):
        self.file, self.name, self.size = file, name, os.fstat(file).st_size
        self.buf = mmap.mmap(file, self.size)

    def unlink(self) -> None:
        if self.file >= 0:
            os.close(self.file)
        self.file = -1

    def close(self) -> None:
        self.buf.close()


def create_segment(size: int) -> Any:
    """A new segment for a group of `size` ranks; its maker unlinks it when all have attached.

    Raises: ParallelError where there is no room for it.
    """
    try:
        file = os.memfd_create("minillm")
    except (AttributeError, OSError):  # not Linux, or a container that does not let it
        return _named(segment_bytes(size))
    os.truncate(file, segment_bytes(size))
    return Unnamed(file, f"/proc/{os.getpid()}/fd/{file}")


def _named(count: int) -> Any:
    """A segment in /dev/shm, whose pages are taken at once: a page that is not there ends the process (SIGBUS)."""
    memory = None
    try:
        memory = shared_memory.SharedMemory(create=True, size=count)
        if SHARED.is_dir():
            with open(SHARED / memory.name, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, count)
    except OSError as error:
        if memory is not None:
            memory.close()
            memory.unlink()
        raise ParallelError(
            f"connect: {SHARED} has no {count / 1e6:.0f} MB for the ranks ({error.strerror or error}); make room "
            "there, give the container more (docker run --shm-size 1g), or start fewer ranks"
        ) from None
    return memory


def attach_segment(name: str) -> Any:
    """The segment of that name. Only its maker cleans it up; before Python 3.13 every process would do so."""
    if name.startswith("/proc/"):
        memory = Unnamed(os.open(name, os.O_RDWR), name)
        memory.unlink()  # its own descriptor; the mapping stays
        return memory
    if sys.version_info >= (3, 13):
        return shared_memory.SharedMemory(name, track=False)
    register, resource_tracker.register = resource_tracker.register, lambda *_: None
    try:
        return shared_memory.SharedMemory(name)
    finally:
        resource_tracker.register = register


def attach_to(rank: int, owner: int, name: str, watch: Watch) -> Any:
    """The segment that rank `owner` has just made, for `rank`.

    Raises: ParallelError if it cannot be opened: the error of the job, if that rank has failed meanwhile.
    """
    try:
        return attach_segment(name)
    except OSError as error:
        deadline = time.monotonic() + NEWS
        while time.monotonic() < deadline:  # its memory ended with it, before the others could be told
            watch.check()
            time.sleep(0.02)
        raise ParallelError(
            f"connect: rank {rank} cannot open the memory of rank {owner} ({error}); start all ranks by one user, in "
            "one container"
        ) from None
