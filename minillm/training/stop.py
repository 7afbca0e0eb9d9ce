"""Stopping a training from outside: Ctrl-C, SIGTERM, and SIGHUP, which comes when a terminal is closed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

from minillm.parallel.communicator import Communicator

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
TOLD = b"\nfinishing this step, then saving; again: stop now without saving\n"


class StopRequest:
    """While entered, these signals set `requested` instead of ending the program; a second one raises.

    tells: say so on the standard error at once, as one of several ranks does for all.
    """

    requested = False

    def __init__(self, tells: bool = True):
        self.tells = tells

    def requested_of_any(self, world: Communicator) -> bool:
        """True if it is set on any rank, because all ranks must end after the same step."""
        return self.requested if world.size == 1 else world.max_of(float(self.requested))[0] > 0

    def __enter__(self) -> StopRequest:
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in SIGNALS:
                if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                    self.before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self.tells:
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, TOLD)  # not print, which the signal may have interrupted

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            with contextlib.suppress(TypeError):  # a handler that was not set from Python
                signal.signal(number, handler)
