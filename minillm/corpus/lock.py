"""A lock that one process holds, so that two runs never append to the same outputs.

The lock is on a hidden file beside the outputs, which is taken away at the end. The operating system gives it up when
the process ends, however it ends, so a killed run leaves no lock. Processes that it has started do not hold it.
"""

from __future__ import annotations

import os
from pathlib import Path

from minillm.errors import InputError


class Lock:
    """The lock of the outputs that a record describes. Systems without such locks (Windows) have none."""

    def __init__(self, record: Path, stage: str):
        """Take the lock. Raises: InputError where another process holds it."""
        self.path, self.file = record.with_name(f".{record.name}.lock"), -1
        try:
            import fcntl
        except ImportError:
            return
        record.parent.mkdir(parents=True, exist_ok=True)
        while not self._is_ours():
            self.release()
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self.file)
                raise InputError(
                    f"{stage}: another process is writing {record.parent} at the moment; wait for its end, or choose "
                    "another --out"
                ) from None

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
