"""A piece of a file, a file that is being read, and the readers of texts, lines and pages.

A piece is as many bytes as a worker reads at once, with what it must know about them. Files are cut by their bytes
alone and in constant memory.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal, NamedTuple

from minillm.corpus.readers.encodings import as_utf_8, detected, one_line_end
from minillm.corpus.readers.skipped import Skip, Skipped
from minillm.corpus.readers.streams import BLOCK, Budget, Readable, blocks

LONGEST_TEXT = 4 << 20  # bytes of a text that is one document: the longest novels have so many
CUT = 256 << 10  # bytes of the documents into which a longer one is cut
LONGEST_LINE = 32 << 20  # bytes of a line or a record
LONGEST_PAGE = 16 << 20  # bytes of a page of HTML


class Piece(NamedTuple):
    """A part of a file that makes one document or several."""

    source: str
    file: str  # with which the ids of the documents begin
    kind: Literal["text", "lines", "page", "rows"]
    word: str  # for the places in it: "line", "record", "row", "part", "page"
    place: int  # of the first document, from 1
    data: bytes
    encoding: str | None = None  # that is declared, or that the beginning of the file has
    info: Mapping[str, Any] = {}  # what is known of the documents already

    @property
    def last(self) -> str:
        """The place of the last document."""
        others = self.data.count(b"\n") - 1 if self.kind == "lines" else 0
        return f"{self.word} {self.place + others}"


Found = Piece | Skipped


@dataclass(frozen=True)
class Opened:
    """A file that is being read, or a member of an archive."""

    source: str
    name: str  # with which the ids of its documents begin
    reads_as: str  # the name without the endings that are undone: "a.jsonl" of "a.jsonl.gz"
    stream: Readable
    budget: Budget
    field: str  # of a record, with its text
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    file: IO[bytes] | None = None  # the file on disk, if the stream is that
    archives: int = 0  # in which it lies
    inner: Callable[[Opened], Iterator[Found]] = lambda _: iter(())  # the reader of what lies in it

    def piece(
        self, kind: Literal["text", "lines", "page", "rows"], word: str, place: int, data: bytes, **more: Any
    ) -> Piece:
        """A piece of this file."""
        info = {**self.info, **more.pop("info", {})}
        return Piece(self.source, self.name, kind, word, place, data, info=info, **more)

    def skipped(self, place: str, skip: Skip) -> Skipped:
        """A part of this file that is left out."""
        return Skipped(self.name, place, skip.kind, skip.why)


def text_pieces(opened: Opened) -> Iterator[Found]:
    """A text, or where it is too long for one document, its parts."""
    held, number, encoding = b"", 1, None
    try:
        for block in utf_8_blocks(opened):
            held += block
            if number == 1 and len(held) <= LONGEST_TEXT:
                continue
            if number == 1:
                encoding = encoding_of(held)
            begin = 0
            while len(held) - begin > 2 * CUT:
                end = _end_of_part(held, begin)
                yield opened.piece("text", "part", number, held[begin:end], encoding=encoding)
                begin, number = end, number + 1
            held = held[begin:]
    except Skip:
        if held:
            yield opened.piece("text", "part", number, held, encoding=encoding)
        raise
    if held or number == 1:
        yield opened.piece("text", "part", number, held, encoding=encoding)


def _end_of_part(held: bytes, begin: int) -> int:
    """The end of a part of about CUT bytes: after an empty line, a line or a sentence, or between two characters."""
    for mark in (b"\n\n", b"\n", b". ", b" "):
        if (at := held.find(mark, begin + CUT, begin + 2 * CUT)) >= 0:
            return at + len(mark)
    end = begin + CUT
    while held[end] & 0xC0 == 0x80 and end > begin + CUT - 3:  # within a character of UTF-8
        end -= 1
    return end


def line_pieces(opened: Opened) -> Iterator[Found]:
    """Whole lines of a .jsonl file."""
    yield from pieces_of_lines(opened, utf_8_blocks(opened))


def pieces_of_lines(opened: Opened, lines: Iterable[bytes]) -> Iterator[Found]:
    """The lines of these blocks, in pieces."""
    encoding: str | None = None
    for number, data in whole_lines(lines):
        if data is None:
            yield opened.skipped(f"line {number}", Skip("too_large", f"it is longer than {LONGEST_LINE:,} bytes"))
        else:
            encoding = encoding_of(data) if number == 1 else encoding
            yield opened.piece("lines", "line", number, data, encoding=encoding)


def whole_lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Whole lines, many at a time, with the number of the first; None for a line that is too long to be held."""
    number, size = 1, 0
    parts: list[bytes] = []  # of the line that has not ended, `size` bytes so far
    for block in blocks:
        first, end, others = block.partition(b"\n")
        size += len(first)
        parts = [] if size > LONGEST_LINE else [*parts, first]
        if not end:
            continue
        whole, end, rest = others.rpartition(b"\n")
        if size > LONGEST_LINE:
            yield number, None
            number, data = number + 1, whole + end
        else:
            data = b"".join([*parts, b"\n", whole, end])
        if data:
            yield number, data
            number += data.count(b"\n")
        parts, size = [rest], len(rest)
    if size > LONGEST_LINE:
        yield number, None
    elif size:
        yield number, b"".join([*parts, b"\n"])


def utf_8_blocks(opened: Opened) -> Iterator[bytes]:
    """The blocks of a text with "\\n" for line ends; UTF-16 becomes UTF-8, other encodings stay."""
    return one_line_end(as_utf_8(blocks(opened.stream)))


def encoding_of(head: bytes) -> str | None:
    """The encoding of a file that begins with these bytes; None for UTF-8, which needs no word."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
        return None
    except UnicodeDecodeError:
        return detected(head[:BLOCK]) or None


def page_pieces(opened: Opened) -> Iterator[Found]:
    """A page of HTML."""
    yield opened.piece("page", "page", 1, whole(opened.stream, LONGEST_PAGE))


def whole(stream: Readable, most: int) -> bytes:
    """All bytes of a stream. Raises: Skip where there are more than `most`."""
    held: list[bytes] = []
    size = 0
    for block in blocks(stream):
        held.append(block)
        size += len(block)
        if size > most:
            raise Skip("too_large", f"it has more than {most:,} bytes")
    return b"".join(held)
