"""Files appear whole or not at all, also where the power fails; an error names the place that was given.

A file is written under another name, `.NAME.PID-START.tmp` beside it, is brought to the disk, and only then takes its
name. The folder is brought to the disk after that, because it holds the names. A process that is killed on the way
leaves the unfinished file behind; who writes the same file next takes it away, and `sweep` does so in a whole folder.
START is the time when the process started, so that another one with its number is not taken for it.
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

UNFINISHED = re.compile(r"\.(.+)\.(\d+)(?:-(\d+))?\.tmp")  # a file's name, its writer's number and start


@contextlib.contextmanager
def writing(function: str, path: str | os.PathLike[str], kind: type[MinillmError] = InputError) -> Iterator[Path]:
    """A path to write to, whose file gets the name `path` when the block ends; one that is there is replaced.

    Raises: an error of this kind in the name of `function` where the file cannot be written.
    """
    path = Path(path)
    if os.path.exists(path) and not (path.is_file() or path.is_dir()):  # to replace /dev/null would harm the system
        raise kind(f"{function}: {path} is a device, a pipe or a socket, which is not replaced; give a file's name")
    unfinished = unfinished_name(path)
    try:
        if path.parent.is_dir():
            sweep(path.parent, path.name)
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
    start = start_of(os.getpid())
    return path.parent / f".{path.name}.{os.getpid()}{start and '-'}{start}.tmp"


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Raises: OSError where the disk fails."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sweep(folder: Path, name: str | None = None) -> None:
    """Take away what processes that are gone left unfinished in a folder; what a living one writes stays.

    name: only what was to become the file of this name.
    """
    for path in folder.iterdir():
        found = UNFINISHED.fullmatch(path.name)
        if found and name in (None, found[1]) and not is_alive(int(found[2]), found[3] or ""):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def is_alive(process: int, start: str = "") -> bool:
    """True if a process with this number runs on this machine, and started then if that can be known."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another person's
        pass
    return start_of(process) in ("", start) or not start


def start_of(process: int) -> str:
    """When a process started, in ticks since the machine did, so that no change of the clock matters; empty if unknown.

    Only Linux tells.
    """
    try:
        told = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return ""
    return told.rpartition(b")")[2].split()[19].decode()  # after the program's name, which may have any characters


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
