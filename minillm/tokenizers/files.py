"""Files of tokenizers: texts to learn from, and JSON. Every failure to read one becomes an error of one sentence.

A text file is UTF-8. A byte order mark (U+FEFF) at its very start is not part of the text. Line ends stay as they
are, including a lone carriage return: they are characters like all others, and have ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minillm.checksums import check_listed, forget_list
from minillm.errors import DtypeError, InputError
from minillm.files import check_is_file, writing

READ_AT_ONCE = 1 << 20  # characters
UTF8 = "utf-8-sig"  # drops the byte order mark
NAMED_BESIDE = "special_tokens_map.json", "tokenizer_config.json"  # where Hugging Face names special tokens
ROLES = "bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"


def read_texts(where: str, text_or_files: str | Path | Iterable[str | Path]) -> Iterator[Iterable[str]]:
    """Yield each training text as chunks: a str is a text, a Path a file with one, an iterable holds any number."""
    if isinstance(text_or_files, str):
        yield [text_or_files]
    elif isinstance(text_or_files, Path):
        yield read_chunks(where, text_or_files)
    elif isinstance(text_or_files, Iterable):
        for item in text_or_files:
            yield from read_texts(where, item)
    else:
        raise DtypeError(
            f"{where}: got {text_or_files!r} ({type(text_or_files).__name__}), expected text; "
            "give a str, a pathlib.Path, or an iterable of them"
        )


def read_chunks(where: str, path: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file, a block at a time; line ends stay as they are."""
    check_is_file(where, path)
    try:
        with path.open(encoding=UTF8, newline="") as file:
            while chunk := file.read(READ_AT_ONCE):
                yield chunk
    except OSError as error:
        raise InputError(f"{where}: cannot read {path} ({error.strerror}); give the path of a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: {path} is not UTF-8 text ({error.reason} 0x{error.object[error.start]:02x}); "
            "give a text file, saved as UTF-8"
        ) from error


# Whole files


@contextmanager
def readable(where: str, what: str, advice: str, passing: str | None = "") -> Iterator[None]:
    """Turn every exception inside into one InputError; errors that begin with `passing` stay as they are."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError) and passing is not None and str(error).startswith(passing):
            raise
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{where}: {what} ({reason}); {advice}") from error


def read_json(where: str, path: Path) -> Any:
    """The value in a JSON file; an InputError that begins with `where` if it cannot be read."""
    check_is_file(where, path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{where}: cannot read {path} ({error.strerror}); give the place where it was saved"
        ) from error
    try:
        check_listed(path, content)
    except ValueError as error:
        raise InputError(f"{where}: {path} is damaged ({error}); get it again") from error
    try:
        return json.loads(content.decode(UTF8))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
        raise InputError(f"{where}: {path} is not JSON ({error}); it is damaged, or another file") from error


def names_beside(where: str, folder: Path) -> dict[str, str]:
    """The special token of each role, by the Hugging Face files that lie beside a tokenizer.json."""
    names: dict[str, str] = {}
    for name in NAMED_BESIDE:
        content = read_json(where, folder / name) if (folder / name).is_file() else {}
        for role in ROLES:
            token = content.get(role) if isinstance(content, dict) else None
            token = token.get("content") if isinstance(token, dict) else token  # an object with its flags
            if isinstance(token, str):
                names[role] = token
    return names


def write_text(where: str, path: Path, text: str) -> None:
    """Write a file that appears whole or not at all. Raises: InputError where it cannot be written."""
    with writing(where, path) as unfinished:
        path.parent.mkdir(parents=True, exist_ok=True)
        forget_list(path)
        unfinished.write_text(text, encoding="utf-8", newline="\n")
