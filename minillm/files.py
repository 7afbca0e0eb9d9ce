"""Files that a person asked for: each appears whole or not at all, and an error names the place that was given."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from minillm.errors import InputError


@contextlib.contextmanager
def writing(function: str, path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, whose file gets the name `path` when the block ends.

    Raises: InputError in the name of `function` where the file cannot be written.
    """
    path = Path(path)
    unfinished = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{function}: cannot write {path} ({reason}); choose another place, or make room") from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def check_folder_of(function: str, option: str, path: Path) -> None:
    """Raise InputError where no folder is there to write `path` into, or where `path` is a folder itself."""
    if path.is_dir():
        raise InputError(f"{function}: {option} {path} is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise InputError(f"{function}: there is no folder {path.parent}; make it, or choose another {option}")
