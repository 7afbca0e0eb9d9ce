"""The folder of a corpus: the outputs of the stages with their records, splits, shards, a tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minillm.corpus.document import SUFFIXES, plain_name
from minillm.corpus.report.tallies import short_name
from minillm.data.shards import open_tokens
from minillm.errors import InputError

SPLITS = ("train", "mixed", "validation", "test")
USUAL_ORDER = ("extract", "clean", "dedup", "decontaminate", "split", "mix", "tokenizer", "shards")
CHECKED = (*SUFFIXES, ".bin", ".toml", "tokenizer.json")  # endings of the files that get a checksum
PROBLEMS = 20  # of a stage, that the card names


@dataclass(frozen=True)
class CorpusFolder:
    """A folder that `minillm data` has written, or one with any .jsonl files of documents."""

    path: Path

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """The records that the stages leave, by their place in the folder, in the order in which the stages ran."""
        found = {}
        for path in sorted(self.path.rglob("*.json")):
            try:
                record = json.loads(path.read_bytes())
            except (OSError, ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get("settings"), dict) and record.get("stage"):
                found[path.relative_to(self.path).with_suffix("").as_posix()] = record
        return dict(in_order(found))

    @cached_property
    def documents(self) -> list[Path]:
        """The files with all documents: the output of the last stage that has one, or else every .jsonl there is.

        Raises: InputError where there are none.
        """
        for name in reversed(self.records):
            outputs = [path for path in self.files if plain_name(path) == name and path.parent == self.path]
            if outputs and name not in SPLITS:
                return outputs
        found = [path for path in self.files if path.name.endswith(SUFFIXES) and plain_name(path) not in SPLITS]
        if not found:
            raise InputError(
                f"data report: {self.path} has no documents (no .jsonl, .jsonl.gz or .jsonl.zst); give the folder that "
                "`minillm data build` has written"
            )
        return found

    @cached_property
    def files(self) -> list[Path]:
        """The files of the folder that the corpus consists of, in the order of their names."""
        paths = (path for path in self.path.rglob("*") if path.name.endswith(CHECKED) and path.is_file())
        return sorted(path for path in paths if not any(part[0] == "." for part in path.relative_to(self.path).parts))

    @cached_property
    def splits(self) -> dict[str, Path]:
        """The files of documents to train and to validate on."""
        found = {plain_name(path): path for path in self.files if path.name.endswith(SUFFIXES)}
        return {name: found[name] for name in SPLITS if name in found}

    @cached_property
    def tokenizer(self) -> Path | None:
        """The folder of the tokenizer."""
        return next((path.parent for path in self.files if path.name == "tokenizer.json"), None)

    def tokens(self, split: str) -> int | None:
        """The number of ids in the shards of a split; None where it has none."""
        shards = [path for path in self.files if path.name.startswith(f"{split}_") and path.suffix == ".bin"]
        return len(open_tokens(shards)) if shards else None

    @property
    def stages(self) -> list[dict[str, Any]]:
        """A row for each record, as the card has it."""
        return [stage_row(record) for record in self.records.values()]

    def checksums(self) -> list[dict[str, Any]]:
        """The size and the checksum of each file."""
        return [
            {"file": path.relative_to(self.path).as_posix(), "bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in self.files
        ]


def in_order(records: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records in the order in which the stages ran: each after those whose outputs it read, else in the usual order."""
    places = {stage: place for place, stage in enumerate(USUAL_ORDER)}
    usual = sorted(records, key=lambda name: (places.get(str(records[name]["stage"]), len(places)), name))
    left = {name: records[name] for name in usual}
    while left:
        ready = next(
            (name for name, one in left.items() if not inputs_of(one) & (left.keys() - {name})), next(iter(left))
        )
        yield ready, left.pop(ready)


def inputs_of(record: dict[str, Any]) -> set[str]:
    """The names of the files that a stage read, without their endings."""
    return {plain_name(Path(str(one.get("file")))) for one in record.get("inputs", ()) if isinstance(one, dict)}


def stage_row(record: dict[str, Any]) -> dict[str, Any]:
    """The row of a stage from its record, without the times of its inputs, which other copies of them do not share."""
    problems, sizes = record.get("problems", {}), record.get("text_bytes", {})
    inputs = [one for one in record.get("inputs", ()) if isinstance(one, dict)]
    return {
        "stage": str(record["stage"]),
        "version": record.get("version"),
        "settings": record["settings"],
        "inputs": [{key: value for key, value in one.items() if key != "modified_ns"} for one in inputs],
        "outcomes": [
            {"rule": short_name(rule), "documents": documents, "bytes": sizes.get(rule)}
            for rule, documents in record.get("documents", {}).items()
        ],
        "problems": problems.get("count", 0),
        "first_problems": [str(one)[:300] for one in problems.get("first", ())[:PROBLEMS]],
    }


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
