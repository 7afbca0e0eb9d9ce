"""Read records, JSON objects, from a file that holds one a line (.jsonl) or all in one array (.json).

Real files have faulty records among thousands of good ones. A faulty record is left out and counted, with its place
(its line, or in an array its number) and what is wrong with it; only a file without one good record is an error.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from minillm.counted import counted
from minillm.errors import InputError, did_you_mean
from minillm.files import check_is_file

T = TypeVar("T")
U = TypeVar("U")
SHOWN = 3  # problems that a summary names


class Records(NamedTuple, Generic[T]):
    """The good records of a file, each with its place, and what is wrong with the others."""

    items: list[T]
    places: list[int]  # of each item: the number of its line, or in an array its own, from 1
    problems: list[str]  # such as "line 7: there is no field 'output'"
    unit: str = "line"  # of the places, or "record"

    def summary(self) -> str:
        """The numbers of records read and left out, and the reasons for the first ones left out."""
        text = counted(len(self.items), "record")
        if self.problems:
            more = len(self.problems) - SHOWN
            text += f"; {len(self.problems):,} left out ({'; '.join(self.problems[:SHOWN])}"
            text += f"; and {more:,} more)" if more > 0 else ")"
        return text


def read_records(path: str | Path, parse: Callable[[Mapping[str, Any]], T]) -> Records[T]:
    """Read every record of a file, as `parse` understands it; an InputError of `parse` says what is wrong with one.

    A file that begins with "[" is one JSON array, any other has a record on each line; it may be compressed with gzip
    (`data.jsonl.gz`). Empty lines do not count as records.

    Raises: InputError where the file is missing, is not text, is an array that is not JSON, or has no good record.
    """
    text = _read(Path(path))
    is_array = text.lstrip().startswith("[")
    found: Records[T] = Records([], [], [], "record" if is_array else "line")
    for place, record in _elements(path, text) if is_array else _lines(text):
        try:
            found.items.append(parse(_checked(record)))
            found.places.append(place)
        except InputError as error:
            found.problems.append(f"{found.unit} {place}: {error}")
    if not found.items:
        none = "its one record cannot" if len(found.problems) == 1 else f"none of the {len(found.problems)} records can"
        why = f"{none} be used" if found.problems else "there are no records in it"
        raise InputError(f"read_records: {path}: {why}{''.join(f'; {one}' for one in found.problems[:SHOWN])}")
    return found


def text_field(record: Mapping[str, Any], field: str) -> str:
    """The text of a field. Raises: InputError where it is missing or something else."""
    if field not in record:
        hint = did_you_mean(field, record)
        there = hint if "did you mean" in hint else f" among {', '.join(record) or '(none)'}"
        raise InputError(f"there is no field {field!r}{there}")
    if not isinstance(record[field], str):
        raise InputError(f"the field {field!r} is a {type(record[field]).__name__}; give a text")
    return record[field]


def answer_field(record: Mapping[str, Any], field: str) -> str:
    """The text of a field with an answer. Raises: as `text_field`, and where nothing is written there."""
    answer = text_field(record, field)
    if not answer.strip():
        raise InputError(f"the field {field!r} is empty, so there is nothing to learn")
    return answer


def _read(path: Path) -> str:
    check_is_file("read_records", path)
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix.lower() == ".gz" else data
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"read_records: {path} is not text: byte 0x{error.object[error.start]:02x} at offset {error.start}; text "
            "must be UTF-8"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"read_records: cannot read {path} ({error}); give a .jsonl or .json file") from None


def _lines(text: str) -> Iterator[tuple[int, Any]]:
    """The number of each line that is not empty, and its JSON, or the error in it."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, InputError(f"this is not JSON ({str(error).replace('line 1 ', '')})")


def _elements(path: str | Path, text: str) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array, each with its number, from 1."""
    decoder, place, number = json.JSONDecoder(), text.index("[") + 1, 0
    try:
        while (place := _skip(text, place)) < len(text) and text[place] != "]":
            record, end = decoder.raw_decode(text, place)
            number += 1
            yield number, record
            place = _skip(text, end)
            if text[place : place + 1] not in ("]", ","):
                raise ValueError(f"expected a comma or ], found {text[place : place + 10]!r}")
            place += text[place] == ","
    except (ValueError, RecursionError) as error:
        where = text.count("\n", 0, place) + 1
        raise InputError(
            f"read_records: {path} is not JSON from line {where} on, after {number} whole records ({error}); correct it"
        ) from None


def _skip(text: str, place: int) -> int:
    """The next place that has no white space."""
    while text[place : place + 1].isspace():
        place += 1
    return place


def _checked(record: Any) -> Mapping[str, Any]:
    """The record, if it is an object whose texts can be encoded."""
    if isinstance(record, InputError):
        raise record
    if not isinstance(record, dict):
        raise InputError(f'this is a JSON {type(record).__name__}; give an object such as {{"instruction": ...}}')
    try:
        json.dumps(record, ensure_ascii=False).encode()  # JSON can spell half of a surrogate pair
    except UnicodeEncodeError as error:
        raise InputError(f"there is the lone surrogate U+{ord(error.object[error.start]):04X} in it") from None
    return record


def converted(records: Records[T], make: Callable[[T], U]) -> tuple[Records[T], list[U], list[int]]:
    """The records of which `make` can make something, what it made, and the numbers that they had among all.

    An InputError of `make` is one more problem.
    """
    found: Records[T] = Records([], [], [*records.problems], records.unit)
    made, numbers = [], []
    for number, (item, place) in enumerate(zip(records.items, records.places, strict=True)):
        try:
            made.append(make(item))
        except InputError as error:
            found.problems.append(f"{records.unit} {place}: {error}")
            continue
        found.items.append(item)
        found.places.append(place)
        numbers.append(number)
    return found, made, numbers
