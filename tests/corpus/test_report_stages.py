"""The data card of what the stages really write: their records, reasons, clusters and parts, and the command."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from minillm.cli import main
from minillm.corpus.build import split
from minillm.corpus.document import Document, read_documents
from minillm.corpus.duplicates.options import Dedup
from minillm.corpus.duplicates.stage import DedupStage
from minillm.corpus.rules import Clean, CleanStage
from minillm.corpus.shards import Shards, write_parts
from minillm.corpus.split import Split
from minillm.corpus.stage import run_stage
from minillm.data.shards import open_tokens
from tests.corpus.report_corpus import ENGLISH, write_documents

WORDS = [*ENGLISH, "of", "with", "that", "have", *(f"word{chr(97 + i)}" for i in range(26))]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zstandard")
    folder = tmp_path_factory.mktemp("stages") / "corpus"
    folder.mkdir()
    draw = random.Random(0)
    documents = [Document(" ".join(draw.choices(WORDS, k=200)), f"raw:{i}", draw.choice("ab")) for i in range(60)]
    documents += [Document(f"{one.text} again", f"copy:{i}", "c") for i, one in enumerate(documents[:12])]
    documents += [Document("the women of the house", f"short:{i}", "c") for i in range(9)]
    raw = write_documents(folder / "extract.jsonl.zst", documents)
    run_stage(CleanStage(Clean(rules="gopher_quality, word_lists")), [raw], folder / "clean.jsonl.zst", progress=False)
    dedup = DedupStage(Dedup())
    run_stage(dedup, [folder / "clean.jsonl.zst"], folder / "dedup.jsonl.zst", progress=False)
    parts = split([folder / "dedup.jsonl.zst"], folder, Split(validation=0.3), 1, False)
    parts = {name: path for name, path in parts.items() if name != "test"}
    write_parts(parts, folder / "shards", Shards(vocab_size=300), 1, False)
    return folder


@pytest.fixture(scope="module")
def card(corpus: Path) -> dict[str, Any]:
    main(["data", "report", str(corpus), "--processes", "1"])
    return json.loads((corpus / "data_card.json").read_text())


def test_the_command_says_where_the_card_is(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "report", str(corpus), "--out", str(tmp_path / "card.html"), "--processes", "1", "--seed", "3"])
    assert capsys.readouterr().out == f"{tmp_path}/card.html, and its numbers in {tmp_path}/card.json\n"
    assert json.loads((tmp_path / "card.json").read_text())["made_with"]["seed"] == 3
    with pytest.raises(SystemExit):
        main(["data", "report", str(corpus), "--seed", "-1"])
    assert "data report: seed is -1; give a whole number of 0 or more" in capsys.readouterr().err


def test_the_card_has_what_the_stages_did(card: dict[str, Any], corpus: Path) -> None:
    documents = list(read_documents(corpus / "dedup.jsonl.zst"))
    rules = {row["rule"]: row["documents"] for row in card["preprocessing"]["rules"]}
    assert rules == Counter(one.rule for one in documents if one.dropped)
    assert rules == {"gopher_quality": 9, "near_duplicate": 12}
    [reason] = next(row for row in card["preprocessing"]["rules"] if row["rule"] == "gopher_quality")["reasons"]
    assert reason["reason"].startswith("# words")
    duplicates = card["preprocessing"]["duplicates"]
    assert (duplicates["clusters"], duplicates["documents_in_clusters"]) == (12, 24)
    assert all(len(example["members"]) == 2 for example in duplicates["examples"])
    stages = card["preprocessing"]["stages"]
    assert [stage["stage"] for stage in stages[:3]] == ["clean", "dedup", "split"]
    assert [stage["stage"] for stage in stages[3:]] == ["tokenizer", "shards", "shards"]
    assert stages[1]["settings"]["bands"] == 25
    outcomes = {row["rule"]: row["documents"] for row in stages[1]["outcomes"]}
    assert (outcomes["kept"], outcomes["near_duplicate"]) == (60, 12)


def test_groups_are_those_that_the_rule_noted(card: dict[str, Any], corpus: Path) -> None:
    kept = [one for one in read_documents(corpus / "dedup.jsonl.zst") if not one.dropped]
    noted = sum((Counter(one.info.get("words_by_group", {})) for one in kept), Counter())
    shown = {row["group"]: row["occurrences"] for row in card["people"]["groups"] if row["occurrences"]}
    assert shown == noted
    assert noted["women"] > 0


def test_the_parts_have_the_tokens_of_the_shards(card: dict[str, Any], corpus: Path) -> None:
    splits = {row["split"]: row for row in card["composition"]["splits"]}
    assert splits["train"]["documents"] + splits["validation"]["documents"] == 60
    for name in "train", "validation":
        assert splits[name]["tokens"] == len(open_tokens(sorted((corpus / "shards").glob(f"{name}_*.bin"))))
    ends = sum(splits[name]["documents"] for name in ("train", "validation"))
    assert splits["train"]["tokens"] + splits["validation"]["tokens"] == card["composition"]["kept"]["tokens"] + ends


def test_files_that_are_no_part_of_the_corpus_are_not_listed(card: dict[str, Any]) -> None:
    names = {row["file"] for row in card["files"]}
    assert {
        "extract.jsonl.zst",
        "dedup.jsonl.zst",
        "shards/train_00000.bin",
        "shards/tokenizer/tokenizer.json",
    } <= names
    assert not any("index" in name or "card" in name for name in names)
