"""Read documents of text from a source.

A source is a string or a path, and its kind decides how it is read:

| source         | documents                                                                             |
|----------------|---------------------------------------------------------------------------------------|
| `"builtin"`    | one: the language reference that every Python carries for `help()`, half a megabyte    |
| a file         | one: the whole file                                                                    |
| a .jsonl file  | one a line: the string that each line's JSON object has under `field`                  |
| a folder       | those of every .txt, .md and .jsonl file in it and below it, in sorted order           |
| a glob pattern | those of every file that matches, such as `"books/**/*.txt"`, in sorted order          |

Each of these files may also be compressed with gzip (`book.txt.gz`). Text must be UTF-8; a byte order mark is dropped
and the line ends of Windows become "\\n". A lone "\\r" stays in text, as a character like others; in a .jsonl file,
whose strings cannot hold one, it ends a line. Documents that hold nothing but whitespace are skipped. To read a
file whose name is `builtin`, write `./builtin`.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import os.path
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from minillm.data.shards import Tokens
from minillm.errors import InputError, did_you_mean
from minillm.files import check_is_file

SEPARATOR = "\n\n"  # between joined documents, a paragraph break
FOLDER_SUFFIXES = (".txt", ".md", ".jsonl")

Ids = TypeVar("Ids", Tokens, np.ndarray, list[int])


def read_texts(source: str | Path, field: str | None = None) -> Iterator[str]:
    """Yield the documents of a source: the built-in text, a file, a folder, a glob pattern or .jsonl lines.

    `field` names the string to take from each line of .jsonl files ("text" where it is None). A .jsonl file is read
    line by line, any other file as a whole. The files are looked up at the call and read as the documents are drawn.

    Raises: InputError where the source is missing, has no text, or is not UTF-8 (with the offset of the byte), and
    where a .jsonl line is not a JSON object or has no such field (with the number of the line).
    """
    if source == "builtin":
        if field is not None:
            raise InputError(f"read_texts: field={field!r} is for .jsonl files, but 'builtin' is none; leave it out")
        return iter([_builtin_text()])
    files = _find_files(source)
    if field is not None and not any(_is_jsonl(file) for file in files):
        raise InputError(f"read_texts: field={field!r} is for .jsonl files, but {source} has none; leave it out")
    return _documents(source, files, "text" if field is None else field)


def read_text(source: str | Path, field: str | None = None) -> str:
    """Return the documents of a source (see `read_texts`) as one text, with an empty line between them."""
    return SEPARATOR.join(read_texts(source, field))


def split_text(text: str, fraction: float = 0.1) -> tuple[str, str]:
    """Split a text into (training, validation): the last `fraction` of its characters is for validation.

    The training part has int(n · (1 − fraction)) of n characters, which is nanoGPT's rule. Validation text comes from
    the end, not from random places, since neighbouring pieces share names and phrases that give the answer away.

    Raises: InputError where `fraction` is not in [0, 1).
    """
    cut = _training_length("split_text", len(text), fraction)
    return text[:cut], text[cut:]


def split_tokens(ids: Ids, validation_fraction: float = 0.1) -> tuple[Ids, Ids]:
    """Split token ids into (training, validation) by the rule of `split_text`.

    An array gives views and `Tokens` give Tokens, so nothing is copied or read from disk.

    Raises: InputError where `validation_fraction` is not in [0, 1).
    """
    cut = _training_length("split_tokens", len(ids), validation_fraction)
    return ids[:cut], ids[cut:]


def _training_length(function: str, length: int, fraction: float) -> int:
    if not 0 <= fraction < 1:
        raise InputError(f"{function}: the validation fraction is {fraction}, expected 0 <= fraction < 1, such as 0.1")
    return int(length * (1 - fraction))


def _builtin_text() -> str:
    try:
        from pydoc_data.topics import topics  # half a megabyte, so loaded only when asked for
    except ImportError as error:
        raise InputError(
            "read_texts: this Python lacks the module pydoc_data, the text of 'builtin'; give a text file instead"
        ) from error
    return SEPARATOR.join(topics[name].strip() for name in sorted(topics))


def _find_files(source: str | Path) -> list[Path]:
    path = Path(source)
    if source == "":
        raise InputError("read_texts: the source is an empty string; give a file, folder, glob pattern or 'builtin'")
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name too long to be one
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and _is_for_folders(file)]
        if not files:
            raise InputError(
                f"read_texts: the folder {source} has no {', '.join(FOLDER_SUFFIXES)} file in it or below it; "
                "give another folder, or a glob pattern for files of other names"
            )
        return files
    if os.path.exists(path):
        check_is_file("read_texts", path)
        return [path]
    if glob.has_magic(str(source)):
        files = sorted(Path(name) for name in glob.glob(str(source), recursive=True) if Path(name).is_file())
        if not files:
            raise InputError(f"read_texts: no file matches {source}, seen from {Path.cwd()}; check the pattern")
        return files
    raise InputError(
        f"read_texts: there is no file or folder {source}, seen from {Path.cwd()}; "
        "give a text file, a folder, a glob pattern, or 'builtin' for the text that Python carries"
    )


def _plain_name(path: Path) -> str:
    return path.name.lower().removesuffix(".gz")


def _is_for_folders(path: Path) -> bool:
    return _plain_name(path).endswith(FOLDER_SUFFIXES)


def _is_jsonl(path: Path) -> bool:
    return _plain_name(path).endswith(".jsonl")


def _documents(source: str | Path, files: list[Path], field: str) -> Iterator[str]:
    found = False
    for path in files:
        texts = _json_lines(path, field) if _is_jsonl(path) else _whole_file(path)
        try:
            for text in texts:
                if text and not text.isspace():
                    found = True
                    yield text
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"read_texts: cannot read {path} ({error}); check that it is whole") from error
    if not found:
        size = sum(path.stat().st_size for path in files)
        raise InputError(
            f"read_texts: {source} is empty or has nothing but whitespace ({size} bytes in {len(files)} file(s)); "
            "give a source with text in it"
        )


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _whole_file(path: Path) -> Iterator[str]:
    with _open(path) as file:
        yield _decode(file.read(), path).replace("\r\n", "\n")


def _json_lines(path: Path, field: str) -> Iterator[str]:
    offset = number = 0
    with _open(path) as file:
        for lines in file:
            for line in lines.removesuffix(b"\n").removesuffix(b"\r").split(b"\r"):
                number += 1
                text = _decode(line, path, offset)
                if text.strip():
                    yield _field_of(text, field, f"line {number} of {path}")
                offset += len(line) + 1
            offset += lines.endswith(b"\r\n")


def _decode(data: bytes, path: Path, offset: int = 0) -> str:
    """Decode UTF-8, where `data` begins `offset` bytes into the file."""
    try:
        text = data.decode("utf-8")
        bad = data.find(b"\0")  # valid UTF-8, but in practice the mark of a binary file or of UTF-16
    except UnicodeDecodeError as error:
        bad = error.start
    if bad >= 0:
        raise InputError(
            f"read_texts: {path} is not text: byte 0x{data[bad]:02x} at offset {offset + bad}; text must be UTF-8"
        )
    return text.removeprefix("\ufeff")  # in .jsonl made by joining files, a mark may begin any line


def _field_of(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = str(error).replace("line 1 ", "")  # JSON's own count of lines, which is always 1 here
        raise InputError(
            f'read_texts: {where} is not JSON ({reason}); each line must be an object such as {{"{field}": "..."}}'
        ) from error
    if not isinstance(record, dict):
        raise InputError(
            f"read_texts: {where} is a JSON {type(record).__name__}, "
            f'expected an object such as {{"{field}": "..."}} on each line'
        )
    if field not in record:
        raise InputError(
            f"read_texts: {where} has the fields {', '.join(record) or '(none)'}, but no {field!r}"
            f"{did_you_mean(field, record)}"
        )
    text = record[field]
    if not isinstance(text, str):
        raise InputError(f"read_texts: field {field!r} in {where} is a {type(text).__name__}, expected a string")
    try:
        text.encode()  # JSON can spell half of a surrogate pair, which no UTF-8 text and so no tokenizer can hold
    except UnicodeEncodeError as error:
        raise InputError(
            f"read_texts: field {field!r} in {where} has the lone surrogate U+{ord(text[error.start]):04X} "
            f"at character {error.start}; write the whole pair, or the character itself"
        ) from error
    return text
