"""Stopping a training from outside: Ctrl-C, SIGTERM, and SIGHUP, which comes when a terminal is closed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

from minillm.parallel.communicator import Communicator
from minillm.parallel.stopping import stopping_signals

TOLD = b"\nfinishing this step, then saving"
AGAIN = b"; again: stop now without saving"


class StopRequest:
    """While entered, these signals set `requested` instead of ending the program; a Ctrl-C after that raises.

    Of the others any number may come: a terminal that is closed sends SIGHUP and its shell does so too, and a system
    that shuts down may send both kinds.

    tells: say so on the standard error at once, as one of several ranks does for all.
    """

    requested = False

    def __init__(self, tells: bool = True):
        self.tells = tells

    def requested_of_any(self, world: Communicator) -> bool:
        """True if it is set on any rank, because all ranks must end after the same step."""
        return self.requested if world.size == 1 else world.max_of(float(self.requested))[0] > 0

    def __enter__(self) -> StopRequest:
        self.before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self.before = {number: signal.signal(number, self._handle) for number in stopping_signals()}
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.tells and not self.requested:
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, TOLD + (AGAIN if number == signal.SIGINT else b"") + b"\n")  # print may be at work already
        self.requested = True

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            with contextlib.suppress(TypeError):  # a handler that was not set from Python
                signal.signal(number, handler)
