"""A document on its way through the pipeline, and the files between two stages: .jsonl, .jsonl.gz or .jsonl.zst.

Every stage reads such files and writes one, a document a line, in the order in which they came. A stage never takes a
document out: it writes down why the document is dropped, and later stages pass it on as it is. So the file at the end
still knows every document, and the report can show what each rule did. Only `split` writes the kept ones alone.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from minillm.errors import InputError
from minillm.files import check_is_file

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
ZSTD_STEP = 1 << 10  # compressed bytes at a time: they stand for at most 32 MB
GZIP_LEVEL, ZSTD_LEVEL = 6, 3  # fixed, since the bytes of an output depend on them


@dataclass(slots=True)
class Document:
    """A text, where it comes from, and what the stages found out about it."""

    text: str
    id: str  # unique in a corpus: the file's name and the number of the document in it, "books/emma.txt:0"
    source: str = ""  # a name for where it comes from, by which sources are mixed: "books"
    language: str | None = None  # ISO 639-1, such as "de"; None where nobody has looked
    dropped: str | None = None  # the rule that dropped it, and what it measured: "gopher_quality: 12 words, under 50"
    info: dict[str, Any] = field(default_factory=dict)  # all else: url, title, licence, language_score, duplicate_of

    @property
    def rule(self) -> str | None:
        """The name of the rule that dropped the document: what stands before the colon."""
        return None if self.dropped is None else self.dropped.partition(":")[0]

    def to_line(self) -> bytes:
        """The document as a line of JSON. Keys that say nothing are left out."""
        record: dict[str, Any] = {"id": self.id, "source": self.source, "text": self.text}
        for name in ("language", "dropped", "info"):
            if value := getattr(self, name):
                record[name] = value
        try:
            return json.dumps(record, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot write and JSON can spell
            return json.dumps(record).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Document:
        """The inverse of to_line. Raises: InputError for a line that is no document."""
        try:
            found = cls(**json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"data: this is no document of a corpus: {line[:80]!r} ({error})") from None
        for name, kinds in TYPES.items():
            if not isinstance(value := getattr(found, name), kinds):
                raise InputError(f"data: this is no document of a corpus: {name} is {value!r:.80}")
        return found


TYPES: dict[str, Any] = {  # of a document's fields
    **dict.fromkeys(("text", "id", "source"), str),
    **dict.fromkeys(("language", "dropped"), (str, type(None))),
    "info": dict,
}


def open_lines(path: Path, mode: str = "rb") -> IO[bytes]:
    """Open a .jsonl file to read or write lines; .gz and .zst are decompressed and compressed on the way.

    Raises: InputError for another suffix, and for .zst without the package that reads it (`pip install ".[data]"`).
    """
    check_suffix(path)
    if path.name.endswith(".gz"):
        return gzip.GzipFile(path, mode, mtime=0)  # type: ignore[return-value]
    if path.name.endswith(".zst") and mode == "wb":
        return zstandard_for(path).open(path, mode)
    return decompressed(open(path, mode), path)


def decompressed(file: IO[bytes], path: Path) -> IO[bytes]:
    """The lines of an open file of this name. A .gz or .zst may have several frames."""
    if path.name.endswith(".gz"):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if path.name.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(file, path.name), 1 << 20)
    return file


class ZstdFrames:
    """The content of a .zst. (The package's own stream ends without a word where a file is cut short.)"""

    def __init__(self, file: Any, name: str):
        self._package = zstandard_for(Path(name))
        self._file, self._rest, self._ready = file, b"", b""
        self._frame: Any = None

    def read(self, size: int) -> bytes:
        while not self._ready:
            if not (data := self._rest or self._file.read(ZSTD_STEP)):
                if self._frame is not None:
                    raise EOFError("the compressed file is cut short")
                return b""
            if self._frame is None:
                self._frame = self._package.ZstdDecompressor().decompressobj()
            try:
                self._ready = self._frame.decompress(data)
            except self._package.ZstdError as error:
                raise EOFError(str(error)) from None
            self._rest = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        found, self._ready = self._ready[:size], self._ready[size:]
        return found


class _ZstdFile(io.RawIOBase):
    """The content of a .zst as a file, for a buffer to read from."""

    def __init__(self, file: IO[bytes], name: str):
        self._file, self._frames = file, ZstdFrames(file, name)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._frames.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def compressed(lines: bytes, path: Path) -> bytes:
    """These lines as a frame for a file of this name; frames one behind the other are such a file."""
    if path.name.endswith(".gz"):
        return gzip.compress(lines, GZIP_LEVEL, mtime=0)
    if path.name.endswith(".zst"):
        return zstandard_for(path).ZstdCompressor(ZSTD_LEVEL, write_checksum=True).compress(lines)
    return lines


def has_checksums(path: Path) -> bool:
    """True if a compressed file has checksums: each .gz does, and a .zst by the flag in its first frame."""
    with open(path, "rb") as file:
        return path.name.endswith(".gz") or zstandard_for(path).get_frame_parameters(file.read(18)).has_checksum


def plain_name(path: Path) -> str:
    """The name of a file without its ending: "clean" of clean.jsonl.zst."""
    return path.name.partition(".jsonl")[0]


def check_suffix(path: Path) -> None:
    """Raise InputError for a file that is no .jsonl, and for a .zst where no package can read it."""
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"data: {path} has another ending than {', '.join(SUFFIXES)}; give the output of a stage")
    check_is_file("data", path)
    if path.name.endswith(".zst"):
        zstandard_for(path)


def zstandard_for(path: Path) -> Any:
    """The package that reads and writes .zst."""
    try:
        import zstandard
    except ImportError:
        raise InputError(f'data: {path} needs zstandard; pip install ".[data]"') from None
    return zstandard


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of a file, one after the other.

    Raises: InputError for a line that is no document, and for a compressed file that is damaged or cut short.
    """
    with open_lines(path) as lines:
        for number in itertools.count(1):
            try:
                line = lines.readline()
                document = Document.from_line(line) if line else None
            except (InputError, OSError, EOFError, zlib.error) as error:
                reason = str(error).removeprefix("data: ")
                raise InputError(
                    f"data: {path} is damaged from line {number} on ({reason}); run the stage again that wrote it"
                ) from None
            if document is None:
                return
            yield document
