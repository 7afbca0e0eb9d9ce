"""Members of a .zip or .tar: each is read like a file of its name, and never written to disk.

An archive may lie in an archive, once. Members come in the order in which the archive has them. A link, a device, a
name that leads out of the archive and a member with a password are left out and named; hidden members are not looked
at, as with folders. The numbers in an archive are believed no more than its names: see `SmallHeaders` and `_directory`.
"""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Any

from minillm.corpus.readers.pieces import Found, Opened, whole
from minillm.corpus.readers.skipped import Skip
from minillm.corpus.readers.streams import Metered

MOST_ARCHIVES = 2  # one in another
INNER_ZIP = 64 << 20  # bytes of a .zip in an archive: it is held in memory, since its directory stands at its end
DIRECTORY = 64 << 20  # bytes of a .zip's directory: some 600,000 members
HEADER = 1 << 20  # bytes of a header of a .tar


def zip_pieces(opened: Opened) -> Iterator[Found]:
    """The pieces of the members of a .zip."""
    _check_depth(opened)
    file = opened.file or io.BytesIO(whole(opened.stream, INNER_ZIP))
    if _directory(file) > DIRECTORY:
        raise Skip("too_large", f"its directory has more than {DIRECTORY:,} bytes; unpack it by hand")
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # of many kinds, since the directory may hold anything
        raise Skip("damaged", f"its directory cannot be read ({error})") from None
    seen: Counter[str] = Counter()
    for member in archive.infolist():
        if member.is_dir() or _is_hidden(member.filename):
            continue
        inner = _member(opened, member.filename, seen)
        try:
            _check_name(member.filename)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise Skip("unsafe", "it is a link")
            if member.flag_bits & 1:
                raise Skip("encrypted", "it needs a password; unpack it by hand")
            stream = _opened_member(archive, member)
        except Skip as skip:
            yield inner.skipped("", skip)
        else:
            with stream:
                yield from inner.inner(replace(inner, stream=Metered(stream, opened.budget)))


def _opened_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    try:
        return archive.open(member)
    except NotImplementedError as error:
        raise Skip("unsupported", f"it is compressed in an unknown way ({error})") from None
    except Exception as error:  # as above: its header may hold anything
        raise Skip("damaged", f"it cannot be opened ({error})") from None


def _directory(file: IO[bytes]) -> int:
    """The size that a .zip says its directory has, which zipfile reads into memory at once; 0 where it has none."""
    file.seek(0, io.SEEK_END)
    size = file.tell()
    file.seek(max(0, size - (1 << 16) - 22))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + 22 > len(tail):
        return 0
    (directory,) = struct.unpack_from("<L", tail, at + 12)
    return min(size, directory) if directory != 0xFFFFFFFF else size


def tar_pieces(opened: Opened) -> Iterator[Found]:
    """The pieces of the members of a .tar, which is read from its beginning to its end."""
    _check_depth(opened)
    seen: Counter[str] = Counter()
    try:
        stream: Any = opened.stream  # from which tarfile only reads
        archive: Any = tarfile.open(fileobj=stream, mode="r|", tarinfo=SmallHeaders, errorlevel=1)  # noqa: SIM115
        while (member := archive.next()) is not None:
            archive.members = []  # they would gather in memory
            if member.isdir() or _is_hidden(member.name):
                continue
            inner = _member(opened, member.name, seen)
            try:
                _check_name(member.name)
                if not member.isreg() or member.issparse():
                    raise Skip("unsafe", "it is a link, a device or a file with holes")
            except Skip as skip:
                yield inner.skipped("", skip)
            else:
                yield from inner.inner(replace(inner, stream=Metered(archive.extractfile(member), opened.budget)))
    except (tarfile.TarError, OSError, EOFError, ValueError, IndexError, OverflowError) as error:
        raise Skip("damaged", f"the archive cannot be read further ({error})") from None


class SmallHeaders(tarfile.TarInfo):
    """A member of a .tar. tarfile reads long names into memory at once, so these must be short."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        """The member of a header. Raises: ReadError where the header goes on for more than HEADER bytes."""
        member = super().frombuf(buf, encoding, errors)
        if not member.isfile() and not member.isdir() and member.size > HEADER:
            raise tarfile.ReadError(f"a header has {member.size:,} bytes, over {HEADER:,}")
        return member


def _member(opened: Opened, name: str, seen: Counter[str]) -> Opened:
    """A member of an archive; of several with one name, the second is called `name~2`."""
    name = name.encode("utf-8", "replace").decode().replace("\0", "")[:1000]
    seen[name] += 1
    shown = name if seen[name] == 1 else f"{name}~{seen[name]}"
    return replace(opened, name=f"{opened.name}/{shown}", reads_as=name, file=None, archives=opened.archives + 1)


def _check_depth(opened: Opened) -> None:
    if opened.archives >= MOST_ARCHIVES:
        raise Skip("unsupported", f"it lies in {opened.archives} archives, one in the other; unpack the outer one")


def _check_name(name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or name.startswith(("/", "\\")) or parts[0].endswith(":"):
        raise Skip("unsafe", "its name leads out of the archive")


def _is_hidden(name: str) -> bool:
    parts = name.split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)
