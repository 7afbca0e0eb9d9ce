"""`minillm data`: from raw files to token shards, all at once or a stage at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.backend import core_count
from minillm.commands.common import print_tables
from minillm.corpus.build import Row, build, parts_in, rows_of, split
from minillm.corpus.config import Config, Source, read_config
from minillm.corpus.decontamination import Decontaminate, DecontaminateStage
from minillm.corpus.document import SUFFIXES, plain_name, read_documents
from minillm.corpus.duplicates.lsh import curve_lines
from minillm.corpus.duplicates.options import Dedup
from minillm.corpus.duplicates.stage import DedupStage
from minillm.corpus.readers.extract import Extract, extract, first_document
from minillm.corpus.report import report
from minillm.corpus.rules import Clean, CleanStage, explain
from minillm.corpus.shards import Shards, write_parts
from minillm.corpus.split import Split
from minillm.corpus.stage import Stage, record_of, run_stage
from minillm.errors import InputError, did_you_mean
from minillm.options import Positional, read

PROBLEMS = 5  # things that a stage left out, which are printed


@dataclass(frozen=True)
class DataBuild:
    """Build a corpus from raw files: read, clean, deduplicate, split, write token shards; resumes where it was."""

    sources: Positional[tuple[str, ...]]
    """A .toml with sources and a table for each stage (minillm/corpus/README.md), or files, folders and patterns."""
    out: Path
    """Folder for everything; given again, the command goes on with what is in it."""
    processes: int | None = None
    """Worker processes; by default as many as there are cores. The output is the same for any number."""
    skip: str = ""
    """Stages to leave out, with commas between: clean, dedup, shards."""
    against: str = ""
    """Evaluation files, with commas between, whose texts are taken out of the training documents."""
    validation: float = Split.validation
    """Share of the documents that is for validation."""
    tokenizer: str = Shards.tokenizer
    """`bpe`, `unigram` or `char`, trained on the training part; or a folder with a saved tokenizer."""
    vocab_size: int = Shards.vocab_size
    """Number of tokens of a tokenizer that is trained here."""


def data_build(arguments: list[str]) -> None:
    """Run the stages, and print what each did and the command that trains on it."""
    given = read(DataBuild, "data build", arguments)
    tomls = [source for source in given.sources if source.endswith(".toml")]
    if tomls and len(given.sources) > 1:
        raise InputError(f"data build: {tomls[0]} says all sources; give it alone")
    if tomls:
        config = read_config(Path(tomls[0]))
        for name in ("skip", "against", "validation", "tokenizer", "vocab_size"):
            if getattr(given, name) != getattr(DataBuild, name):
                option = name.replace("_", "-")
                raise InputError(f"data build: --{option} is for a build without a .toml; write it into {tomls[0]}")
    else:
        config = config_of(given)
    processes = processes_of("data build", given.processes)
    print_rows(str(given.out), build(config, given.out, processes))
    print(f"data card: {report(given.out, processes=processes)}")
    if "shards" in config.stages:
        print_training(given.out / "shards")


def config_of(given: DataBuild) -> Config:
    """The settings that the options mean."""
    skipped = [name.strip() for name in given.skip.split(",") if name.strip()]
    for name in skipped:
        if name not in ("clean", "dedup", "shards"):
            raise InputError(f"data build: --skip has {name!r}{did_you_mean(name, ('clean', 'dedup', 'shards'))}")
    stages: dict[str, Any] = {
        "clean": None,
        "dedup": None,
        "split": Split(validation=given.validation),
        "shards": Shards(given.tokenizer, given.vocab_size),
    }
    if given.against:
        stages["decontaminate"] = Decontaminate(against=given.against)
    return Config(
        tuple(map(Source, given.sources)), {name: value for name, value in stages.items() if name not in skipped}
    )


@dataclass(frozen=True, kw_only=True)
class DataExtract(Extract):
    """Read raw files of any kind as documents: text, web pages, records, archives of them."""

    sources: Positional[tuple[str, ...]]
    """Files, folders and patterns, such as "raw/**/*"."""
    out: Path
    """File to write: .jsonl, .jsonl.gz or .jsonl.zst; what was left out is listed beside it."""
    processes: int | None = None
    """Worker processes; by default as many as there are cores. The output is the same for any number."""


def data_extract(arguments: list[str]) -> None:
    """Read files as documents."""
    given = read(DataExtract, "data extract", arguments)
    processes = processes_of("data extract", given.processes)
    extract([Source(path) for path in given.sources], given.out, settings_in(given, Extract), processes)
    print_record(given.out.with_name(f"{plain_name(given.out)}.json"))


@dataclass(frozen=True, kw_only=True)
class StageFiles:
    """The files that a stage reads and writes."""

    inputs: Positional[tuple[Path, ...]] = ()
    """Output of other stages: .jsonl, .jsonl.gz or .jsonl.zst, with a document a line."""
    out: Path | None = None
    """File to write, with every document, and with the reason where one is dropped; for a split, a folder."""
    processes: int | None = None
    """Worker processes; by default as many as there are cores. The output is the same for any number."""


@dataclass(frozen=True, kw_only=True)
class DataClean(StageFiles, Clean):
    """Drop documents that are no prose or repeat themselves, and remove lines that are none, by rules with names."""

    explain: str | None = None
    """Instead: print what each rule measures in a text, or in the first document of a file, and why it is
    kept or dropped."""


def data_clean(arguments: list[str]) -> None:
    """Run the rules over documents, or explain what they do with one."""
    given = read(DataClean, "data clean", arguments)
    options = settings_in(given, Clean)
    if given.explain is None:
        run("data clean", CleanStage(options), given)
        return
    explanation = explain(text_of(given.explain), options)
    print_tables([explanation.table()])
    print(*explanation.sentences(), sep="\n")


def text_of(given: str) -> str:
    """The text of the first document in a file, read as `data extract` does; or the text itself.

    Raises: InputError for a file that is not there or has no document.
    """
    path = Path(given)
    try:
        there = path.exists()
    except (OSError, ValueError):  # a text that can be no name of a file
        return given
    if not there:
        if given.split() == [given] and ("/" in given or path.suffix):  # one word
            raise InputError(f"data clean: there is no file {given}; check the name, or give a text in quotes")
        return given
    if path.name.endswith(SUFFIXES):
        with contextlib.suppress(InputError, OSError):  # raw records, which `data extract` reads
            return next((document.text for document in read_documents(path)), "")
    if not path.is_file():
        raise InputError(f"data clean: {given} is no file; give a file with a document, or a text in quotes")
    return first_document(given).text


@dataclass(frozen=True, kw_only=True)
class DataDedup(StageFiles, Dedup):
    """Mark documents, and remove lines, that stand elsewhere already; the first in input order stays."""

    curve: bool = False
    """Instead: print how likely two documents are compared, by their similarity, with these bands and rows."""


def data_dedup(arguments: list[str]) -> None:
    """Find duplicates, or print the expected curve."""
    given = read(DataDedup, "data dedup", arguments)
    if given.curve:
        print(*curve_lines(given.bands, given.rows, given.threshold), sep="\n")
    else:
        run("data dedup", DedupStage(settings_in(given, Dedup)), given)


@dataclass(frozen=True, kw_only=True)
class DataDecontaminate(StageFiles, Decontaminate):
    """Drop documents that hold the texts of evaluation files."""


def data_decontaminate(arguments: list[str]) -> None:
    """Find the texts of evaluation files."""
    given = read(DataDecontaminate, "data decontaminate", arguments)
    run("data decontaminate", DecontaminateStage(settings_in(given, Decontaminate)), given)


@dataclass(frozen=True, kw_only=True)
class DataSplit(StageFiles, Split):
    """Divide the kept documents into training and validation, so that near-duplicates never straddle the line."""


def data_split(arguments: list[str]) -> None:
    """Divide documents by their clusters."""
    given = read(DataSplit, "data split", arguments)
    inputs, out = files_of("data split", given)
    split(inputs, out, settings_in(given, Split), processes_of("data split", given.processes), True)
    print_record(out / "split.json")


@dataclass(frozen=True, kw_only=True)
class DataShards(Shards):
    """Encode the parts of a split as token shards, with a tokenizer that is given or trained on the training part."""

    folder: Positional[Path]
    """Folder that `data split` or `data build` has written."""
    out: Path | None = None
    """Folder for the shards and the tokenizer; by default `shards` in the folder."""
    processes: int | None = None
    """Worker processes; by default as many as there are cores. The output is the same for any number."""


def data_shards(arguments: list[str]) -> None:
    """Encode the parts, and print the command that trains on them."""
    given = read(DataShards, "data shards", arguments)
    parts = parts_in(given.folder)
    if not {"train", "validation"} <= parts.keys():
        raise InputError(
            f"data shards: {given.folder} has no train.jsonl.zst and validation.jsonl.zst; make them with "
            "`minillm data split`"
        )
    out = given.out or given.folder / "shards"
    write_parts(parts, out, settings_in(given, Shards), processes_of("data shards", given.processes))
    print_training(out)


@dataclass(frozen=True)
class DataReport:
    """Write the data card of a corpus: a page of HTML that loads nothing, and a JSON with the same numbers."""

    folder: Positional[Path]
    """Folder that `data build` has written, or one with .jsonl files of documents."""
    out: Path | None = None
    """Page to write, with the JSON beside it; by default data_card.html in the folder."""
    processes: int | None = None
    """Worker processes; by default as many as there are cores. The output is the same for any number."""
    seed: int = 0
    """Seed of the samples that are shown."""


def data_report(arguments: list[str]) -> None:
    """Count the corpus, and print where its card is."""
    given = read(DataReport, "data report", arguments)
    page = report(given.folder, given.out, processes_of("data report", given.processes), given.seed)
    print(f"{page}, and its numbers in {page.with_suffix('.json')}")


def run(command: str, stage: Stage, given: StageFiles) -> None:
    """Run a stage over the files of its command, and print what it did."""
    inputs, out = files_of(command, given)
    run_stage(stage, inputs, out, processes_of(command, given.processes))
    print_record(record_of(out, stage))


def files_of(command: str, given: StageFiles) -> tuple[tuple[Path, ...], Path]:
    """The inputs and the output. Raises: InputError where one of them is missing."""
    if not given.inputs or given.out is None:
        missing = "--out" if given.inputs else "INPUTS"
        raise InputError(f"{command}: {missing} is missing; `minillm {command} --help` lists what there is")
    return given.inputs, given.out


def settings_in(given: Any, kind: type) -> Any:
    """The settings of a stage among the options of its command."""
    return kind(**{field.name: getattr(given, field.name) for field in dataclasses.fields(kind)})


def processes_of(command: str, processes: int | None) -> int:
    """The number of worker processes."""
    if processes is not None and not 1 <= processes <= 256:
        raise InputError(f"{command}: processes is {processes}; give 1 to 256, best the number of cores")
    return processes or core_count()


def print_record(record: Path) -> None:
    """Print what the record of a stage says: its counts, and what it left out."""
    print_rows(record.name, rows_of(record))
    problems = json.loads(record.read_bytes())["problems"]
    if problems["count"]:
        print(f"left out: {problems['count']:,}; the first are:", *problems["first"][:PROBLEMS], sep="\n  ")


def print_rows(title: str, rows: Iterable[Row]) -> None:
    """Print the documents and bytes that each stage kept and dropped, by rule."""
    cells = [
        [row.stage, row.what, "" if row.documents is None else f"{row.documents:,}", f"{row.text_bytes:,}"]
        for row in rows
    ]
    print_tables([(title, ["stage", "kept, or dropped by", "documents", "bytes of text"], cells)], width=80)


def print_training(shards: Path) -> None:
    """Print the command that trains on these shards."""
    data, tokenizer = shlex.quote(str(shards)), shlex.quote(str(shards / "tokenizer"))
    print(f"to train on it:\n  minillm train --data {data} --tokenizer {tokenizer} --boundaries")
