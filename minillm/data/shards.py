"""Token shards: a corpus encoded once, kept on disk as plain numbers, and read without loading it.

A corpus may be larger than memory, and encoding it takes longer than reading it. So it is encoded once into files of
token ids, called shards, and training reads from these files what it needs: the operating system keeps in memory what
is used. shard_file.py has the format.
"""

from __future__ import annotations

import glob
import itertools
import operator
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

from minillm.data.shard_file import HEADER_BYTES, ShardIds, dtype_for, open_shard, seal_shard
from minillm.errors import InputError
from minillm.files import sweep, sync, unfinished_name

CHUNK = 1 << 16  # ids that are in memory at once while writing


class Tokens(Sequence[int]):
    """Token ids that lie in one array or several, read as one sequence.

    `tokens[5]` is an int. `tokens[a:b]` is again a Tokens and reads nothing, whatever its length, so a corpus can be
    split without loading it; `np.asarray(tokens[a:b])` reads the ids. `vocab_size` is one more than the largest id
    that may occur.
    """

    def __init__(self, parts: Sequence[np.ndarray | ShardIds], vocab_size: int) -> None:
        self.parts = list(parts)
        self.vocab_size = vocab_size
        self._ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Tokens: ...
    def __getitem__(self, index: int | slice) -> int | Tokens:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise InputError(f"Tokens: the slice has step {step}, expected 1; use np.asarray(tokens)[::{step}]")
            return Tokens(list(self._parts_between(start, stop)) or [self.parts[0][:0]], self.vocab_size)
        position = range(len(self))[operator.index(index)]  # counts negative ones from the end, raises IndexError
        [[token]] = self._parts_between(position, position + 1)
        return int(token)

    def _parts_between(self, start: int, stop: int) -> Iterator[np.ndarray | ShardIds]:
        number = bisect_right(self._ends, start)  # the part that holds position start
        while start < stop:
            part, end = self.parts[number], self._ends[number]
            begin = end - len(part)
            yield part[start - begin : stop - begin]
            start, number = end, number + 1

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        parts = [np.asarray(part) for part in self.parts]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return np.array(joined, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        head = ", ".join(str(token) for token in self[:8])
        return f"Tokens([{head}{', ...' if len(self) > 8 else ''}], {len(self)} ids, vocab_size={self.vocab_size})"


def write_shards(
    folder: str | Path,
    name: str,
    ids: Iterable[int],
    vocab_size: int,
    fingerprint: str,
    tokens_per_shard: int = 100_000_000,
) -> list[Path]:
    """Write a stream of token ids as `folder/name_00000.bin`, `name_00001.bin` and so on, and return these paths.

    The ids are drawn one by one and never held all together. They go to temporary files, which take their names only
    when the last id is on disk: an error on the way leaves the folder as it was. Older shards of the same name are
    replaced, all of them.

    `fingerprint` is the tokenizer's, 16 ASCII characters; `open_tokens` can check it.

    Units: `tokens_per_shard` counts ids, of 2 bytes each where vocab_size <= 65536, else 4.

    Raises: InputError where there are no ids, an id is not an integer in [0, vocab_size), an argument is wrong, or the
    folder cannot be written.
    """
    if not 1 <= vocab_size <= 1 << 32:
        raise InputError(f"write_shards: vocab_size is {vocab_size}, expected 1 to 2**32; ids take 32 bits at most")
    if not (isinstance(fingerprint, str) and len(fingerprint) == 16 and fingerprint.isascii()):
        raise InputError(
            f"write_shards: fingerprint is {fingerprint!r}, expected 16 ASCII characters; take the tokenizer's"
        )
    if tokens_per_shard < 1:
        raise InputError(f"write_shards: tokens_per_shard is {tokens_per_shard}, expected 1 or more")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        return _write_shards(folder, name, iter(ids), vocab_size, fingerprint, tokens_per_shard)
    except OSError as error:
        raise InputError(
            f"write_shards: cannot write {folder} ({error.strerror}); choose another folder, or make room"
        ) from None


def _write_shards(
    folder: Path, name: str, ids: Iterator[int], vocab_size: int, fingerprint: str, tokens_per_shard: int
) -> list[Path]:
    written = 0
    temporary: list[Path] = []
    try:
        for first in ids:  # an id is left, so another shard follows, which takes its other ids from the same iterator
            temporary.append(unfinished_name(folder / f"{name}_{len(temporary):05d}.bin"))
            shard = itertools.islice(itertools.chain([first], ids), tokens_per_shard)
            with open(temporary[-1], "w+b") as file:
                written += _write_shard(file, shard, vocab_size, fingerprint, written)
            sync(temporary[-1])
        if not temporary:
            raise InputError(f"write_shards: there are no ids for {folder / name}; check the text they come from")
        paths = [folder / f"{name}_{number:05d}.bin" for number in range(len(temporary))]
        for part, path in zip(temporary, paths, strict=True):
            os.replace(part, path)
        sync(folder)
    finally:
        for part in temporary:
            part.unlink(missing_ok=True)
    for old in set(folder.glob(f"{glob.escape(name)}_{'[0-9]' * 5}.bin")) - set(paths):
        old.unlink()
    return paths


def _write_shard(file: BinaryIO, ids: Iterator[int], vocab_size: int, fingerprint: str, position: int) -> int:
    """Write one shard and return its number of ids; `position` is that of the first id in the whole stream."""
    count = 0
    file.write(bytes(HEADER_BYTES))  # the header follows when the count is known
    while chunk := list(itertools.islice(ids, CHUNK)):
        file.write(_checked(chunk, vocab_size, position + count).astype(dtype_for(vocab_size)).tobytes())
        count += len(chunk)
    seal_shard(file, count, vocab_size, fingerprint)
    return count


def _checked(chunk: list[int], vocab_size: int, position: int) -> np.ndarray:
    try:
        array = np.fromiter(map(operator.index, chunk), np.int64, len(chunk))
    except (TypeError, OverflowError) as error:
        raise InputError(f"write_shards: ids must be integers below {vocab_size}, one by one, but {error}") from error
    bad = (array < 0) | (array >= vocab_size)
    if bad.any():
        where = int(bad.argmax())
        raise InputError(
            f"write_shards: id {array[where]} at position {position + where} is not in [0, {vocab_size}); "
            "give the vocab_size of the tokenizer that made the ids"
        )
    return array


def open_tokens(paths: str | Path | Iterable[str | Path], fingerprint: str | None = None) -> Tokens:
    """Open one shard or several, in the given order, as one sequence of token ids.

    With a `fingerprint`, the shards must come from that tokenizer; without, all from the same one.
    Only the headers are read, and the checksums; ids are read when they are used, and checked then. Each shard holds
    one file descriptor.

    Raises: InputError for a file that is missing, not a shard, of another version, damaged in its header, cut short, or
    from another tokenizer; when ids are read, for some that do not have their checksum.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not files:
        raise InputError("open_tokens: the list of paths is empty; give the paths that write_shards returned")
    shards = [open_shard(file) for file in files]
    vocab_size = shards[0].vocab_size
    fingerprint = shards[0].fingerprint if fingerprint is None else fingerprint
    for file, shard in zip(files, shards, strict=True):
        if (shard.vocab_size, shard.fingerprint) != (vocab_size, fingerprint):
            raise InputError(
                f"open_tokens: {file} comes from tokenizer {shard.fingerprint} with {shard.vocab_size} ids, "
                f"expected tokenizer {fingerprint} with {vocab_size}; encode the text again with this tokenizer"
            )
    return Tokens([shard.ids for shard in shards], vocab_size)
