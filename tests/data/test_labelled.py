"""Texts with classes: tables and files of one class each, what is held out, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minillm.data.labelled import Example, Labelled, held_out_share, read_labelled
from minillm.errors import InputError


def test_tables_say_the_same_in_every_form(tmp_path) -> None:
    rows = [("a gem, truly", "good"), ('"quoted"', "bad"), ("näh\tah", "good"), ("two\nlines", "bad")]
    lines = [json.dumps({"id": 1, "text": text, "label": label}) for text, label in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    table = "label,n,text\n" + "".join(f'{label},3,"{text.replace(chr(34), chr(34) * 2)}"\n' for text, label in rows)
    (tmp_path / "a.csv").write_text(table, encoding="utf-8")
    (tmp_path / "a.tsv").write_text(table.replace(",", "\t").replace("gem\t truly", "gem, truly"), encoding="utf-8")
    expected = [Example(*row) for row in rows]
    for name in ("a.jsonl", "a.csv", "a.tsv"):
        found = read_labelled(tmp_path / name)
        assert found.examples == expected
        assert found.labels == ("bad", "good")
        assert found.summary() == "4 texts: 2 bad, 2 good"


def test_numbers_are_labels_in_their_order(tmp_path) -> None:
    lines = [json.dumps({"review": f"text {n}", "stars": n}) for n in (10, 2, 1, 0, 10)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert read_labelled(tmp_path / "a.jsonl", "review", "stars").labels == ("0", "1", "2", "10")


def test_files_of_one_class_each_are_told_apart_by_their_names(tmp_path) -> None:
    (tmp_path / "rt.pos").write_bytes("one \n\n entr\xe9e \n".encode("latin-1"))
    (tmp_path / "rt.neg").write_text("two\n  \n", encoding="utf-8")
    found = read_labelled(tmp_path / "rt.*")
    assert found.examples == [Example("two", "neg"), Example("one", "pos"), Example("entrée", "pos")]
    assert found.summary() == "3 texts: 1 neg, 2 pos; rt.pos is not UTF-8, and was read as Latin-1"
    folder = tmp_path / "more"
    folder.mkdir()
    for name in ("good.txt", "bad.txt", ".hidden"):
        (folder / name).write_text("x y\n")
    assert read_labelled(folder).labels == ("bad", "good")
    assert read_labelled(folder).summary().endswith("1 text has two classes")


def test_a_text_and_its_near_copies_are_held_out_together(rng) -> None:
    words = [f"w{number}" for number in range(500)]
    texts = [" ".join(rng.choice(words, 8)) for _ in range(2000)]
    copies = [text.upper().replace(" ", ",  ") + "!" for text in texts]
    data = Labelled([Example(text, "ab"[n % 2]) for n, text in enumerate(texts + copies)], [])
    train, held = data.split()
    assert len(train) + len(held) == 4000
    assert 300 < len(held) < 500
    letters = [{held_out_share(example.text) for example in part} for part in (train, held)]
    assert not letters[0] & letters[1]
    again = Labelled(data.examples[::-1], []).split()[1]
    assert {*again} == {*held}  # whatever the order
    assert {*Labelled(data.examples[:3000], []).split()[1]} <= {*held}  # and whatever else there is
    shares = np.array([held_out_share(text) for text in texts])
    assert abs(shares.mean() - 0.5) < 0.02
    few = Labelled([Example("x", "a"), Example("y", "b"), Example("z", "a")], []).split(1e-9)
    assert [len(part) for part in few] == [2, 1]
    with pytest.raises(InputError, match="split: of 2 texts none is left to train on"):
        Labelled([Example("x", "a"), Example("X!", "b")], []).split()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,lable\nx,y\n", "names no column 'label' among text, lable; did you mean 'lable'"),
        ("a.csv", "text,label\nx,y,z\n", "line 2 of .* has 3 columns instead of 2"),
        ("a.csv", "text,label\nx,a\ny,a\n", r"has 1 class \(a\); give texts of two or more"),
        ("a.csv", "text,label\n", r"has 0 classes \(no texts\)"),
        ("a.jsonl", '{"text": "x"}\n', "there is no field 'label' among text"),
        ("a.txt", "x\n", "is one plain file, which has no classes"),
        ("b.txt", None, "there is no file at"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, name, content, message) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_labelled(tmp_path / name)
