"""Compiled files are kept in the user's cache folder, under names made from the texts that they came from."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from minillm.files import sweep, sync, unfinished_name


def cache_file(name: str, *made_from: str) -> Path:
    """The path of a file that is made from these texts: another path when any of them changes."""
    key = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:24]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "minillm", "kernels", f"{key}-{name}")


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A file that is written in another folder and then renamed, so that no process ever reads half of it.

    Several threads may make the same file. What compilers that were killed have left is taken away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    folder = unfinished_name(path.with_name(f"{path.name}.{secrets.token_hex(4)}"))
    folder.mkdir()
    try:
        yield folder / path.name
        sync(folder / path.name)
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
