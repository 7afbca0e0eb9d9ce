"""Faults of a disk for tests: a child process in which a chosen call to the file system fails."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from minillm import cli

CALLS = ("mkdir", "replace", "rename", "link", "fsync", "ftruncate")  # of os, that change a disk


class Ended(NamedTuple):
    """The end of a command: its status (-9 if it hung), and what it printed."""

    status: int
    output: str

    @property
    def sentence(self) -> str:
        """The last line."""
        return self.output.strip().rpartition("\n")[2]

    def faults(self, *names: str) -> list[str]:
        """What is wrong with this end: a traceback, a signal, a hang; or an error that has none of these words."""
        if self.status < 0 or self.status > 2 or "Traceback" in self.output or "Warning" in self.output:
            return [f"status {self.status}: {self.output[-1500:]}"]
        if self.status and not any(name in self.sentence for name in names):
            return [f"status {self.status} without {' or '.join(names)}: {self.sentence}"]
        return []


def command(words: list[str], before: Callable[[], Any] = lambda: None, seconds: float = 60) -> Ended:
    """Run a command of minillm in a child of this process, after it has called `before`."""
    return in_child(lambda: cli.main(words), before, seconds)


def in_child(do: Callable[[], Any], before: Callable[[], Any] = lambda: None, seconds: float = 60) -> Ended:
    """Call a function in a child of this process, with an empty standard input; a child that hangs is killed."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which the child does not use
        child = os.fork()
    if not child:
        _child(do, before, reading, writing)
    os.close(writing)
    os.set_blocking(reading, False)
    printed, end, status = b"", time.monotonic() + seconds, None
    while status is None:
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(reading, 1 << 16):
                printed += piece
        done, raw = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(raw)
        elif time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            status = -9
        else:
            time.sleep(0.002)
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(reading, 1 << 16):
            printed += piece
    os.close(reading)
    return Ended(status, printed.decode("utf-8", "replace"))


def _child(do: Callable[[], Any], before: Callable[[], Any], reading: int, writing: int) -> None:
    status = 99
    try:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        output = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                warnings.simplefilter("default")  # as in a process of its own, also where pytest collects them
                warnings.showwarning = lambda message, kind, *_: print(f"{kind.__name__}: {message}")
                before()
                do()
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(status)


class Disk:
    """The file system as a process sees it, of which a call fails: the one with the number `at`, or all from it on.

    Only calls that change something are counted; those with a path only if it is below `folder`.
    """

    def __init__(self, folder: Path, at: int = -1, error: int = 0, stays: bool = False):
        self.folder, self.at, self.error, self.stays, self.calls = str(folder), at, error, stays, 0

    def count(self, path: Any = None) -> None:
        """Count a call, and fail if it is its turn."""
        if path is not None and not (isinstance(path, str | os.PathLike) and self._is_below(path)):
            return
        self.calls += 1
        if self.calls - 1 == self.at or (self.stays and -1 < self.at < self.calls):
            raise OSError(self.error, os.strerror(self.error), None if path is None else os.fspath(path))

    def _is_below(self, path: Any) -> bool:
        return os.path.abspath(os.fspath(path)).startswith(self.folder)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watch this process until the block ends."""
        with contextlib.ExitStack() as stack:
            for name in CALLS:
                real = getattr(os, name)
                stack.enter_context(mock.patch.object(os, name, self._counted(real, name == "fsync")))
            opened = self._opened(builtins.open)
            stack.enter_context(mock.patch.object(builtins, "open", opened))
            stack.enter_context(mock.patch.object(io, "open", opened))
            yield

    def _counted(self, real: Callable[..., Any], by_number: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count(None if by_number or isinstance(args[0], int) else args[0])
            return real(*args, **kwargs)

        return call

    def _opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wax+") or isinstance(file, int) or not self._is_below(file):
                return real(file, mode, *args, **kwargs)
            self.count(file)
            return Written(real(file, mode, *args, **kwargs), self)

        return opened


class Written:
    """A file whose writes are counted."""

    def __init__(self, file: Any, disk: Disk):
        self.file, self.disk = file, disk

    def write(self, data: Any) -> int:
        """Write, if the disk lets it."""
        self.disk.count()
        return self.file.write(data)

    def writelines(self, lines: Any) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)
