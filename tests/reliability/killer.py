"""Processes that are killed: at a chosen call to the system, or at any moment.

A trial is a child that this process forks, with everything imported already, so that it costs no start of Python. The
calls that are counted are those that change a disk: opening a file to write, renaming, linking, removing, making a
folder, and `fsync`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
TORN = b'{"step": 7, "loss": 2.'  # the first part of a line


class Ended(NamedTuple):
    """How a child ended. status: as of `waitpid`, so it is negative for a signal."""

    status: int
    printed: str


class Killer:
    """Counts the calls of this process that change a folder, and kills the process before the one of this number.

    signals: what is sent instead of SIGKILL, one before this call and the others before the next calls.
    torn: what is written by that call is half there: the file that `fsync` was called for has lost its second half, or
    half a line was written to the file that was opened to append to.
    """

    def __init__(
        self, folder: Path, number: int | None, torn: bool = False, signals: tuple[int, ...] = (signal.SIGKILL,)
    ):
        self.folder, self.number, self.torn, self.signals = os.fspath(folder), number, torn, signals
        self.count = 0
        self.sync = os.fsync
        os.fsync = self._fsync
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE):
            path = arguments[0]
            if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(self.folder):
                appends = event == "open" and bool(arguments[2] & os.O_APPEND)
                self._count(os.fsdecode(path) if appends else "")

    def _fsync(self, file: int) -> None:
        path = os.readlink(f"/proc/self/fd/{file}")
        self._count(path if os.path.isfile(path) else "")
        self.sync(file)

    def _count(self, path: str) -> None:
        self.count += 1
        if self.number is None or not 0 <= self.count - self.number < len(self.signals):
            return
        sent = self.signals[self.count - self.number]  # what follows is counted too
        if self.torn and path.endswith(".jsonl"):
            number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(number, TORN)
        elif self.torn and path:
            os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), sent)


def child(
    work: Callable[[], Any],
    folder: Path,
    number: int | None = None,
    torn: bool = False,
    signals: tuple[int, ...] = (signal.SIGKILL,),
    seconds: float | None = None,
) -> Ended:
    """Run a function in a forked child, and wait for its end.

    number, torn, signals: see Killer. seconds: kill it when they are over.
    """
    told = folder.parent / f"{folder.name}.told"
    process = os.fork()
    if process == 0:
        with open(told, "w", encoding="utf-8") as file, contextlib.suppress(BaseException):
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            sys.stdout = sys.stderr = file  # pytest's are others
            status = 1
            try:
                Killer(folder.parent, number, torn, signals)
                work()
                status = 0
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
            file.flush()
            os._exit(status)
        os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    printed = told.read_text(encoding="utf-8", errors="replace")
    told.unlink()
    return Ended(status, printed)


def calls_of(work: Callable[[], Any], folder: Path) -> int:
    """The number of calls that change a folder, from a child that is not killed."""

    def counted() -> None:
        killer = Killer(folder.parent, None)
        work()
        killer_file = os.open(folder.parent / "calls", os.O_WRONLY | os.O_CREAT)
        os.write(killer_file, str(killer.count - 1).encode())  # without the call for this file

    ended = child(counted, folder)
    if ended.status:
        raise RuntimeError(f"the work that is to be killed fails by itself:\n{ended.printed}")
    calls = folder.parent / "calls"
    count = int(calls.read_text())
    calls.unlink()
    return count
