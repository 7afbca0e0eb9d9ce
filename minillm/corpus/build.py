"""`minillm data build`: the stages one after the other, from raw files to shards.

    FOLDER/extract.jsonl.zst        every document that was read
    FOLDER/clean.jsonl.zst          the same documents, of which some are now dropped, with the reason
    FOLDER/dedup.jsonl.zst
    FOLDER/decontaminate.jsonl.zst
    FOLDER/train.jsonl.zst          the kept ones, by part; also validation, and test where it has a share
    FOLDER/mixed.jsonl.zst          the training part as sources are weighted, where they are
    FOLDER/shards/                  token ids of each part, and the tokenizer
    FOLDER/*.json                   the record of each stage: settings, counts, problems

Each stage is resumed where it was, and one whose record says that it is done with these settings and these inputs is
not run again. So the same command, given again, goes on after a kill, and after a change of settings runs what depends
on them.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minillm.corpus.config import Config
from minillm.corpus.journal import identity_of, read_record
from minillm.corpus.mixing import Mixture, mix
from minillm.corpus.shards import PARTS, write_parts
from minillm.corpus.split import Split, SplitStage, check_parts, dropped_by, straddling
from minillm.corpus.stage import BEFORE, Stage, run_stage

CLASSES = {  # of the stages that write every document that they read
    "clean": ("minillm.corpus.rules", "CleanStage"),
    "dedup": ("minillm.corpus.duplicates.stage", "DedupStage"),
    "decontaminate": ("minillm.corpus.decontamination", "DecontaminateStage"),
}


class Row(NamedTuple):
    """A line of the table: the documents of a stage that were kept, or dropped by a rule."""

    stage: str
    what: str  # "kept", the rule that dropped them, the part or source that they are of, or CUT
    documents: int | None  # None of CUT
    text_bytes: int


CUT = "cut out of kept ones"  # lines, and what else a stage takes out of documents that it keeps


def stage_of(name: str, settings: Any) -> Stage:
    """A stage with these settings."""
    module, kind = CLASSES[name]
    return getattr(importlib.import_module(module), kind)(settings)


def build(config: Config, folder: Path, processes: int = 1, progress: bool = True) -> list[Row]:
    """Run the stages that have settings, and write what the top of this file lists; returns what each stage did."""
    from minillm.corpus.readers.extract import extract

    stages = {name: stage_of(name, config.stages[name]) for name in CLASSES if name in config.stages}
    documents = folder / "extract.jsonl.zst"
    extract(config.sources, documents, config.stages["extract"], processes, progress)
    records = [documents.with_name("extract.json")]
    for name in CLASSES.keys() - stages.keys():
        forget(folder, name, f"{name}.jsonl.zst", progress)
    for name, stage in stages.items():
        documents, before = folder / f"{name}.jsonl.zst", documents
        run_stage(stage, [before], documents, processes, progress)
        records.append(folder / f"{name}.json")
    parts = split([documents], folder, config.stages["split"], processes, progress)
    records.append(folder / "split.json")
    if not (config.weights or config.epochs):
        forget(folder, "mix", "mixed.jsonl.zst", progress)
    else:
        mixed = folder / "mixed.jsonl.zst"
        mix([parts["train"]], mixed, Mixture(config.weights, config.epochs, config.seed), processes, progress)
        records.append(folder / "mix.json")
        parts["train"] = mixed
    if "shards" in config.stages:
        write_parts(parts, folder / "shards", config.stages["shards"], processes, progress)
    return [row for record in records for row in rows_of(record)]


def forget(folder: Path, stage: str, output: str, progress: bool) -> None:
    """Take away the output of an earlier build's stage that this one has not, so that nobody takes it for its own."""
    record = folder / f"{stage}.json"
    if read_record(record, stage):
        if progress:
            print(f"data build: {folder / output} is of an earlier build and is taken away", file=sys.stderr)
        (folder / output).unlink(missing_ok=True)
        record.unlink()


def split(inputs: Sequence[Path], folder: Path, options: Split, processes: int, progress: bool) -> dict[str, Path]:
    """Divide the documents; returns the file of each part."""
    stage = SplitStage(options)
    if "test" not in stage.parts and read_record(folder / "split.json", "split"):
        (folder / "test.jsonl.zst").unlink(missing_ok=True)
    counts = run_stage(stage, inputs, folder, processes, progress)
    check_parts(counts, options, dropped_by(inputs))
    if progress and (sentence := straddling(inputs)):
        print(sentence, file=sys.stderr)
    return {part: folder / f"{part}.jsonl.zst" for part in stage.parts}


def parts_in(folder: Path) -> dict[str, Path]:
    """The file of each part in a folder of `split`; of the training part the mixed one, where that was made of it."""
    found = {part: path for part in PARTS if (path := folder / f"{part}.jsonl.zst").exists()}
    mixture = read_record(folder / "mix.json", "mix")
    if mixture and mixture["done"] and "train" in found and mixture["inputs"] == [identity_of(found["train"])]:
        found["train"] = folder / "mixed.jsonl.zst"
    return found


def rows_of(record: Path) -> list[Row]:
    """The rows of a stage's record, about the documents that came undropped to it: kept ones first."""
    content: Mapping[str, Any] = json.loads(record.read_bytes())
    sizes = content["text_bytes"]
    counts = {what: count for what, count in content["documents"].items() if what != BEFORE}
    order = sorted(counts, key=lambda what: (what != "kept", -counts[what], what))
    rows = [Row(content["stage"], what, counts[what], sizes.get(what, 0)) for what in order]
    cut = sizes.get("read", 0) - sum(row.text_bytes for row in rows)
    return [*rows, Row(content["stage"], CUT, None, cut)] if cut > 0 else rows
