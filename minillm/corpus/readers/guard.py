"""A function in a process of its own, where it may hang, crash or ask for too much memory.

A library in C++ cannot be interrupted from Python, and pages exist that keep an extractor busy for hours: 50,000 nested
`<div>`, 250 KB, are enough. So such functions run in a helper process that the kernel ends: when a call has used too
much time of the processor (which does not depend on what else the machine does), or by the limit of its memory. What
ended it is the reason to skip what the call was about, and the next call starts a new helper.

Calls go to the helper by pickle; answers come back as JSON, since whoever took over the helper must not run code here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from typing import Any

from minillm.corpus.readers.skipped import Skip

MEMORY = 2 << 30  # bytes that a helper may have
WAITING = 30.0  # seconds that a call may wait instead of computing, and ten times its limit (a busy machine)
PROGRAM = "import sys; sys.path[:] = {path!r}; from minillm.corpus.readers.guard import serve; serve({handle})"


class Guard:
    """A helper process, which is started by the first call."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._pipe: Connection | None = None

    def call(self, function: str, *arguments: Any, seconds: float) -> Any:
        """Call `function`, whose name is "module:name", and return its answer, which is JSON; it may compute so long.

        Raises: Skip where it raises an error, takes longer, or ends its process.
        """
        if self._process is None:
            self._start()
        try:
            self._pipe.send((function, arguments, seconds))  # type: ignore[union-attr]
            if not self._pipe.poll(WAITING + 10 * seconds):  # type: ignore[union-attr]
                raise Skip("timeout", f"it took more than {WAITING + 10 * seconds:g} seconds, most of them waiting")
            succeeded, answer = json.loads(self._pipe.recv_bytes())  # type: ignore[union-attr]
        except (EOFError, OSError):
            raise self._death(seconds) from None
        except Skip:
            self.close()
            raise
        if not succeeded:
            raise Skip("damaged", f"it cannot be read ({answer})")
        return answer

    def close(self) -> None:
        """End the helper."""
        if self._process is not None and self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.wait()
        self._process = self._pipe = None

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            program = PROGRAM.format(path=sys.path, handle=theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def _death(self, seconds: float) -> Skip:
        """The reason why the helper has ended."""
        status = self._process.wait() if self._process is not None else 0
        self.close()
        if status == -signal.SIGPROF:
            return Skip("timeout", f"it took more than {seconds:g} seconds of computing")
        name = signal.Signals(-status).name if -status in list(signal.Signals) else f"status {status}"
        return Skip("crashed", f"the library that reads it ended its process ({name})")


@functools.cache
def shared_guard() -> Guard:
    """The guard of this process."""
    return Guard()


def serve(handle: int) -> None:
    """Answer the calls that come through the pipe, until it is closed: the main function of a helper."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(handle)
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, arguments, seconds = pipe.recv()
            signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process, also in the midst of C code
            try:
                module, _, name = function.partition(":")
                answer = [True, getattr(importlib.import_module(module), name)(*arguments)]
            except BaseException as error:  # a panic of Rust is no Exception
                answer = [False, f"{type(error).__name__}: {str(error)[:200]}"]
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send_bytes(json.dumps(answer).encode())
    os._exit(0)
