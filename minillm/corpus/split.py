"""The stage `split`: documents for training, validation and test, of which none has a near-duplicate in another part.

A document's part is a function of its cluster of near-duplicates, where `dedup` found it in one, or else of its id:

    u = BLAKE2b(seed, cluster or id) / 2^64          evenly spread over 0 to 1
    test where u < test share, validation where u < test share + validation share, train otherwise

So all documents of a cluster fall into one part. The part of a document does not depend on which other documents there
are, or on what a stage before changed in its text: a corpus that is cleaned in another way keeps the same documents
for validation, and models trained on both can be compared. Shares are those of clusters, but for chance: of n clusters
with the share p, the number has the standard deviation sqrt(n p (1 - p)).

Whole documents are split, before tokens are packed or sources are mixed, since pieces of one document share names and
phrases that give the answer away. Only documents that were kept are written.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.corpus.document import Document
from minillm.corpus.journal import read_record
from minillm.corpus.stage import BEFORE, Stage
from minillm.errors import InputError

DROPPING = ("clean", "dedup", "decontaminate")  # stages that drop documents


@dataclass(frozen=True)
class Split:
    """Divide the kept documents into training and validation, so that near-duplicates never straddle the line."""

    validation: float = 0.05
    """Share of the documents, or of the clusters of near-duplicates, that is for validation."""
    test: float = 0.0
    """Share for a test part, which is left aside until the end; 0 for none."""
    seed: int = 0
    """Seed of the choice; another seed chooses other documents."""

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"split: {name} is {getattr(self, name)}; give a share from 0 to 1, such as 0.05")
        if not 0 < self.validation + self.test < 1:
            raise InputError(
                f"split: validation {self.validation} and test {self.test} leave nothing to split; give shares above 0 "
                "and together below 1"
            )


class SplitStage(Stage):
    """Documents by the hash of their cluster or id."""

    name = "split"

    def __init__(self, options: Split):
        self.options = options
        shares = {"validation": options.validation, "test": options.test}
        self.parts = ("train", *(name for name, share in shares.items() if share))

    def settings(self) -> dict[str, Any]:
        """The shares and the seed."""
        return dataclasses.asdict(self.options)

    def apply(self, documents: list[Document]) -> Iterable[Document]:
        """The documents as they are."""
        return documents

    def part(self, document: Document) -> str | None:
        """The part of a document; None for one that was dropped."""
        if document.dropped is not None:
            return None
        place = place_of(document, self.options.seed)
        if place < self.options.test:
            return "test"
        return "validation" if place < self.options.test + self.options.validation else "train"


def place_of(document: Document, seed: int) -> float:
    """A number from 0 to 1 that all documents of a cluster share, evenly spread over the clusters."""
    return spread(f"split {seed} {document.info.get('cluster', document.id)}")


def spread(key: str) -> float:
    """A number from 0 to 1 for a text, evenly spread over texts: its hash of 64 bits over 2^64."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def straddling(inputs: Sequence[Path]) -> str:
    """A sentence for a person where no record beside the inputs says that near-duplicates were looked for; or ""."""
    records = (record for folder in {path.parent for path in inputs} for record in folder.glob("*.json"))
    if any((found := read_record(record, "dedup")) and found.get("done") for record in records):
        return ""
    return (
        "split: nothing here has been through `minillm data dedup`, so near-duplicates may straddle: one in the "
        "training part, the other in the validation part, whose loss is too good then"
    )


def dropped_by(inputs: Sequence[Path]) -> str:
    """The rules that dropped documents, most first, by the records beside the inputs: ", by ..."."""
    rules: Counter[str] = Counter()
    for folder in {path.parent for path in inputs}:
        for stage in DROPPING:
            if record := read_record(folder / f"{stage}.json", stage):
                rules.update(record.get("documents", {}))
    for name in ("kept", BEFORE):
        del rules[name]
    return ", by " * bool(rules) + ", ".join(f"{rule} {count:,}" for rule, count in rules.most_common())


def check_parts(counts: dict[str, int], options: Split, reasons: str = "") -> None:
    """Raise InputError where a part has no document. reasons: what `dropped_by` says."""
    total = sum(counts.get(name, 0) for name in ("train", "validation", "test"))
    before = counts.get(BEFORE, 0)
    if before and not total:
        raise InputError(
            f"split: all {before:,} documents were dropped before{reasons}; change the thresholds of these rules, "
            "which `minillm data clean --explain FILE` shows, or leave out the stage"
        )
    for name in SplitStage(options).parts:
        if not counts.get(name):
            raise InputError(
                f"split: none of the {total} documents that were kept is in the part {name!r}; give more documents, "
                "larger shares, or another seed"
            )
