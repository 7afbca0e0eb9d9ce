"""The stage `extract`: sources of raw text become documents, and what cannot be read is named.

    extract.jsonl.zst        a document a line
    extract.skipped.jsonl    a line for each thing that was left out: its file, its place, the kind and the reason
    extract.json             the record: settings, and how many documents were kept and things were left out by kind

The pieces of the files are put together to units of about 4 MB, in the order of the files. Each unit is the work of one
process, so the output is the same bytes for any number of processes, and goes on after a kill where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minillm.corpus.config import Source
from minillm.corpus.document import Document, check_suffix, compressed, plain_name
from minillm.corpus.journal import Done, Journal
from minillm.corpus.readers.encodings import check_is_text, cleaned, decode, decoded_lines
from minillm.corpus.readers.formats import pieces_of_file
from minillm.corpus.readers.guard import shared_guard
from minillm.corpus.readers.packages import check_package
from minillm.corpus.readers.pages import declared_encoding
from minillm.corpus.readers.parquet import SECONDS
from minillm.corpus.readers.pieces import Found, Piece
from minillm.corpus.readers.records import INFO
from minillm.corpus.readers.skipped import Skip, Skipped
from minillm.corpus.readers.sources import RawFile, check_apart, find_files
from minillm.corpus.stage import CHUNK_BYTES, append, progress_bar, size_of, watched
from minillm.corpus.workers import WorkerDiedError
from minillm.errors import InputError, ParallelError, did_you_mean

NAMED = 100  # things of one kind in a unit that are named; the others are counted
OF_A_SKIPPED = 200  # bytes that it counts in a unit


@dataclass(frozen=True)
class Extract:
    """Read raw files as documents."""

    field: str = "text"
    """Name of the text in .jsonl, .json, .csv, .tsv and .parquet."""
    seconds: float = 10.0
    """Time that the main text of one page of HTML may take; a page that takes longer is skipped."""
    repair: bool = True
    """Repair text that was once decoded in the wrong encoding, such as "schÃ¶n"."""

    def __post_init__(self) -> None:
        if not self.field:
            raise InputError("extract: field is empty; give the name of the text in a record, such as text")
        if not 0 < self.seconds <= 3600:
            raise InputError(f"extract: seconds is {self.seconds:g}; give the time for a page, such as 10")


class Unit(NamedTuple):
    """Pieces that are read together, and what was left out between them."""

    found: Sequence[Found]
    read: int  # bytes of all files that are read with it


def extract(
    sources: Sequence[Source],
    out: Path,
    options: Extract | None = None,
    processes: int = 1,
    progress: bool = True,
) -> Counter:
    """Read the sources and write `out`; returns how many documents were kept, and things left out by their kind.

    A run that was killed goes on after the last unit that it wrote. Nothing that stands in a file stops the run.
    Raises: InputError for a source that is not there, a package that is missing, and where there is no document.
    """
    options = options or Extract()
    check_suffix(out)
    check_apart(sources, out)
    stem = plain_name(out)
    skipped = out.with_name(f"{stem}.skipped.jsonl")
    files = find_files(sources)
    wanted = {"settings": dataclasses.asdict(options), "inputs": _identities(files)}
    journal = Journal(out.with_name(f"{stem}.json"), [out, skipped], "extract", wanted, progress)
    with contextlib.closing(journal):
        if not journal.done:
            _run(journal, files, Read(options, out), processes, progress)
            journal.finish()
    counts = Counter(journal.state["documents"])
    if not counts["kept"]:
        first = next(iter(journal.state["problems"]["first"]), "the files are empty")
        raise InputError(f"extract: no document was found in {', '.join(s.path for s in sources)}; {first}")
    return counts


def first_document(path: str, options: Extract | None = None) -> Document:
    """The first document of a file, as `extract` reads it, without reading the rest.

    Raises: InputError where there is none, with the reason.
    """
    read, left_out = Read(options or Extract(), Path("first.jsonl")), []
    try:
        for file in find_files([Source(path)]):
            for piece, _ in pieces_of_file(file, read.options.field):
                for found in read.documents(piece):
                    if isinstance(found, Document):
                        return found
                    left_out.append(f"; {found}")
    finally:
        shared_guard().close()
    raise InputError(f"extract: no document was found in {path}{next(iter(left_out), '')}")


def _run(journal: Journal, files: Sequence[RawFile], read: Read, processes: int, progress: bool) -> None:
    """Write the units that are not yet written."""
    wanted = itertools.islice(units(files, read.options.field), journal.chunks, None)
    sizes = [file.path for file in files if file.path.is_file()]
    try:
        with (
            progress_bar("extract" if progress else None, sizes) as shown,
            contextlib.closing(watched(read, wanted, processes, shown)) as results,
        ):
            for done in results:
                append(journal, done)
    except WorkerDiedError as death:
        names = list(dict.fromkeys(found.file for found in death.unit.found))
        raise ParallelError(
            f"extract: {death} on {names[0]}{' or a file after it' if len(names) > 1 else ''}; give it more memory or "
            "fewer --processes, or take the file out, and give the command again"
        ) from None
    finally:
        shared_guard().close()


def _identities(files: Sequence[RawFile]) -> list[dict[str, Any]]:
    """The names, sizes and times of change of each source's files, by which other files are told from them."""
    found: list[dict[str, Any]] = []
    for source, group in itertools.groupby(files, key=lambda file: file.source):
        digest, size, number = hashlib.blake2b(digest_size=16), 0, 0
        for number, file in enumerate(group, 1):  # noqa: B007
            try:
                status = os.stat(file.path)
                about = [file.name, status.st_size, status.st_mtime_ns]
                size += status.st_size
            except OSError:
                about = [file.name]
            digest.update(json.dumps(about).encode())
        about_source = {"source": source.name, "path": source.path, "licence": source.licence}
        found.append({**about_source, "files": number, "bytes": size, "begins": digest.hexdigest()})
    return found


