"""Compiled files are kept in the user's cache folder, under names made from the texts that they came from."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_file(name: str, *made_from: str) -> Path:
    """The path of a file that is made from these texts: another path when any of them changes."""
    key = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:24]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "minillm", "kernels", f"{key}-{name}")


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A file that is written under another name and then renamed, so that no process ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        yield Path(folder, path.name)
        os.replace(Path(folder, path.name), path)
