"""Records of .json, .csv and .tsv files, a part of the file at a time, as lines of JSON.

A .json file is an array of objects, or one object; or, as often in published data sets, it has an object on each line.
A table begins with a row of names. Its cells are divided by commas, semicolons, tabs or upright lines, whichever gives
a column with the wanted name.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator

from minillm.corpus.readers.encodings import decoded_lines
from minillm.corpus.readers.pieces import (
    LONGEST_LINE,
    Found,
    Opened,
    encoding_of,
    pieces_of_lines,
    utf_8_blocks,
    whole_lines,
)
from minillm.corpus.readers.skipped import Skip, Skipped
from minillm.corpus.readers.streams import BLOCK
from minillm.errors import did_you_mean

INFO = {  # fields of a record that say something about its text, and what they are called in a document's info
    "url": "url",
    "title": "title",
    "licence": "licence",
    "license": "licence",
    "date": "date",
    "language": "declared_language",
    "lang": "declared_language",
}
SPACE = re.compile(r"\s*")
DELIMITERS = ",;\t|"


def gathered(opened: Opened, word: str, lines: Iterable[bytes | Skipped]) -> Iterator[Found]:
    """Records as lines of JSON, in pieces of about BLOCK bytes; a record that is left out keeps its number."""
    held: list[bytes] = []
    first, size = 1, 0
    numbered = enumerate(lines, 1)
    failure: Skip | None = None
    while failure is None:
        try:
            number, line = next(numbered)
        except StopIteration:
            break
        except Skip as skip:
            failure = skip
            break
        if isinstance(line, bytes):
            held.append(line + b"\n")
            size += len(line)
        if size >= BLOCK or isinstance(line, Skipped):
            if held:
                yield opened.piece("lines", word, first, b"".join(held))
            if isinstance(line, Skipped):
                yield line
            held, size, first = [], 0, number + 1
    if held:
        yield opened.piece("lines", word, first, b"".join(held))
    if failure is not None:
        raise failure


# --- JSON ----------------------------------------------------------------------------------------------------------


def json_pieces(opened: Opened) -> Iterator[Found]:
    """The objects of a .json file."""
    data = utf_8_blocks(opened)
    head = next(data, b"")
    if _is_of_lines(head):
        yield from pieces_of_lines(opened, itertools.chain([head], data))
        return
    decoder = codecs.getincrementaldecoder("utf-8")("minillm-windows-1252")
    texts = (decoder.decode(block) for block in itertools.chain([head], data))
    # Line ends stand only between the parts of a value: a string cannot hold one.
    lines = (value.replace("\n", " ").encode("utf-8", "replace") for value in json_values(texts))
    yield from gathered(opened, "record", lines)


def _is_of_lines(head: bytes) -> bool:
    """True if each line is an object of its own."""
    line, _, rest = head.lstrip().partition(b"\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def json_values(texts: Iterator[str]) -> Iterator[str]:
    """The elements of an array, or the values that stand one after the other, each as it is written.

    Raises: Skip where the text goes on as no JSON does, or a value is too long to be held.
    """
    window = _Window(texts)
    if is_array := window.skip("["):
        window.skip(",")  # none is right here, and the element is then found wrong
    while window.here() and not (is_array and window.here() == "]"):
        yield window.value()
        if is_array and not window.skip(",") and window.here() != "]":
            raise Skip("damaged", f"a comma or ] should stand before {window.held[window.at : window.at + 20]!r}")
    if is_array and not window.here():
        raise Skip("damaged", "the array has no end")


class _Window:
    """The part of a long text that is in memory, and a place in it."""

    def __init__(self, texts: Iterator[str]):
        self.held, self.at, self._texts = "", 0, texts
        self._decoder = json.JSONDecoder()

    def here(self) -> str:
        """The next character that is no space; empty at the end of the text."""
        while True:
            self.at = SPACE.match(self.held, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.held) or not self._more(1):
                return self.held[self.at : self.at + 1]

    def skip(self, character: str) -> bool:
        """Go past this character, if it is the next one."""
        found = self.here() == character
        self.at += found
        return found

    def value(self) -> str:
        """The next value, past which it goes."""
        while True:
            size = len(self.held) - self.at
            try:
                _, end = self._decoder.raw_decode(self.held, self.at)
                if end < len(self.held) or not self._more(size):
                    found, self.at = self.held[self.at : end], end
                    return found
            except RecursionError:
                raise Skip("damaged", "a value is nested too deeply") from None
            except ValueError as error:
                if size > LONGEST_LINE:
                    raise Skip("too_large", f"a record is longer than {LONGEST_LINE:,} bytes, or broken") from None
                if not self._more(size):
                    raise Skip("damaged", f"it is not JSON ({str(error).partition(':')[0]})") from None

    def _more(self, size: int) -> bool:
        """Read so many characters or more, and forget what lies before the place; False at the end of the text."""
        parts = [self.held[self.at :]]
        wanted = len(parts[0]) + max(size, 1)
        while sum(map(len, parts)) < wanted and (text := next(self._texts, None)) is not None:
            parts.append(text)
        grown = len(parts) > 1
        self.held, self.at = ("".join(parts), 0) if grown else (self.held, self.at)
        return grown


# --- tables --------------------------------------------------------------------------------------------------------


def csv_pieces(opened: Opened) -> Iterator[Found]:
    """The rows of a .csv or .tsv file."""
    lines = _text_lines(opened)
    header = next(lines, "")
    delimiter = _delimiter(opened, header)
    csv.field_size_limit(LONGEST_LINE)
    rows = csv.reader(itertools.chain([header], lines), delimiter=delimiter)
    names = [name.strip() for name in next(rows)]
    yield from gathered(opened, "row", _records(opened, rows, names))


def _text_lines(opened: Opened) -> Iterator[str]:
    encoding = None
    for number, data in whole_lines(utf_8_blocks(opened)):
        if data is None:
            raise Skip("too_large", f"line {number} is longer than {LONGEST_LINE:,} bytes")
        encoding = encoding_of(data) if number == 1 else encoding
        yield from (f"{line}\n" for line in decoded_lines(data.removesuffix(b"\n"), encoding))


def _delimiter(opened: Opened, header: str) -> str:
    """The sign between cells that gives a column with the wanted name."""
    order = "\t,;|" if opened.reads_as.lower().endswith(".tsv") else DELIMITERS
    found: list[str] = []
    for delimiter in order:
        try:
            names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        except csv.Error:
            continue
        if opened.field in names:
            return delimiter
        found = max(found, names, key=len)
    names = [name[:40] for name in found[:20]]
    raise Skip("broken", f"the first row has no column {opened.field!r}{did_you_mean(opened.field, names)}")


def _records(opened: Opened, rows: Iterator[list[str]], names: list[str]) -> Iterator[bytes | Skipped]:
    """The rows as lines of JSON with the columns that are of use."""
    kept = [(number, name) for number, name in enumerate(names) if name == opened.field or name.lower() in INFO]
    for number in itertools.count(1):
        try:
            row = next(rows)
            if row and len(row) != len(names):
                raise csv.Error(f"it has {len(row)} cells, and the first row {len(names)}")
        except StopIteration:
            return
        except csv.Error as error:
            yield opened.skipped(f"row {number}", Skip("broken", str(error)))
        else:
            record = {name if name == opened.field else name.lower(): row[at] for at, name in kept if row}
            yield json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")
