"""Texts with a class each, from a table or from one file for each class, and which of them are held out.

    reviews.jsonl          {"text": "a gem", "label": "pos"} on each line
    reviews.csv, .tsv      a first line with the names of the columns, among them text and label
    rt-polarity.*          a pattern, or a folder, of plain files: one text a line, and the part of the file's name that
                           differs is the class: neg for rt-polarity.neg, or for neg.txt beside pos.txt

A text is held out by a hash of its letters and digits alone, without case, so that it is held out in every run, and two
texts that differ in case, spaces or punctuation never stand on both sides. A label is a name; a number is its own name.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

from minillm.counted import counted
from minillm.data.records import read_records, text_field
from minillm.errors import InputError, did_you_mean
from minillm.files import check_is_file

TABLES = {".csv": ",", ".tsv": "\t"}
LETTERS = re.compile(r"[^\W_]+")


class Example(NamedTuple):
    """A text and the name of its class."""

    text: str
    label: str


class Labelled(NamedTuple):
    """Texts with their classes, and what was noticed while reading them."""

    examples: list[Example]
    notes: list[str]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the alphabet; of numbers, in theirs."""
        names = {example.label for example in self.examples}
        return tuple(sorted(names, key=lambda name: (int(name), name) if name.isdecimal() else (-1, name)))

    def split(self, fraction: float = 0.1) -> tuple[list[Example], list[Example]]:
        """The texts to train on, and those held out: about this share of all, at least one.

        Raises: InputError if either would be empty.
        """
        shares = [held_out_share(example.text) for example in self.examples]
        limit = max(fraction, min(shares, default=0.0))
        held = [example for example, share in zip(self.examples, shares, strict=True) if share <= limit]
        train = [example for example, share in zip(self.examples, shares, strict=True) if share > limit]
        if not train or not held:
            raise InputError(
                f"split: of {len(self.examples)} texts none is left to train on beside those held out; give more texts "
                "that differ in their letters"
            )
        return train, held

    def summary(self) -> str:
        """The number of texts of each class, and the notes."""
        counts = Counter(example.label for example in self.examples)
        each = ", ".join(f"{counts[name]:,} {name}" for name in self.labels)
        return "; ".join([f"{counted(len(self.examples), 'text')}: {each}", *self.notes])


def held_out_share(text: str) -> float:
    """A number from 0 to 1 that is the same for texts with the same letters and digits, in any case."""
    letters = " ".join(LETTERS.findall(text.casefold()))
    return int.from_bytes(hashlib.blake2b(letters.encode("utf-8", "replace"), digest_size=8).digest()) / 2.0**64


def read_labelled(source: str | Path, text: str = "text", label: str = "label") -> Labelled:
    """The labelled texts of a table, or of a pattern or folder of one file for each class.

    text, label: the names of the two fields or columns.
    Texts without a letter are left out, and counted; so are records without the two fields.
    Raises: InputError for files that cannot be read, fewer than two classes, or no texts.
    """
    files = _files(source)
    if len(files) == 1 and files[0].suffix.lower() in (*TABLES, ".jsonl", ".json", ".gz"):
        examples, notes = _read_table(files[0], text, label)
    else:
        examples, notes = _read_classes(source, files)
    kept = [example for example in examples if example.text.strip()]
    if len(kept) < len(examples):
        notes.append(f"{counted(len(examples) - len(kept), 'empty text')} left out")
    found = Labelled(kept, notes)
    if len(found.labels) < 2:
        raise InputError(
            f"read_labelled: {source} has {len(found.labels)} class{'es' if not found.labels else ''} "
            f"({', '.join(found.labels) or 'no texts'}); give texts of two or more"
        )
    return found._replace(notes=notes + _conflicts(kept))


def _conflicts(examples: Sequence[Example]) -> list[str]:
    """A note if a text occurs with two classes."""
    classes: dict[float, set[str]] = {}
    for example in examples:
        classes.setdefault(held_out_share(example.text), set()).add(example.label)
    count = sum(len(names) > 1 for names in classes.values())
    return [counted(count, "text has two classes", "texts have two classes")] if count else []


def _files(source: str | Path) -> list[Path]:
    path = Path(source)
    found = sorted(path.iterdir()) if path.is_dir() else [Path(name) for name in sorted(glob(str(source)))]
    files = [file for file in found if file.is_file() and not file.name.startswith(".")]
    if not files:
        raise InputError(f"read_labelled: there is no file at {source}; give a .jsonl, .csv or .tsv, or a pattern")
    return files


def _read_classes(source: str | Path, files: Sequence[Path]) -> tuple[list[Example], list[str]]:
    if len(files) == 1:
        raise InputError(
            f"read_labelled: {source} is one plain file, which has no classes; give a .jsonl, .csv or .tsv with text "
            "and label, or a pattern that fits one file for each class"
        )
    names = [file.suffix[1:] for file in files]
    if len({*names}) < len(files) or not all(names):
        names = [file.stem for file in files]
    if len({*names}) < len(files):
        twice = Counter(names).most_common(1)[0][0]
        raise InputError(f"read_labelled: {source} has two files called {twice}; rename one")
    examples: list[Example] = []
    notes: list[str] = []
    for name, file in zip(names, files, strict=True):
        text, note = _decoded(file)
        notes += note
        examples += [Example(line.strip(), name) for line in text.split("\n") if line.strip()]
    return examples, notes


def _decoded(file: Path) -> tuple[str, list[str]]:
    """The text of a file, in UTF-8 or, if it is not that, Latin-1; with a note."""
    check_is_file("read_labelled", file)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"read_labelled: cannot read {file} ({error}); give a file of text") from None
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return data.decode("latin-1"), [f"{file.name} is not UTF-8, and was read as Latin-1"]


def _read_table(file: Path, text: str, label: str) -> tuple[list[Example], list[str]]:
    def parse(record: Mapping[str, Any]) -> Example:
        name = record.get(label)
        if isinstance(name, bool) or not isinstance(name, str | int):
            text_field(record, label)  # raises
        return Example(text_field(record, text).strip(), str(name))

    if file.suffix.lower() not in TABLES:
        records = read_records(file, parse)
        return records.items, [records.summary()] if records.problems else []
    content, notes = _decoded(file)
    return list(_rows(file, content, text, label)), notes


def _rows(file: Path, content: str, text: str, label: str) -> Iterator[Example]:
    rows = csv.reader(content.splitlines(keepends=True), delimiter=TABLES[file.suffix.lower()])
    header = [name.strip() for name in next(rows, [])]
    for name in (text, label):
        if name not in header:
            raise InputError(
                f"read_labelled: the first line of {file} names no column {name!r} among {', '.join(header)}"
                f"{did_you_mean(name, header)}"
            )
    where = header.index(text), header.index(label)
    for number, row in enumerate(rows, start=2):
        if row and len(row) != len(header):
            raise InputError(
                f"read_labelled: line {number} of {file} has {len(row)} columns instead of {len(header)}; put texts "
                "with a separator in quotation marks"
            )
        if row:
            yield Example(row[where[0]].strip(), row[where[1]].strip())
