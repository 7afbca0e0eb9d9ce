"""Bytes of files, decompressed on the way, a block at a time, and never more than the file's size can explain.

A few bytes of a compressed file can stand for terabytes. So every file on disk has a `Budget`: what comes out of it, at
all levels of compression together, may be 64 MB, and beyond that `MOST_GROWTH` times what lies on disk.
"""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, Protocol

from minillm.corpus.document import ZstdFrames
from minillm.corpus.readers.skipped import Skip

BLOCK = 1 << 20
FREE, MOST_GROWTH = 64 << 20, 300  # text shrinks to a tenth, and rarely to a hundredth


class Readable(Protocol):
    """A stream: `read(n)` returns up to n bytes, and none at the end."""

    def read(self, size: int, /) -> bytes: ...


class Budget:
    """The number of bytes that may still come out of a file."""

    def __init__(self, size: int):
        self.most, self.spent, self.size = max(FREE, MOST_GROWTH * size), 0, size

    def spend(self, count: int) -> None:
        """Note that so many bytes came out. Raises: Skip where that is too much."""
        self.spent += count
        if self.spent > self.most:
            raise Skip("too_large", f"{self.size:,} bytes have grown to more than {self.most:,}; unpack it by hand")


class Metered:
    """A stream whose bytes are counted, and whose errors are reasons to skip the rest."""

    def __init__(self, stream: Any, budget: Budget):
        self._read = getattr(stream, "read1", stream.read)  # gives what it has before it finds that the rest is missing
        self._budget = budget

    def read(self, size: int) -> bytes:
        try:
            data = self._read(size)
        except Skip:
            raise
        except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
            raise Skip("damaged", f"it cannot be read further ({error})") from None
        except (NotImplementedError, RuntimeError) as error:
            raise Skip("unsupported", f"it is compressed in an unknown way ({error})") from None
        self._budget.spend(len(data))
        return data


def gunzipped(file: Readable, budget: Budget) -> Metered:
    """The content of a .gz."""
    return Metered(gzip.GzipFile(fileobj=_as_file(file)), budget)


def unzstandard(file: Readable, budget: Budget, name: str) -> Metered:
    """The content of a .zst."""
    return Metered(ZstdFrames(file, name), budget)


def _as_file(file: Readable) -> IO[bytes]:
    return file  # type: ignore[return-value]  # gzip calls nothing but read


def blocks(stream: Readable) -> Iterator[bytes]:
    """The bytes of a stream in blocks of BLOCK or a little more; what comes before an error comes first."""
    parts: list[bytes] = []
    size = 0
    try:
        while data := stream.read(BLOCK):
            parts.append(data)
            size += len(data)
            if size >= BLOCK:
                yield b"".join(parts)
                parts, size = [], 0
    except Skip:
        if parts:
            yield b"".join(parts)
        raise
    if parts:
        yield b"".join(parts)
