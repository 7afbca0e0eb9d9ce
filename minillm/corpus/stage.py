"""Running a stage: chunks of documents through worker processes, in order, resumable, in constant memory.

The documents of the inputs are cut into chunks by their bytes alone, so the output is the same bytes for any number of
processes. Workers get chunks and give them back; one process reads, and writes them in the order of the inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from minillm.corpus.document import Document, open_lines, read_documents

T = TypeVar("T")
CHUNK_BYTES = 4 << 20  # of lines in a chunk


class Stage:
    """What is done to the documents. A stage is sent to worker processes, so it must pickle.

    name: its word on the command line, and that of its output: "clean" writes clean.jsonl.zst.
    """

    name: str

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


def map_chunks(
    function: Callable[[list[Document]], T], inputs: Sequence[Path], processes: int = 1, start: int = 0
) -> Iterator[T]:
    """`function` of each chunk of documents, in order, from chunk number `start` on; it runs in worker processes."""
    for number, chunk in enumerate(_chunks(inputs)):
        if number >= start:
            yield function(chunk)


def _chunks(inputs: Sequence[Path]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    size = 0
    for path in inputs:
        for document in read_documents(path):
            chunk.append(document)
            size += len(document.text)
            if size >= CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def run_stage(stage: Stage, inputs: Sequence[Path], out: Path, processes: int = 1, progress: bool = True) -> Counter:
    """Run a stage over the documents of `inputs` and write `out`; returns how many each rule dropped, and "kept".

    A run that was killed goes on after the last chunk that it wrote. `out` appears when it is whole.
    """
    stage.prepare(inputs, out.parent, processes)
    counts: Counter = Counter()
    with open_lines(out, "wb") as lines:
        for documents in map_chunks(stage.apply, inputs, processes):
            for document in documents:
                counts[document.rule or "kept"] += 1
                lines.write(document.to_line())
    return counts
