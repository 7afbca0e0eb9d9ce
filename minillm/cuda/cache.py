"""Compiled files are kept in the user's cache folder, under names made from the texts that they came from.

Each file ends with a checksum of all before it, which a loader of shared libraries does not look at. A file that was
damaged is made again: the system would kill a program that runs a library of which the end is missing. Where the cache
folder cannot be written, a file is kept in a temporary folder until the program ends.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

from minillm.cuda.source import KernelError
from minillm.errors import InputError
from minillm.files import is_alive, sweep, writing

CHECKSUM_BYTES = 16
_making = threading.Lock()  # one file is made at a time


def kept(name: str, make: Callable[[Path], None], *made_from: str) -> Path:
    """The path of a file that `make` writes; it is made again when it is damaged, or one of these texts changes.

    Raises: KernelError if no folder for temporary files can be written; and what `make` raises.
    """
    name = f"{hashlib.sha256(chr(0).join(made_from).encode()).hexdigest()[:24]}-{name}"
    with _making:
        path = cache_folder() / name
        if is_whole(path):
            return path
        made = _temporary_folder(os.getpid()) / name
        make(made)
        _seal(made)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            with writing("Kernel", path) as unfinished:
                shutil.copyfile(made, unfinished)
        except (OSError, InputError) as error:
            cause = error.__context__ if isinstance(error, InputError) else error
            _say_that_nothing_is_kept(path.parent, getattr(cause, "strerror", None) or str(cause))
            return made
        made.unlink()
        return path


def content(path: Path) -> bytes:
    """The bytes of a file of `kept`, without the checksum."""
    return path.read_bytes()[:-CHECKSUM_BYTES]


def is_whole(path: Path) -> bool:
    """True if a file is there and ends with its checksum."""
    try:
        written = path.read_bytes()
    except OSError:
        return False
    return written[-CHECKSUM_BYTES:] == _checksum(written[:-CHECKSUM_BYTES])


def cache_folder() -> Path:
    """The folder where compiled files are kept; a temporary one for a person without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "minillm", "kernels")
    except RuntimeError:  # HOME is not set, and the system does not know this user
        return _temporary_folder(os.getpid()) / "kernels"


def _seal(path: Path) -> None:
    """Write the checksum after what is in a file."""
    try:
        written = path.read_bytes()
        with path.open("ab") as file:
            file.write(_checksum(written))
    except OSError as error:
        raise KernelError(
            f"Kernel: the compiler (g++ or NVRTC) wrote nothing to {path} ({error.strerror}); check that it works"
        ) from None


def _checksum(written: bytes) -> bytes:
    return hashlib.blake2b(written, digest_size=CHECKSUM_BYTES).digest()


@functools.cache
def _temporary_folder(process: int) -> Path:
    """A folder of this process, which is taken away at its end; one that was forked from it has its own."""
    try:
        for left in Path(tempfile.gettempdir()).glob("minillm-kernels-*-*"):  # by a process that was killed
            if (number := left.name.split("-")[2]).isdigit() and not is_alive(int(number)):
                shutil.rmtree(left, ignore_errors=True)
        folder = tempfile.mkdtemp(prefix=f"minillm-kernels-{process}-")
    except OSError as error:
        raise KernelError(
            f"Kernel: no folder for temporary files can be written ({error.strerror}); set TMPDIR to one that can"
        ) from None

    def take_away() -> None:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(take_away)
    return Path(folder)


@functools.cache
def _say_that_nothing_is_kept(folder: Path, reason: str) -> None:
    """Warn once that kernels are compiled again in each process."""
    with contextlib.suppress(OSError):  # a standard error that cannot be written
        warnings.warn(
            f"compiled kernels cannot be kept in {folder} ({reason}), and are compiled again each time; set "
            "XDG_CACHE_HOME to a folder that can be written",
            stacklevel=2,
        )
