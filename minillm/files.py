"""Files appear whole or not at all, also where the power fails; an error names the place that was given.

A file is written under another name, `.NAME.PID.tmp` beside it, is brought to the disk, and only then takes its name.
The folder is brought to the disk after that, because it holds the names. A process that is killed on the way leaves
the unfinished file behind, and `sweep` takes away those whose process is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from minillm.errors import InputError, MinillmError

UNFINISHED = re.compile(r"\..+\.(\d+)\.tmp")  # the number is that of the process


@contextlib.contextmanager
def writing(function: str, path: str | os.PathLike[str], kind: type[MinillmError] = InputError) -> Iterator[Path]:
    """A path to write to, whose file gets the name `path` when the block ends; one that is there is replaced.

    Raises: an error of this kind in the name of `function` where the file cannot be written.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # to replace /dev/null would harm the whole system
        raise kind(f"{function}: {path} is a device, a pipe or a socket, which is not replaced; give a file's name")
    unfinished = unfinished_name(path)
    try:
        yield unfinished
        sync(unfinished)  # the name must not reach the disk before the bytes do
        os.replace(unfinished, path)
        sync(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise kind(f"{function}: cannot write {path} ({reason}); choose another place, or make room") from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def unfinished_name(path: Path) -> Path:
    """The name of a file or a folder while this process writes it."""
    return path.parent / f".{path.name}.{os.getpid()}.tmp"


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Raises: OSError where the disk fails."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sweep(folder: Path) -> None:
    """Take away what processes that are gone left unfinished in a folder; what a living one writes stays."""
    for path in folder.iterdir():
        found = UNFINISHED.fullmatch(path.name)
        if found and not is_alive(int(found[1])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """True if a process with this number runs on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another person's
        return True
    return True


def check_is_file(function: str, path: str | os.PathLike[str], kind: type[MinillmError] = InputError) -> None:
    """Raise an error of this kind for a pipe, a device or a socket; what is not there is for who opens it.

    To open a pipe waits for who writes into it, perhaps for ever, and a device such as /dev/zero has no end.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        what = "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise kind(f"{function}: {path} is a {what}, which cannot be read as a file; write what it gives into a file")


def check_folder_of(function: str, option: str, path: Path) -> None:
    """Raise InputError where no folder is there to write `path` into, or where `path` is a folder itself."""
    if path.is_dir():
        raise InputError(f"{function}: {option} {path} is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise InputError(f"{function}: there is no folder {path.parent}; make it, or choose another {option}")
