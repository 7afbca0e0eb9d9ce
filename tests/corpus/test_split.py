"""Near-duplicates never straddle training and validation, and shares are right but for chance."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from minillm.corpus.build import split
from minillm.corpus.document import Document, open_lines, read_documents
from minillm.corpus.split import Split, SplitStage, place_of
from minillm.errors import InputError

pytest.importorskip("zstandard")


def write(path: Path, documents: list[Document]) -> Path:
    with open_lines(path, "wb") as lines:
        for document in documents:
            lines.write(document.to_line())
    return path


def planted(clusters: int = 300) -> list[Document]:
    """Clusters of 2 to 5 near-duplicates, all kept and spread over the corpus, among documents that stand alone."""
    rng = np.random.default_rng(5)
    made = []
    for cluster in range(clusters):
        for copy in range(rng.integers(2, 6)):
            info = {"cluster": f"web:{cluster}-0"}
            made.append(Document(f"text {cluster} with a change {copy}", f"web:{cluster}-{copy}", info=info))
    made += [Document(f"alone {number}", f"alone:{number}") for number in range(300)]
    return [made[i] for i in rng.permutation(len(made))]


def test_near_duplicates_never_straddle(tmp_path):
    documents = planted()
    documents[3].dropped = "rule: 1"
    source = write(tmp_path / "in.jsonl.zst", documents)
    parts = split([source], tmp_path / "out", Split(validation=0.3, test=0.2), 1, progress=False)
    assert list(parts) == ["train", "validation", "test"]
    found = {part: list(read_documents(path)) for part, path in parts.items()}
    clusters = {part: {one.info.get("cluster", one.id) for one in ones} for part, ones in found.items()}
    assert not clusters["train"] & clusters["validation"]
    assert not clusters["train"] & clusters["test"]
    assert not clusters["validation"] & clusters["test"]
    assert all(len(one) > 100 for one in clusters.values())
    ids = [one.id for ones in found.values() for one in ones]
    assert sorted(ids) == sorted(one.id for one in documents if not one.dropped)
    order = {one.id: number for number, one in enumerate(documents)}
    for ones in found.values():
        assert [order[one.id] for one in ones] == sorted(order[one.id] for one in ones)


def test_ids_alone_would_let_near_duplicates_straddle():
    """The planted corpus tells a split by cluster from one by id."""
    documents = planted()
    stage = SplitStage(Split(validation=0.3))
    by_id = {}
    for one in documents:
        part = stage.part(Document(one.text, one.id))
        by_id.setdefault(one.info.get("cluster", one.id), set()).add(part)
    assert sum(len(parts) > 1 for parts in by_id.values()) > 100


@pytest.mark.parametrize(("validation", "test"), [(0.05, 0.0), (0.5, 0.25), (0.01, 0.02)])
def test_shares_are_right_but_for_chance(validation, test):
    stage, count = SplitStage(Split(validation, test, seed=3)), 20_000
    found = [stage.part(Document("", f"a:{number}")) for number in range(count)]
    for part, share in (("validation", validation), ("test", test), ("train", 1 - validation - test)):
        deviation = math.sqrt(count * share * (1 - share))
        assert abs(found.count(part) - count * share) <= 4 * deviation


def test_places_are_evenly_spread_and_depend_on_the_seed():
    places = np.array([place_of(Document("", f"a:{number}"), 0) for number in range(10_000)])
    counts = np.histogram(places, 20, (0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 45  # chi-squared with 19 degrees of freedom: above it once in a thousand
    other = np.array([place_of(Document("", f"a:{number}"), 1) for number in range(10_000)])
    assert abs(np.corrcoef(places, other)[0, 1]) < 0.04


def test_a_document_keeps_its_part_when_others_come_or_its_text_changes():
    stage = SplitStage(Split(0.5))
    assert {stage.part(Document(text, "a:5")) for text in ("one", "two", "")} == {stage.part(Document("x", "a:5"))}


def test_without_dedup_a_person_is_told(tmp_path, capsys):
    source = write(tmp_path / "clean.jsonl.zst", planted(20))
    split([source], tmp_path / "one", Split(0.4), 1, progress=True)
    assert "near-duplicates may straddle" in capsys.readouterr().err
    (tmp_path / "dedup.json").write_text('{"stage": "dedup", "done": true}')
    split([source], tmp_path / "two", Split(0.4), 1, progress=True)
    assert capsys.readouterr().err == ""


def test_where_all_were_dropped_the_rules_are_named(tmp_path):
    documents = [Document("text", f"a:{number}", dropped="c4: 1 sentences, under 5") for number in range(5)]
    source = write(tmp_path / "clean.jsonl", documents)
    with pytest.raises(InputError, match="split: all 5 documents were dropped before; change"):
        split([source], tmp_path / "alone", Split(0.5), 1, progress=False)
    (tmp_path / "clean.json").write_text('{"stage": "clean", "documents": {"c4": 3, "language": 2, "kept": 0}}')
    (tmp_path / "dedup.json").write_text("no record")
    with pytest.raises(InputError, match="all 5 documents were dropped before, by c4 3, language 2; change"):
        split([source], tmp_path / "out", Split(0.5), 1, progress=False)


def test_refusals(tmp_path):
    for options in (dict(validation=1.0), dict(validation=-0.1), dict(validation=0.6, test=0.5), dict(validation=0.0)):
        with pytest.raises(InputError, match=r"split: validation.*(share|shares)"):
            Split(**options)
    source = write(tmp_path / "in.jsonl", [Document("text", f"a:{number}") for number in range(5)])
    with pytest.raises(InputError, match="none of the 5 documents that were kept is in the part 'validation'"):
        split([source], tmp_path / "out", Split(0.0001), 1, progress=False)
