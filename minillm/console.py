"""The streams of the command line: limited encodings, closed pipes, and missing input."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator

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