def units(files: Sequence[RawFile], field: str) -> Iterator[Unit]:
    """The pieces of all files in order, put together by their bytes."""
    held: list[Found] = []
    size = before = read = 0
    names: dict[tuple[int, int], str] = {}  # by which a file on disk is known, whatever leads to it
    for raw in files:
        with contextlib.suppress(OSError):
            status = os.stat(raw.path)
            first = names.setdefault((status.st_dev, status.st_ino), raw.name)
            if first != raw.name:
                held.append(Skipped(raw.name, "", "unsafe", f"it is the same file as {first}"))
                continue
        for piece, of_file in pieces_of_file(raw, field):
            held.append(piece)
            size += len(piece.data) if isinstance(piece, Piece) else OF_A_SKIPPED
            read = max(read, before + of_file)
            if size >= CHUNK_BYTES:
                yield Unit(held, read)
                held, size = [], 0
        with contextlib.suppress(OSError):
            before += os.stat(raw.path).st_size
    if held:
        yield Unit(held, before)


# --- in a worker ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """The work on a unit, as it is sent to worker processes."""

    options: Extract
    out: Path

    def __call__(self, unit: Unit) -> Done:
        lines: list[bytes] = []
        skipped: list[Skipped] = []
        done = Done([])
        for found in unit.found:
            for document in self.documents(found):
                if isinstance(document, Skipped):
                    skipped.append(document)
                    continue
                lines.append(document.to_line())
                done.documents["kept"] += 1
                done.text_bytes["kept"] += size_of(document)
        done.documents.update(one.kind for one in skipped)
        named = list(_named(skipped))
        done.problems = [str(one) for one in named]
        done.parts = [compressed(b"".join(lines), self.out), b"".join(one.to_line() for one in named)]
        return done

    def documents(self, found: Found) -> Iterator[Document | Skipped]:
        """The documents of a piece, and what is left out of it."""
        if isinstance(found, Skipped):
            yield found
            return
        try:
            yield from getattr(self, f"_of_{found.kind}")(found)
        except Skip as skip:
            last = (
                "" if found.kind in ("text", "page") or found.last.endswith(f" {found.place}") else f" to {found.last}"
            )
            yield Skipped(found.file, f"{found.word} {found.place}{last}", skip.kind, skip.why)

    def _of_text(self, piece: Piece) -> Iterator[Document]:
        yield self._document(piece, piece.place, decode(piece.data, piece.encoding), {})

    def _of_page(self, piece: Piece) -> Iterator[Document]:
        check_package("resiliparse", "a page of HTML")
        html = decode(piece.data, piece.encoding or declared_encoding(piece.data))
        page = shared_guard().call("minillm.corpus.readers.pages:main_text", html, seconds=self.options.seconds)
        yield self._document(piece, piece.place, page.pop("text"), page)

    def _of_rows(self, piece: Piece) -> Iterator[Document | Skipped]:
        where = json.loads(piece.data)
        names = ("path", "field", "group", "first", "count", "step")
        arguments = ({**where, "field": self.options.field}[name] for name in names)
        lines = shared_guard().call("minillm.corpus.readers.parquet:rows", *arguments, seconds=SECONDS)
        yield from self._of_records(piece, lines)

    def _of_lines(self, piece: Piece) -> Iterator[Document | Skipped]:
        yield from self._of_records(piece, decoded_lines(piece.data, piece.encoding))

    def _of_records(self, piece: Piece, lines: Iterable[str]) -> Iterator[Document | Skipped]:
        """A document for each line of JSON that is one."""
        for place, line in enumerate(lines, piece.place):
            if line and not line.isspace():
                try:
                    yield self._of_record(piece, place, line)
                except Skip as skip:
                    yield Skipped(piece.file, f"{piece.word} {place}", skip.kind, skip.why)

    def _of_record(self, piece: Piece, place: int, line: str) -> Document:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Skip("broken", f"this is not JSON ({str(error).replace('line 1 ', '')[:200]})") from None
        field = self.options.field
        if not isinstance(record, dict):
            raise Skip("broken", f"this is a JSON {type(record).__name__}, expected an object")
        if field not in record:
            names = [name[:40] for name in list(record)[:20]]
            raise Skip("broken", f"there is no field {field!r} in it{did_you_mean(field, names)}")
        if not isinstance(record[field], str):
            raise Skip("broken", f"the field {field!r} is a {type(record[field]).__name__}, expected a text")
        check_is_text(record[field])
        said = {INFO[name.lower()]: value for name, value in record.items() if name.lower() in INFO and name != field}
        return self._document(piece, place, record[field], said)

    def _document(self, piece: Piece, place: int, text: str, said: Mapping[str, Any]) -> Document:
        """A document with a cleaned text. Raises: Skip where nothing is in it."""
        text = cleaned(text, self.options.repair)
        if not text or text.isspace():
            raise Skip("empty", "there is no text in it")
        notes = {name: cleaned(value, False) for name, value in said.items() if value and isinstance(value, str)}
        return Document(text, f"{piece.file}:{place}", piece.source, info={**notes, **piece.info})


def _named(skipped: Sequence[Skipped]) -> Iterator[Skipped]:
    """The first of each kind, and how many more there are."""
    counts: Counter[str] = Counter()
    for one in skipped:
        counts[one.kind] += 1
        if counts[one.kind] <= NAMED:
            yield one
    for kind, count in counts.items():
        if count > NAMED:
            last = [one for one in skipped if one.kind == kind][-1]
            yield last._replace(why=f"{count - NAMED:,} more up to here; the reason here: {last.why}")
