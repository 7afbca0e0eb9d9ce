"""Stopping a training from outside: Ctrl-C and SIGTERM."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Any

from minillm.parallel.communicator import Communicator


class StopRequest:
    """While entered, Ctrl-C and SIGTERM set `requested` instead of raising; a second Ctrl-C raises."""

    requested = False

    def requested_of_any(self, world: Communicator) -> bool:
        """True if it is set on any rank, because all ranks must end after the same step."""
        return self.requested if world.size == 1 else world.max_of(float(self.requested))[0] > 0

    def __enter__(self) -> StopRequest:
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            with contextlib.suppress(TypeError):  # a handler that was not set from Python
                signal.signal(number, handler)
