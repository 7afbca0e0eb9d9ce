"""Running a stage: chunks of documents through worker processes, in order, resumable, in constant memory.

    inputs -> chunks of whole lines -> workers: parse, apply, write as a compressed frame -> appended in order

One process reads the inputs as bytes and appends bytes; parsing, the work and the compression are the workers'. Chunks
are cut by their bytes alone, each becomes a frame of its own, and workers know nothing of each other: so the output is
the same bytes for any number of processes, and also when a run was killed and goes on (journal.py).
"""

from __future__ import annotations

import contextlib
import sys
import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from minillm.corpus.document import Document, check_suffix, compressed, decompressed, plain_name
from minillm.corpus.journal import Done, Journal, identity_of
from minillm.corpus.workers import WorkerDiedError, map_units
from minillm.errors import InputError, ParallelError

T = TypeVar("T")
CHUNK_BYTES = 4 << 20  # of lines in a chunk, and as much more as the last line needs
BEFORE = "dropped before"  # counts documents that an earlier stage dropped


class Stage:
    """The work that is done on the documents. A stage is sent to worker processes, so it must pickle.

    name: its word on the command line, and that of its output: "clean" writes clean.jsonl.zst.
    parts: the names of its outputs, where it has several: part.jsonl.zst in the folder that is given as `out`.
    """

    name: str
    parts: Sequence[str] = ()

    def settings(self) -> dict[str, Any]:
        """Everything that the output depends on, as JSON: a run with other settings does not go on with this one."""
        raise NotImplementedError

    def prepare(self, inputs: Sequence[Path], folder: Path, processes: int) -> None:
        """Look at all documents before the first is written, where a stage must (duplicates); files go to `folder`."""

    def apply(self, documents: list[Document]) -> Iterable[Document]:
        """The documents of a chunk, each as it leaves the stage: same number, same order, same ids.

        Called in a worker process. It sees no other chunk, and must not depend on which process it is. Documents that
        an earlier stage dropped are among them and come back as they are.
        """
        raise NotImplementedError

    def part(self, document: Document) -> str | None:
        """The output that gets a document, where there are several; None for none."""
        raise NotImplementedError


class Chunk(NamedTuple):
    """Whole lines of an input."""

    path: Path
    line: int  # the number of the first of them in the file, from 1
    data: bytes
    read: int  # bytes of all inputs that are read with it, compressed as they are
    problem: str = ""  # the reason why the rest of the file cannot be read


class Unit(Protocol):
    """The piece of work that a worker gets: a chunk, or a piece of a raw file."""

    @property
    def read(self) -> int:
        """Bytes of all inputs that are read with it."""


def map_chunks(
    function: Callable[[list[Document]], T],
    inputs: Sequence[Path],
    processes: int = 1,
    start: int = 0,
    title: str | None = None,
) -> Generator[T]:
    """`function` of each chunk of documents, in order, from chunk number `start` on; it runs in worker processes.

    Lines that are no documents are left out; the run of the stage counts them. title: of a bar on a terminal.
    Raises: InputError that names the document with which `function` fails; ParallelError where a worker dies with it.
    """
    work = _OnChunk(title or str(getattr(function, "__name__", type(function).__name__)), function)
    with (
        progress_bar(title, inputs) as shown,
        contextlib.closing(_safely(work, inputs, processes, start, shown)) as found,
    ):
        for result, _ in found:
            yield result


def run_stage(stage: Stage, inputs: Sequence[Path], out: Path, processes: int = 1, progress: bool = True) -> Counter:
    """Run a stage over the documents of `inputs` and write `out`; returns how many each rule dropped, and "kept".

    A run that was killed goes on after the last chunk that it wrote. `out` appears when it is whole; beside it lies
    the record, clean.json for clean.jsonl.zst, with the settings, all counts and the first problems. A line that is no
    document is left out, and counted among the problems. progress: a bar on a terminal, and sentences for a person.
    """
    outs = {part: out / f"{part}.jsonl.zst" for part in stage.parts} or {"": out}
    for path in (*inputs, *outs.values()):
        check_suffix(path)
    journal = open_journal(stage.name, stage.settings(), inputs, record_of(out, stage), list(outs.values()), progress)
    with contextlib.closing(journal):
        if not journal.done:
            stage.prepare(inputs, record_of(out, stage).parent, processes)
            run_chunks(journal, stage.name, _Apply(stage, outs), inputs, processes, progress, journal.chunks)
            journal.finish()
    documents = Counter(journal.state["documents"])
    if not documents and (problems := journal.state["problems"])["count"]:
        raise InputError(
            f"{stage.name}: {', '.join(map(str, inputs))} has no document, but {problems['first'][0]}; read it with "
            "`minillm data extract` first"
        )
    return documents


