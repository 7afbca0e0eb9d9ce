"""The stage `dedup`: it looks at all documents first, then marks those that stand elsewhere already."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minillm.corpus.document import Document
from minillm.corpus.duplicates.options import Dedup
from minillm.corpus.duplicates.repeated import frequent, without_repeated
from minillm.corpus.duplicates.sketches import Sketches, id_hash, mapped, read_state, write_sketches, write_state
from minillm.corpus.duplicates.verdicts import (
    FIRST,
    SAME_TEXT,
    SAME_WORDS,
    VERDICT,
    check_ids,
    find_clusters,
    write_verdicts,
)
from minillm.corpus.journal import identity_of
from minillm.corpus.stage import Stage

INDEX = "dedup.index"  # the folder with the stage's files, beside its output
RESULTS = ("verdicts", "ids", "frequent", "frequent_firsts")  # its files when `prepare` has ended


class DedupStage(Stage):
    """Drops exact and near-duplicates, and removes lines and paragraphs that many documents have.

    A document of a cluster gets info["cluster"], the id of the first one in it. The dropped ones also get
    info["duplicate_of"], the same id, and info["jaccard"], their similarity to that document. One that loses lines or
    paragraphs gets info["removed_lines"], info["removed_paragraphs"] and info["removed_characters"].
    """

    name = "dedup"

    def __init__(self, options: Dedup):
        self.options = options
        self.folder: Path | None = None

    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self.options)

    def prepare(self, inputs: Sequence[Path], folder: Path, processes: int) -> None:
        """Write the verdicts on all documents. What a run that was killed has written is used, if nothing changed."""
        self.folder = folder / INDEX
        self.folder.mkdir(exist_ok=True)
        identity = {"settings": self.settings(), "inputs": [identity_of(path) for path in inputs]}
        state, there = read_state(self.folder), {path.name for path in self.folder.iterdir()}
        if state.get("identity") == identity and state.get("whole") and there >= {*RESULTS}:
            return
        write_sketches(self.options, inputs, self.folder, identity, processes)
        sketches = Sketches(self.folder, self.options.bands)
        check_ids(sketches, self.folder / "ids")
        firsts = find_clusters(sketches, self.options)
        write_verdicts(sketches, firsts, self.folder / "verdicts")
        with open(self.folder / "frequent", "wb") as hashes, open(self.folder / "frequent_firsts", "wb") as ids:
            kept = firsts == np.arange(len(firsts))
            for found, owners in frequent(sketches.repeated, sketches.rows["repeated"], kept, self.options):
                found.tofile(hashes)
                sketches.rows["id"][owners].tofile(ids)
        write_state(self.folder, {"identity": identity, "whole": True})
        for name in ("rows", "shingles", "repeated"):  # nobody needs them any more, and they are large
            (self.folder / name).unlink()

    def apply(self, documents: list[Document]) -> Iterable[Document]:
        """The documents of a chunk, marked."""
        assert self.folder is not None, "prepare comes first"
        verdicts = _opened(self.folder, (self.folder / "done.json").stat().st_mtime_ns)
        verdicts.mark([document for document in documents if document.dropped is None], self.options)
        return documents


class _Verdicts:
    """The files that `prepare` wrote, mapped into memory."""

    def __init__(self, folder: Path):
        verdicts = mapped(folder / "verdicts", VERDICT)
        self.of_id = np.ascontiguousarray(verdicts["id"])  # 8 bytes for each document of a cluster
        self.verdicts = verdicts
        self.ids = mapped(folder / "ids", np.dtype("u1"))
        self.frequent = mapped(folder / "frequent", np.dtype("<u8"))
        self.frequent_firsts = mapped(folder / "frequent_firsts", np.dtype("<u8"))

    def mark(self, documents: list[Document], options: Dedup) -> None:
        """Mark documents, and remove from them what many others have."""
        own = np.array([id_hash(document.id) for document in documents], np.uint64)
        places = np.searchsorted(self.of_id, own)
        for document, hashed, place in zip(documents, own, places.tolist(), strict=True):
            if place < len(self.of_id) and self.of_id[place] == hashed:
                self._mark_member(document, self.verdicts[place], options.threshold)
        stay = [number for number, document in enumerate(documents) if document.dropped is None]
        left = [documents[number] for number in stay]
        lengths = [len(document.text) for document in left]
        removed = without_repeated(left, own[stay], self.frequent, self.frequent_firsts, options)
        for document, length, counts in zip(left, lengths, removed, strict=True):
            if counts:
                document.info |= {f"removed_{kind}": count for kind, count in counts.items()}
                document.info["removed_characters"] = length - len(document.text)
                if not document.text.strip():
                    gone = " and ".join(f"{count:,} {kind}" for kind, count in counts.items())
                    document.dropped = f"repeated_lines: nothing is left without {gone} that other documents have"

    def _mark_member(self, document: Document, verdict: np.void, threshold: float) -> None:
        start = int(verdict["first_start"])
        first = self.ids[start : start + int(verdict["first_bytes"])].tobytes().decode("utf-8", "surrogatepass")
        document.info["cluster"] = first
        if verdict["kind"] == FIRST:
            return
        similarity = round(float(verdict["jaccard"]), 4)
        document.info |= {"duplicate_of": first, "jaccard": similarity}
        if verdict["kind"] in (SAME_TEXT, SAME_WORDS):
            what = "text" if verdict["kind"] == SAME_TEXT else "words"
            document.dropped = f"exact_duplicate: the same {what} as {first}"
        else:
            through = ", through others between them" if verdict["jaccard"] < threshold else ""
            document.dropped = f"near_duplicate: Jaccard {similarity:g} to {first}{through}"


@functools.lru_cache(1)  # each worker process maps the files once
def _opened(folder: Path, written: int) -> _Verdicts:
    return _Verdicts(folder)
