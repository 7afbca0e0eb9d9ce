"""Sources of raw text, and the files in them, in an order that does not depend on the machine.

| source         | files                                           | in the order of their names                 |
|----------------|-------------------------------------------------|---------------------------------------------|
| a file         | itself                                          |                                             |
| a folder       | all in it and below it                          | a folder that is a link is not entered      |
| a glob pattern | those that match, such as `"raw/**/*.html"`     | `**` stands for any number of folders       |

Hidden files (`.git`, `.DS_Store`) belong to no folder and no pattern. A document's id begins with the name of its
source and goes on with the file's path below the folder: `raw/essays/1.txt:1`. So it stays the same when the folder
moves elsewhere.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from minillm.corpus.config import Source
from minillm.errors import InputError
from minillm.files import check_is_file


class RawFile(NamedTuple):
    """A file of a source."""

    source: Source
    path: Path
    name: str  # with which the ids of its documents begin


def find_files(sources: Sequence[Source]) -> list[RawFile]:
    """The files of all sources, in order; where two have the same name, the second is called `name~2`.

    Raises: InputError for a source that is not there or has no file.
    """
    if not sources:
        raise InputError('extract: there is no source; give a file, a folder or a pattern such as "raw/**/*"')
    found = [file for source in sources for file in _files_of(source)]
    seen: Counter[str] = Counter()
    for number, file in enumerate(found):
        seen[file.name] += 1
        if seen[file.name] > 1:
            found[number] = file._replace(name=f"{file.name}~{seen[file.name]}")
    return found


def check_apart(sources: Sequence[Source], out: Path) -> None:
    """Raise InputError where the output would lie among the files that are read."""
    for source in sources:
        everything = os.path.isdir(source.path) or "**" in source.path
        if everything and out.absolute().is_relative_to(os.path.abspath(_root(source.path))):
            raise InputError(f"extract: {out} lies in the source {source.path}; choose an --out beside it")


def _files_of(source: Source) -> Iterator[RawFile]:
    root = _root(source.path)
    if os.path.isdir(source.path):
        paths = list(_below(source.path))
    elif os.path.lexists(source.path):
        check_is_file("extract", source.path)
        paths = [source.path]
    elif glob.has_magic(source.path):
        paths = [path for path in glob.iglob(source.path, recursive=True) if not os.path.isdir(path)]
    else:
        raise InputError(
            f"extract: there is no file or folder {source.path}, seen from {Path.cwd()}; check the name, or give a "
            'pattern in quotes, such as "raw/**/*.html"'
        )
    if not paths:
        raise InputError(f"extract: {source.path} has no file, seen from {Path.cwd()}; check the folder or the pattern")
    names = sorted((_text(os.path.relpath(path, root).replace(os.sep, "/")), path) for path in set(paths))
    for name, path in names:
        yield RawFile(source, Path(path), f"{source.name}/{name}")


def _below(folder: str) -> Iterator[str]:
    """Every file below a folder that is not hidden."""
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(here, name) for name in files if not name.startswith("."))


def _root(path: str) -> str:
    """The folder from which the names of a source's files are given."""
    if os.path.isdir(path):
        return path
    if os.path.lexists(path) or not glob.has_magic(path):
        return os.path.dirname(path) or "."
    parts = path.split("/")
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:fixed]) or ("/" if path.startswith("/") else ".")


def _text(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 are spelt out, such as \\xfc."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