def run_chunks(
    journal: Journal,
    title: str,
    function: Callable[[list[Document]], Done],
    inputs: Sequence[Path],
    processes: int,
    progress: bool,
    start: int,
) -> None:
    """Append what `function` makes of each chunk of documents, from chunk number `start` on."""
    work = _OnChunk(title, function)
    with (
        progress_bar(title if progress else None, inputs) as shown,
        contextlib.closing(_safely(work, inputs, processes, start, shown)) as found,
    ):
        for done, problems in found:
            done.problems += problems
            append(journal, done)


def record_of(out: Path, stage: Stage) -> Path:
    """The record of a run: beside the output and with its name, or in the folder of several with the stage's name."""
    return out / f"{stage.name}.json" if stage.parts else out.with_name(f"{plain_name(out)}.json")


def open_journal(
    stage: str, settings: Mapping[str, Any], inputs: Sequence[Path], record: Path, outs: Sequence[Path], say: bool
) -> Journal:
    """The journal of a run with these settings over these inputs.

    Raises: InputError for an input that is not there, or is an output too.
    """
    for path in inputs:
        if path in outs:
            raise InputError(f"{stage}: {path} is the input and the output; choose another --out")
    try:
        identities = [identity_of(path) for path in inputs]
    except OSError as error:
        raise InputError(f"{stage}: an input cannot be read ({error}); give the output of a stage") from None
    return Journal(record, outs, stage, {"settings": dict(settings), "inputs": identities}, say)


def append(journal: Journal, done: Done) -> None:
    """Append a chunk to the outputs.

    Raises: InputError where the disk is full, or writing fails otherwise.
    """
    try:
        journal.append(done)
    except OSError as error:
        raise InputError(
            f"{journal.stage}: {journal.parts[0]} cannot be written ({error}); make room and give the command again, "
            "and it goes on from here"
        ) from None


# --- chunks --------------------------------------------------------------------------------------------------------


def chunks(inputs: Sequence[Path]) -> Iterator[Chunk]:
    """The lines of the inputs in chunks of about CHUNK_BYTES; none has lines of two files."""
    before = 0
    for path in inputs:
        check_suffix(path)
        with open(path, "rb") as file, decompressed(file, path) as lines:
            number = 1
            try:
                while data := lines.read(CHUNK_BYTES):
                    if not data.endswith(b"\n"):
                        data += lines.readline()
                    yield Chunk(path, number, data, before + file.tell())
                    number += data.count(b"\n")
            except (OSError, EOFError, zlib.error) as error:
                yield Chunk(path, number, b"", before, f"{path} cannot be read from line {number} on ({error})")
        before += path.stat().st_size


def documents_of(chunk: Chunk) -> tuple[list[Document], list[str]]:
    """The documents of a chunk, and what is wrong with the lines that are none."""
    found, problems = [], [chunk.problem] if chunk.problem else []
    for number, line in enumerate(chunk.data.split(b"\n"), chunk.line):
        if line and not line.isspace():
            try:
                found.append(Document.from_line(line))
            except InputError as error:
                problems.append(f"line {number} of {chunk.path.name}: {str(error).removeprefix('data: ')}")
    return found, problems


