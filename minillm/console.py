"""The streams of the command line: terminals that lack characters, readers that leave, no input at all."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator

PIPE_CLOSED = 141  # the exit status that a shell gives a program whose reader has left: 128 + SIGPIPE


def replace_what_cannot_be_shown() -> None:
    """Print a character that the output's encoding lacks as `?` from here on, instead of ending the program.

    What is typed in another encoding becomes U+FFFD. (Python's stderr can show everything already.)
    """
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def abandon_output() -> None:
    """Send what is still to be written nowhere: Python would try it again at its end, and complain again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nothing with a number, as in a test
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def flush() -> None:
    """Write out what was printed, now that an error can still be told."""
    if sys.stdout is not None:
        sys.stdout.flush()


def print_as_it_comes(pieces: Iterable[str], begin: str = "") -> None:
    """Print pieces of text at once, and a line's end after them, even if an error ends them.

    The first piece is waited for before anything is printed, so that an error at the start stands alone.
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
    """Yield the lines that a person types, until Ctrl-D; none where there is no input."""
    if sys.stdin is None:  # closed by whoever started this
        return
    while True:
        try:
            line = input(prompt)
        except EOFError:
            print()
            return
        yield line
