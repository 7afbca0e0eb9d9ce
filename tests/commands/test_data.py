"""`minillm data`: the commands of single stages, what they explain, and what they refuse."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from minillm.cli import main
from minillm.corpus.document import Document, open_lines, read_documents

pytest.importorskip("zstandard")
GOOD = "The children walked to the river with their teacher, and that morning they have seen a heron. "


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl.zst"
    with open_lines(path, "wb") as lines:
        for number in range(30):
            text = f"{GOOD} It was the day number {number} of a long and quiet year, {'rain ' * (number % 7)}they said."
            lines.write(Document(text if number != 4 else "# # # #", f"a:{number}", source="a").to_line())
    return path


def error(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["data", *words])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_clean_writes_reasons_and_prints_counts(documents, tmp_path, capsys):
    out = tmp_path / "clean.jsonl"
    main(["data", "clean", str(documents), "--out", str(out), "--rules", "gopher_quality", "--min-words", "10"])
    dropped = [document for document in read_documents(out) if document.dropped]
    assert [document.id for document in dropped] == ["a:4"]
    assert "gopher_quality" in capsys.readouterr().out


def test_clean_explains_a_text_a_file_and_a_document(documents, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(GOOD, encoding="utf-8")
    for given in (GOOD, str(text), str(documents)):
        main(["data", "clean", "--rules", "gopher_quality", "--explain", given])
        printed = capsys.readouterr().out
        assert "gopher_quality" in printed
        assert "dropped by gopher_quality" in printed


def test_clean_explains_the_document_that_is_read_from_a_file(tmp_path, capsys):
    """The rules see a page's main text, repaired German, and the first of raw records, as in a build."""
    pytest.importorskip("resiliparse")
    (tmp_path / "page.html").write_text(f"<nav><li>Home</li></nav><main><p>{GOOD}</p></main>")
    (tmp_path / "german.txt").write_bytes("schöne Straßen".encode("latin-1"))
    (tmp_path / "raw.jsonl").write_text('broken\n{"text": "two words"}\n')
    for name, words in (("page.html", len(GOOD.split())), ("german.txt", 2), ("raw.jsonl", 2)):
        main(
            ["data", "clean", "--rules", "gopher_quality, c4", "--min-words", "999", "--explain", str(tmp_path / name)]
        )
        assert f"dropped by gopher_quality: {words} words, under 999" in capsys.readouterr().out


def test_clean_explains_no_name_of_a_file_that_is_not_there(tmp_path, capsys):
    (tmp_path / "empty.txt").touch()
    os.mkfifo(tmp_path / "pipe")
    for given, message in (
        ("essay.txt", "there is no file essay.txt"),
        (str(tmp_path / "essay"), "there is no file"),
        (str(tmp_path), "is no file"),
        (str(tmp_path / "pipe"), "is no file"),
        (str(tmp_path / "empty.txt"), "no document was found in"),
    ):
        assert message in error(capsys, "clean", "--explain", given)


def test_dedup_prints_its_curve_and_marks_duplicates(documents, tmp_path, capsys):
    main(["data", "dedup", "--curve"])
    assert "P(candidate) = 1 - (1 - J^8)^25" in capsys.readouterr().out
    again = tmp_path / "again.jsonl.zst"
    with open_lines(again, "wb") as lines:
        for one in read_documents(documents):
            lines.write(replace(one, id=f"again:{one.id}").to_line())
    out = tmp_path / "dedup.jsonl"
    main(["data", "dedup", str(documents), str(again), "--out", str(out), "--processes", "1"])
    found = list(read_documents(out))
    assert len(found) == 60
    assert all(one.dropped for one in found[30:])


def test_split_tells_without_dedup(documents, tmp_path, capsys):
    main(["data", "split", str(documents), "--out", str(tmp_path / "parts"), "--validation", "0.4"])
    printed = capsys.readouterr()
    assert "near-duplicates may straddle" in printed.err
    assert "validation" in printed.out
    counts = json.loads((tmp_path / "parts" / "split.json").read_bytes())["documents"]
    assert counts["train"] + counts["validation"] == 30


def test_what_is_missing_is_said(documents, tmp_path, capsys):
    assert "data dedup: INPUTS is missing; `minillm data dedup --help`" in error(capsys, "dedup")
    assert "data clean: --out is missing" in error(capsys, "clean", str(documents))
    assert "data shards:" in error(capsys, "shards", str(tmp_path))
    assert "`minillm data split`" in error(capsys, "shards", str(tmp_path))
    assert "against names no file" in error(capsys, "decontaminate", str(documents), "--out", str(tmp_path / "o.jsonl"))
    assert "is no folder" in error(capsys, "report", str(tmp_path / "nowhere"))
    assert "another ending" in error(capsys, "clean", __file__, "--out", str(tmp_path / "o.jsonl"))
