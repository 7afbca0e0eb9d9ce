"""`minillm data`: from raw files to token shards, all at once or a stage at a time."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.backend import core_count
from minillm.commands.common import print_tables
from minillm.corpus.build import Row, build, parts_in, rows_of, split
from minillm.corpus.config import Config, Source, read_config, settings_class
from minillm.corpus.shards import Shards, write_parts
from minillm.corpus.split import Split
from minillm.errors import InputError, did_you_mean
from minillm.options import Positional, read


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
    rows = build(config, given.out, processes_of("data build", given.processes))
    print_rows(str(given.out), rows)
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
        stages["decontaminate"] = settings_class("decontaminate")(against=given.against)
    return Config(
        tuple(map(Source, given.sources)), {name: value for name, value in stages.items() if name not in skipped}
    )


@dataclass(frozen=True, kw_only=True)
class DataSplit(Split):
    """Divide the kept documents into training and validation, so that near-duplicates never straddle the line."""

    inputs: Positional[tuple[Path, ...]]
    """Output of another stage: .jsonl, .jsonl.gz or .jsonl.zst."""
    out: Path
    """Folder for train.jsonl.zst and validation.jsonl.zst."""
    processes: int | None = None
    """Worker processes; by default as many as there are cores. The output is the same for any number."""


def data_split(arguments: list[str]) -> None:
    """Divide documents by their clusters."""
    given = read(DataSplit, "data split", arguments)
    split(given.inputs, given.out, settings_in(given, Split), processes_of("data split", given.processes), True)
    print_rows(str(given.out), rows_of(given.out / "split.json"))


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
    from minillm.corpus.report import report

    given = read(DataReport, "data report", arguments)
    page = report(given.folder, given.out, processes_of("data report", given.processes), given.seed)
    print(f"{page}, and its numbers in {page.with_suffix('.json')}")


def settings_in(given: Any, kind: type) -> Any:
    """The settings of a stage among the options of its command."""
    return kind(**{field.name: getattr(given, field.name) for field in dataclasses.fields(kind)})


def processes_of(command: str, processes: int | None) -> int:
    """The number of worker processes."""
    if processes is not None and not 1 <= processes <= 256:
        raise InputError(f"{command}: processes is {processes}; give 1 to 256, best the number of cores")
    return processes or core_count()


def print_rows(title: str, rows: Iterable[Row]) -> None:
    """Print the documents and bytes that each stage kept and dropped, by rule."""
    cells = [[row.stage, row.what, f"{row.documents:,}", f"{row.text_bytes:,}"] for row in rows]
    print_tables([(title, ["stage", "kept, or dropped by", "documents", "bytes of text"], cells)], width=80)


def print_training(shards: Path) -> None:
    """Print the command that trains on these shards."""
    data, tokenizer = shlex.quote(str(shards)), shlex.quote(str(shards / "tokenizer"))
    print(f"to train on it:\n  minillm train --data {data} --tokenizer {tokenizer} --boundaries")
