"""The signals that end a training in good order: Ctrl-C, SIGTERM, and SIGHUP, which comes when a terminal is closed."""

from __future__ import annotations

import signal


def stopping_signals() -> list[signal.Signals]:
    """The signals that stop a program here, without those that it is to ignore, such as SIGHUP under `nohup`."""
    found = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    return [number for number in found if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN]
