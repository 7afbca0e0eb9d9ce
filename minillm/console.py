"""The streams of the command line: limited encodings, closed pipes, and missing input."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

PIPE_CLOSED = 141  # the exit status that a shell gives a program whose reader has left: 128 + SIGPIPE


def replace_what_cannot_be_shown() -> None:
    """Print characters that the output's encoding lacks as `?` from now on, instead of raising an error.

    Input in another encoding becomes U+FFFD. (Python's stderr escapes such characters already.)
    """
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def abandon_output() -> None:
    """Discard buffered output: Python would try to write it again when it exits, and raise an error again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream without a file descriptor, as in a test
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class Output:
    """The standard output, for a display beside work that is worth more: it falls silent when it cannot be written to.

    broken: the reason, unless it is a reader that has seen enough. Characters that the output's encoding lacks are
    shown as `?`.
    """

    def __init__(self) -> None:
        self.stream = sys.stdout or io.StringIO()  # None if the parent process has closed it
        self.silent, self.broken = False, ""

    def write(self, text: str) -> int:
        """Write a text, or nothing if that is impossible."""
        return self._try(self.stream.write, text) or len(text)

    def flush(self) -> None:
        """Hand on what was written, or drop it if that is impossible."""
        self._try(self.stream.flush)

    def _try(self, do: Callable[..., Any], *text: str) -> Any:
        if self.silent:
            return None
        try:
            return do(*text)
        except UnicodeEncodeError as error:
            return do(*(one.encode(error.encoding, "replace").decode(error.encoding) for one in text))
        except (OSError, ValueError) as error:  # a full disk, a reader that has left, a closed terminal or stream
            self.silent = True
            self.broken = "" if isinstance(error, BrokenPipeError) else getattr(error, "strerror", None) or str(error)
            abandon_output()
            return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def flush() -> None:
    """Flush the printed text now, while an error can still be reported."""
    if sys.stdout is not None:
        sys.stdout.flush()


def print_as_it_comes(pieces: Iterable[str], begin: str = "") -> None:
    """Print pieces of text as they come, and a line end after them, even if an error ends them.

    Nothing is printed before the first piece, so that an error at the start appears alone.
    """
    pieces = iter(pieces)
    first = next(pieces, "")
    try:
        print(begin, first, sep="", end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        print(flush=True)


def lines_of_input(prompt: str) -> Iterator[str]:
    """Yield the lines that a person types, until Ctrl-D; none if the program has no input."""
    if sys.stdin is None:  # closed by the parent process
        return
    while True:
        try:
            line = input(prompt)
        except EOFError:
            print()
            return
        yield line
