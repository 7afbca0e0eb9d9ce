"""The file format of token shards: ids as plain numbers, with checksums that are looked at block by block.

A shard is a header of 64 bytes, the ids, and a table of checksums, all of it little-endian:

| offset      | bytes     | content                                                                            |
|-------------|-----------|------------------------------------------------------------------------------------|
| 0           | 8         | the letters `MINILLMT`                                                             |
| 8           | 4         | format version, uint32: 2                                                          |
| 12          | 4         | dtype code, uint32, which is the bytes of one id: 2 for uint16, 4 for uint32       |
| 16          | 8         | number of ids n, uint64                                                            |
| 24          | 8         | vocabulary size V, uint64: every id is below it; ids are uint16 where V <= 65536   |
| 32          | 16        | fingerprint of the tokenizer that made the ids: 16 ASCII characters                |
| 48          | 4         | bytes of a block, uint32: 16384                                                    |
| 52          | 4         | CRC-32 (as in zlib and PNG) of the table, uint32                                   |
| 56          | 4         | zeros                                                                              |
| 60          | 4         | CRC-32 of the 60 bytes before, uint32                                              |
| 64          | n · code  | the ids                                                                            |
| 64 + n·code | 4 a block | the CRC-32 of each block of ids, the last of which may be shorter, uint32          |

Version 1 had no table, and zeros at 48 to 60; such files are read, without a check of their ids. Without any check,
`numpy.fromfile(path, "<u2", count=n, offset=64)` reads one.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from minillm.errors import InputError

MAGIC = b"MINILLMT"
VERSION = 2
DTYPES: dict[int, np.dtype] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}  # by dtype code
FIELDS = struct.Struct("<8sIIQQ16sII4x")  # the header without its checksum
HEADER_BYTES = FIELDS.size + 4
BLOCK = 1 << 14  # bytes; a window of tokens is in one or two, which are read whole the first time


def dtype_for(vocab_size: int) -> np.dtype:
    """The dtype of the ids in a shard, which is the smaller one where all ids fit into it."""
    return DTYPES[2 if vocab_size <= 1 << 16 else 4]


def seal_shard(file: BinaryIO, count: int, vocab_size: int, fingerprint: str) -> int:
    """Write the header, and the table after the ids that are in the file; returns the bytes of the table."""
    code = dtype_for(vocab_size).itemsize
    file.seek(HEADER_BYTES)
    left, sums = count * code, []
    while left:
        block = file.read(min(BLOCK, left))
        left -= len(block)
        sums.append(zlib.crc32(block))
    table = np.array(sums, "<u4").tobytes()
    file.seek(HEADER_BYTES + count * code)
    file.write(table)
    fields = FIELDS.pack(MAGIC, VERSION, code, count, vocab_size, fingerprint.encode(), BLOCK, zlib.crc32(table))
    file.seek(0)
    file.write(fields + struct.pack("<I", zlib.crc32(fields)))
    return len(table)


class ShardFile:
    """An open shard. Its bytes are read when they are asked for, and each block is checked the first time.

    It is read, not mapped into memory: where a mapped file is cut short meanwhile, the system kills the program.
    """

    def __init__(self, path: Path, file: FileIO, dtype: np.dtype, block: int, sums: np.ndarray) -> None:
        self.path, self.file, self.dtype, self.block, self.sums = path, file, dtype, block, sums
        self.descriptor = file.fileno()  # closed here, in whatever order objects end that refer to each other
        self.seen = np.zeros(len(sums), bool)  # blocks that were checked
        self.lock = threading.Lock()  # of the place in the file

    def __del__(self) -> None:
        os.close(self.descriptor)

    def read(self, start: int, stop: int) -> np.ndarray:
        """The ids from `start` to `stop`. Raises: InputError for a file that was cut short, or a damaged block."""
        size = self.dtype.itemsize
        if len(self.sums) and stop > start:
            for number in range(start * size // self.block, (stop * size - 1) // self.block + 1):
                if not self.seen[number]:
                    self.check(number)
        return np.frombuffer(self._bytes(start * size, stop * size), self.dtype)

    def check(self, number: int) -> None:
        """Compare a block with its checksum."""
        start = number * self.block
        end = os.fstat(self.file.fileno()).st_size - HEADER_BYTES - 4 * len(self.sums)
        if zlib.crc32(self._bytes(start, min(start + self.block, end))) != self.sums[number]:
            size = self.dtype.itemsize
            raise InputError(
                f"open_tokens: {self.path} is damaged: its ids {start // size} to {(start + self.block) // size - 1} "
                "do not have their checksum; copy or write it again"
            )
        self.seen[number] = True

    def _bytes(self, start: int, stop: int) -> bytes:
        with self.lock:
            self.file.seek(HEADER_BYTES + start)
            content = self.file.read(stop - start)
        if len(content) != stop - start:
            raise InputError(
                f"open_tokens: {self.path} was cut short after it was opened; copy or write it again, and resume"
            )
        return content


class ShardIds:
    """Ids of a shard, from `start` to `stop`: a slice reads nothing, `np.asarray` reads them."""

    def __init__(self, file: ShardFile, start: int, stop: int) -> None:
        self.file, self.start, self.stop = file, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, part: slice) -> ShardIds:
        start, stop, _ = part.indices(len(self))
        return ShardIds(self.file, self.start + start, self.start + max(start, stop))

    def __iter__(self) -> Iterator[int]:
        return iter(self.__array__())

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        ids = self.file.read(self.start, self.stop)
        return ids if dtype is None else ids.astype(dtype)


class Shard(NamedTuple):
    """A shard that was opened."""

    ids: ShardIds
    vocab_size: int
    fingerprint: str
    version: int


def open_shard(path: Path) -> Shard:
    """Open a shard, and read its header and its table of checksums.

    Raises: InputError for a file that is missing, not a shard, of another version, damaged there, or cut short.
    """
    try:
        if path.exists() and not path.is_file():  # to open a pipe would wait for who writes to it
            raise InputError(f"open_tokens: {path} is no file; give the paths that write_shards returned")
        file = FileIO(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), closefd=False)  # ShardFile closes it
    except OSError as error:
        raise InputError(f"open_tokens: cannot read {path} ({error}); make shards with write_shards") from error
    try:
        return _opened(path, file)
    except BaseException:
        os.close(file.fileno())
        raise


def _opened(path: Path, file: FileIO) -> Shard:
    """The shard in an open file."""
    header = file.read(HEADER_BYTES)
    size = os.fstat(file.fileno()).st_size
    if not header.startswith(MAGIC):
        raise InputError(
            f"open_tokens: {path} is not a token shard: it starts with {header[:8]!r}, expected {MAGIC!r}; "
            "make shards with write_shards"
        )
    if size < HEADER_BYTES:
        raise InputError(
            f"open_tokens: {path} is cut short: it has {size} bytes, and the header alone has {HEADER_BYTES}; "
            "copy or write it again"
        )
    _, version, code, count, vocab_size, fingerprint, block, table_sum = FIELDS.unpack(header[: FIELDS.size])
    if version not in (1, VERSION):  # before the checksum, which another version may keep elsewhere
        raise InputError(
            f"open_tokens: {path} has format version {version}, expected 1 or {VERSION}; write it again with this "
            "minillm"
        )
    stored, computed = int.from_bytes(header[FIELDS.size :], "little"), zlib.crc32(header[: FIELDS.size])
    if stored != computed:
        raise InputError(
            f"open_tokens: the header of {path} is damaged: its checksum says {stored:08x}, but its bytes give "
            f"{computed:08x}; copy or write it again"
        )
    if code not in DTYPES or (version > 1 and block < 1):
        raise InputError(
            f"open_tokens: {path} has dtype code {code}, expected 2 (uint16) or 4 (uint32); write it again"
        )
    blocks = -(-count * code // block) if version > 1 else 0
    if size != HEADER_BYTES + count * code + 4 * blocks:
        raise InputError(
            f"open_tokens: {path} has {size} bytes, but its header promises {HEADER_BYTES + count * code + 4 * blocks} "
            f"({count} ids of {code} bytes); copy or write it again"
        )
    file.seek(HEADER_BYTES + count * code)
    table = file.read(4 * blocks) if blocks else b""
    if version > 1 and zlib.crc32(table) != table_sum:
        raise InputError(f"open_tokens: the checksums at the end of {path} are damaged; copy or write it again")
    opened = ShardFile(path, file, DTYPES[code], block, np.frombuffer(table, "<u4"))
    return Shard(ShardIds(opened, 0, count), vocab_size, fingerprint.decode("latin-1"), version)
