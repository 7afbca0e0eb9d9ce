"""A lock that one process holds, so that two never write the same files.

The lock is on a hidden file, which says who holds it and is taken away at the end. The operating system gives the lock
up when the process ends, however it ends, so a killed one leaves no lock, only the file. Processes that it has started
do not hold it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from minillm.errors import InputError


class Lock:
    """A lock on a file of this name. Systems and disks that cannot lock files (Windows, some networks) have none."""

    def __init__(self, path: Path, refusal: Callable[[str], str]):
        """Take the lock. Raises: InputError where another process holds it.

        refusal: makes the sentence of that error from the name of the process that holds the lock.
        """
        self.path, self.file = path, -1
        try:
            import fcntl
        except ImportError:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        while not self._is_ours():
            self.release()
            self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise InputError(refusal(self._holder())) from None
            except OSError:  # this disk has no locks
                break
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, f"{os.getpid()} {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)

    def _holder(self) -> str:
        """The process that holds the lock, by its own words."""
        number, _, since = os.pread(self.file, 100, 0).decode("ascii", "replace").strip().partition(" ")
        os.close(self.file)
        self.file = -1
        return f"process {number} (since {since})" if number and since else "another process"

    def _is_ours(self) -> bool:
        """True if the file that is locked is still that of this name: its last holder may have taken it away."""
        try:
            return self.file >= 0 and os.path.samestat(os.fstat(self.file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the lock up; the second time does nothing."""
        if self.file >= 0:
            if self._is_ours():
                self.path.unlink()
            os.close(self.file)
            self.file = -1

    def __del__(self) -> None:
        if getattr(self, "file", -1) >= 0:
            os.close(self.file)