@dataclass(frozen=True)
class _OnChunk:
    """A function of documents as one of a chunk, whose errors name the document."""

    name: str
    function: Callable[[list[Document]], Any]

    def __call__(self, chunk: Chunk) -> tuple[Any, list[str]]:
        documents, problems = documents_of(chunk)
        try:
            return self.function(documents), problems
        except MemoryError:
            raise
        except Exception as error:
            where = self._culprit(documents_of(chunk)[0])  # read again: the function may have changed some
            message = f"{self.name}: {where} of {chunk.path} fails with {type(error).__name__}: {error}"
            raise InputError(f"{message}; take it out, or change the settings, and give the command again") from error

    def _culprit(self, documents: list[Document]) -> str:
        for document in documents:
            try:
                self.function([document])
            except Exception:
                return f"document {document.id!r}"
        return f"a chunk from document {documents[0].id!r} on" if documents else "a chunk"


@dataclass(frozen=True)
class _Apply:
    """A stage as a function from documents to the frames of its outputs and what is counted."""

    stage: Stage
    outs: Mapping[str, Path]

    def __call__(self, documents: list[Document]) -> Done:
        before = [(document.id, document.dropped is not None, size_of(document)) for document in documents]
        lines: dict[str, list[bytes]] = {part: [] for part in self.outs}
        done = Done([])
        after = list(self.stage.apply(documents))
        if [document.id for document in after] != [id for id, _, _ in before]:
            raise ValueError(f"{len(before)} documents went in, and other documents came out")
        for document, (_, was_dropped, size) in zip(after, before, strict=True):
            part: str | None = self.stage.part(document) if self.stage.parts else ""
            if part is not None:
                lines[part].append(document.to_line())
            if was_dropped:
                done.documents[BEFORE] += 1
                continue
            rule = document.rule or part or "kept"
            done.documents[rule] += 1
            done.text_bytes["read"] += size
            done.text_bytes[rule] += size if document.dropped else size_of(document)
        done.parts = [compressed(b"".join(of_part), self.outs[part]) for part, of_part in lines.items()]
        return done


def size_of(document: Document) -> int:
    """Bytes of a document's text in UTF-8."""
    return len(document.text.encode("utf-8", "surrogatepass"))


# --- the road of a chunk -------------------------------------------------------------------------------------------


def _safely(
    work: _OnChunk, inputs: Sequence[Path], processes: int, start: int, shown: Callable[[int], None]
) -> Generator[tuple[Any, list[str]]]:
    """The work on every chunk from `start` on; a worker's death names the document that it died of."""
    wanted = (chunk for number, chunk in enumerate(chunks(inputs)) if number >= start)
    try:
        yield from watched(work, wanted, processes, shown)
    except WorkerDiedError as death:
        raise ParallelError(
            f"{work.name}: {death} with {_deadly(work, death.unit)} of {death.unit.path}; give it more memory or fewer "
            "--processes, or take the document out, and give the command again"
        ) from None


def _deadly(work: _OnChunk, chunk: Chunk) -> str:
    """The document of which a worker dies, found by giving new workers one after the other."""
    documents = documents_of(chunk)[0]
    lines = [document.to_line() for document in documents]
    if len(lines) == 1:
        return f"document {documents[0].id!r}"
    singles = (chunk._replace(data=line) for line in lines)
    try:
        deque(map_units(work, singles, processes=2), maxlen=0)
    except WorkerDiedError as death:
        return f"document {documents_of(death.unit)[0][0].id!r}"
    except Exception:
        pass  # an error of the work is not what killed the worker
    return f"one of the documents {documents[0].id!r} to {documents[-1].id!r}"


def watched(
    work: Callable[[Any], T], units: Iterable[Unit], processes: int, shown: Callable[[int], None]
) -> Generator[T]:
    """The work on each unit, in order; `shown` hears how many bytes of the inputs are done."""
    reads: deque[int] = deque()

    def noted() -> Iterator[Unit]:
        for unit in units:
            reads.append(unit.read)
            yield unit

    with contextlib.closing(map_units(work, noted(), processes)) as results:
        for result in results:
            yield result
            shown(reads.popleft())


@contextlib.contextmanager
def progress_bar(title: str | None, inputs: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """A bar with the time left, on a terminal; it is gone at the end. No title: nothing."""
    if title is None or not sys.stderr.isatty():
        yield lambda read: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task(title, total=sum(path.stat().st_size for path in inputs))
        yield lambda read: bar.update(line, completed=read)
