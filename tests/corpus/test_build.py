"""`minillm data build`: from files to shards by a .toml or options, resumable, with the same bytes every time."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minillm.cli import main
from minillm.corpus.build import CUT, build, parts_in, rows_of
from minillm.corpus.config import Config, Source, read_config
from minillm.corpus.document import read_documents
from minillm.data import open_tokens
from minillm.errors import InputError
from minillm.tokenizers import Tokenizer

for package in ("zstandard", "ftfy", "resiliparse", "py3langid"):
    pytest.importorskip(package)
ROOT = Path(__file__).parents[2]
WORDS = """the of and to that have with house river morning teacher window because every small people walked through
water garden evening letter morning children between summer winter another nothing bread kitchen road mountain sea
story friend night slowly always never under green stone light paper table street music door city old bright""".split()
TOML = """
seed = 3

[[sources]]
path = "raw/books/*.txt"
name = "books"
weight = 2
licence = "CC0-1.0"

[[sources]]
path = "raw/web.jsonl"
name = "web"
weight = 1
epochs = 4

[clean]
rules = ["gopher_quality", "gopher_repetition"]
min_words = 30

[dedup]

[decontaminate]
against = "questions.jsonl"

[split]
validation = 0.2
seed = 5

[shards]
vocab_size = 300
"""


def prose(rng: np.random.Generator, words: int) -> str:
    """Sentences of English words, in a few paragraphs."""
    found = rng.choice(WORDS, words).tolist()
    sentences = [" ".join(found[i : i + 11]).capitalize() + "." for i in range(0, words, 11)]
    return "\n".join(" ".join(sentences[i : i + 4]) for i in range(0, len(sentences), 4)) + "\n"


@pytest.fixture
def raw(tmp_path: Path, monkeypatch) -> Path:
    """A folder with books, a web crawl with duplicates and short pages, and evaluation questions; the current one."""
    rng = np.random.default_rng(8)
    (tmp_path / "raw" / "books").mkdir(parents=True)
    books = [prose(rng, 150) for _ in range(24)]
    for number, book in enumerate(books):
        (tmp_path / "raw" / "books" / f"{number:02}.txt").write_text(book, encoding="utf-8")
    web = [prose(rng, 120) for _ in range(20)] + [books[3], books[4].replace("the", "a", 1), "too short", ""]
    lines = [json.dumps({"text": text}) for text in web]
    (tmp_path / "raw" / "web.jsonl").write_text("\n".join([*lines[:5], "{broken", *lines[5:]]) + "\n")
    asked = " ".join(web[2].split()[20:40])
    (tmp_path / "questions.jsonl").write_text(
        json.dumps({"question": asked, "choices": ["a", "b"], "answer": 0}) + "\n"
    )
    (tmp_path / "corpus.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(folder: Path) -> dict[str, bytes]:
    """The files with documents and ids, by name."""
    names = (".zst", ".bin", "extract.skipped.jsonl", "tokenizer.json")
    paths = (path for path in sorted(folder.rglob("*")) if path.name.endswith(names))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_build_from_a_toml(raw, capsys):
    main(["data", "build", "corpus.toml", "--out", "corpus", "--processes", "1"])
    printed, said = capsys.readouterr()
    folder = raw / "corpus"
    documents = list(read_documents(folder / "decontaminate.jsonl.zst"))
    assert len(documents) == 24 + 23  # the empty one is skipped
    rules = {document.id: document.rule for document in documents}
    assert [rule for rule in rules.values() if rule == "exact_duplicate"] == ["exact_duplicate"]
    assert [rule for rule in rules.values() if rule == "near_duplicate"] == ["near_duplicate"]
    assert sum(rule == "gopher_quality" for rule in rules.values()) == 1
    contaminated = [document for document in documents if document.info.get("contaminated_by")]
    assert [document.source for document in contaminated] == ["web"]
    assert {document.info.get("licence") for document in documents if document.source == "books"} == {"CC0-1.0"}
    parts = {part: list(read_documents(folder / f"{part}.jsonl.zst")) for part in ("train", "validation")}
    kept = [document.id for document in documents if document.dropped is None]
    assert sorted(one.id for ones in parts.values() for one in ones) == sorted(kept)
    mixed = list(read_documents(folder / "mixed.jsonl.zst"))
    sizes = {name: sum(len(one.text) for one in mixed if one.source == name) for name in ("books", "web")}
    assert 1.3 < sizes["books"] / sizes["web"] < 3
    tokenizer = Tokenizer.load(folder / "shards" / "tokenizer")
    ids = np.asarray(open_tokens(folder / "shards" / "train_00000.bin", tokenizer.fingerprint()))
    assert (ids == tokenizer.eos_id).sum() == len(mixed)
    first = ids[: np.flatnonzero(ids == tokenizer.eos_id)[0]]
    assert tokenizer.decode(first) == mixed[0].text
    for line in ("gopher_quality", "near_duplicate", "--data corpus/shards --tokenizer corpus/shards/tokenizer"):
        assert line in printed
    assert (folder / "data_card.html").is_file()
    assert "broken" in (folder / "extract.skipped.jsonl").read_text()
    assert "begins again" not in said
    [command] = [line.split() for line in printed.splitlines() if line.startswith("  minillm train")]
    main([*command[1:], "--preset", "nano", "--steps", "2", "--sample-every", "0", "--eval-batches", "1"])
    assert "validation" in capsys.readouterr().out


def test_a_build_is_the_same_in_two_processes_and_after_kills(raw):
    build(read_config(raw / "corpus.toml"), raw / "one", 1, progress=False)
    expected = outputs(raw / "one")
    assert len(expected) >= 11
    words = [sys.executable, "-m", "minillm", "data", "build", "corpus.toml", "--out", "two", "--processes", "2"]
    for wanted in ("clean.json", "split.json"):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (raw / "two" / wanted).exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    build(read_config(raw / "corpus.toml"), raw / "two", 2, progress=False)
    assert outputs(raw / "two") == expected


def test_a_change_of_settings_runs_what_depends_on_it(raw):
    build(read_config(raw / "corpus.toml"), raw / "corpus", 1, progress=False)
    times = {path.name: path.stat().st_mtime_ns for path in (raw / "corpus").glob("*.zst")}
    (raw / "corpus.toml").write_text(TOML.replace("validation = 0.2", "validation = 0.4"))
    build(read_config(raw / "corpus.toml"), raw / "corpus", 1, progress=False)
    changed = {path.name for path in (raw / "corpus").glob("*.zst") if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"train.jsonl.zst", "validation.jsonl.zst", "mixed.jsonl.zst"}


def test_what_a_build_no_longer_makes_is_taken_away(raw, capsys):
    text = TOML.replace("validation = 0.2", "validation = 0.2\ntest = 0.2")
    (raw / "corpus.toml").write_text(text)
    build(read_config(raw / "corpus.toml"), raw / "corpus", 1, progress=False)
    assert parts_in(raw / "corpus").keys() == {"train", "validation", "test"}
    assert parts_in(raw / "corpus")["train"].name == "mixed.jsonl.zst"
    for removed in ("weight = 2\n", "weight = 1\nepochs = 4\n", '[decontaminate]\nagainst = "questions.jsonl"\n'):
        assert removed in text
        text = text.replace(removed, "")
    (raw / "corpus.toml").write_text(text.replace("test = 0.2", ""))
    (raw / "corpus" / "notes.json").write_text("mine")
    build(read_config(raw / "corpus.toml"), raw / "corpus", 1)
    assert "decontaminate.jsonl.zst is of an earlier build and is taken away" in capsys.readouterr().err
    left = {path.name for path in (raw / "corpus").iterdir()}
    gone = {"decontaminate.json", "decontaminate.jsonl.zst", "mix.json", "mixed.jsonl.zst", "test.jsonl.zst"}
    assert not left & gone
    assert "notes.json" in left
    assert parts_in(raw / "corpus")["train"].name == "train.jsonl.zst"


def test_a_mixture_of_another_training_part_is_not_used(raw):
    build(read_config(raw / "corpus.toml"), raw / "corpus", 1, progress=False)
    assert parts_in(raw / "corpus")["train"].name == "mixed.jsonl.zst"
    main(["data", "split", "corpus/decontaminate.jsonl.zst", "--out", "corpus", "--validation", "0.5",
          "--processes", "1"])  # fmt: skip
    assert parts_in(raw / "corpus")["train"].name == "train.jsonl.zst"


def test_a_build_from_options_equals_its_stages_alone(raw, capsys):
    main(["data", "build", "raw/books/*.txt", "raw/web.jsonl", "--out", "corpus", "--validation", "0.2",
          "--vocab-size", "300", "--skip", "clean", "--processes", "1"])  # fmt: skip
    alone = [
        "data extract raw/books/*.txt raw/web.jsonl --out alone/extract.jsonl.zst",
        "data dedup alone/extract.jsonl.zst --out alone/dedup.jsonl.zst",
        "data split alone/dedup.jsonl.zst --out alone --validation 0.2",
        "data shards alone --vocab-size 300",
    ]
    for command in alone:
        main([*command.split(), "--processes", "1"])
    assert outputs(raw / "corpus") == outputs(raw / "alone")
    assert "clean" not in {path.stem for path in (raw / "corpus").iterdir()}
    printed = capsys.readouterr()
    assert "left out: 2; the first are:" in printed.out
    assert "straddle" not in printed.err


def test_rows_add_up_to_what_was_read(raw):
    rows = build(read_config(raw / "corpus.toml"), raw / "corpus", 1, progress=False)
    read = {row.stage: 0 for row in rows}
    for row in rows:
        read[row.stage] += row.text_bytes
    kept = {row.stage: row.text_bytes for row in rows if row.what == "kept"}
    assert (
        read["clean"]
        == kept["extract"]
        == sum(len(one.text.encode()) for one in read_documents(raw / "corpus" / "extract.jsonl.zst"))
    )
    assert read["dedup"] == kept["clean"]
    assert read["decontaminate"] == kept["dedup"]
    assert read["split"] == kept["decontaminate"]


def test_what_a_stage_cuts_out_of_kept_documents_is_a_row(tmp_path):
    content = {"stage": "clean", "documents": {"kept": 3, "c4": 1}, "text_bytes": {"read": 100, "kept": 60, "c4": 15}}
    (tmp_path / "clean.json").write_text(json.dumps(content))
    assert rows_of(tmp_path / "clean.json")[-1] == ("clean", CUT, None, 25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[clean]", "[claen]"), "has 'claen', which is no setting; did you mean 'clean'?"),
        (
            ("validation =", "validatoin ="),
            r"\[split\].*has 'validatoin', which is no setting; did you mean 'validation'",
        ),
        (("weight = 2", "wieght = 2"), r"\[\[sources\]\].*did you mean 'weight'"),
        (("weight = 2", "weight = -2"), "the weight of source 'raw/books/\\*.txt' is -2; give a number above 0"),
        (("weight = 2", "weight = 'x'"), "the weight of source .* is 'x'; give a number above 0"),
        (("validation = 0.2", "validation = 'x'"), "validation is 'x' in .*give a number, such as 0.05"),
        (("validation = 0.2", "validation = 2"), r"split: validation is 2.0; give a share"),
        (("vocab_size = 300", "vocab_size = 300.5"), "vocab_size is 300.5 in .*give a whole number"),
        (("min_words = 30", "min_wrods = 30"), r"\[clean\].*has 'min_wrods', which is no setting.*'min_words'"),
        (('path = "raw/web.jsonl"', ""), r"\[\[sources\]\] of corpus.toml has no 'path'"),
        (("seed = 3", "seed = -3"), "seed is -3; give a whole number"),
        (("[dedup]", "[[dedup]]"), "dedup is .* in .*; write a table, .dedup."),
        (("[dedup]", "dedup"), "cannot be read"),
        (("weight = 1\n", ""), "source 'web' has no weight, but others have"),
        (("min_words = 30", "gopher_quality = {min_word = 30}"), "has 'min_word', which is no setting.*'min_words'"),
    ],
)
def test_a_wrong_toml_names_what_is_wrong(raw, change, message):
    (raw / "corpus.toml").write_text(TOML.replace(*change, 1))
    with pytest.raises(InputError, match=message):
        read_config(Path("corpus.toml"))


def test_a_setting_of_a_rule_stands_in_its_table_or_beside(raw):
    (raw / "nested.toml").write_text(TOML.replace("min_words = 30", "gopher_quality = {min_words = 30}"))
    beside, nested = (read_config(raw / name) for name in ("corpus.toml", "nested.toml"))
    assert beside == nested
    assert beside.stages["clean"].gopher_quality.min_words == 30
    assert beside.stages["clean"].rules == "gopher_quality, gopher_repetition"
    assert list(beside.stages) == ["extract", "clean", "dedup", "decontaminate", "split", "shards"]


def test_sources_that_cannot_be_used(raw):
    (raw / "corpus.toml").write_text(TOML.replace('against = "questions.jsonl"', ""))
    with pytest.raises(InputError, match="against names no file"):
        build(read_config(raw / "corpus.toml"), raw / "out", progress=False)
    assert not (raw / "out").exists()  # found out before anything is read
    with pytest.raises(InputError, match="there is no source"):
        Config(())
    with pytest.raises(InputError, match="there is no file or folder nowhere"):
        build(Config((Source("nowhere"),)), raw / "out", progress=False)
    shutil.rmtree(raw / "raw" / "books")
    (raw / "raw" / "books").mkdir()
    with pytest.raises(InputError, match="has no file"):
        build(Config((Source("raw/books"),)), raw / "out", progress=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("corpus.toml raw", "corpus.toml says all sources; give it alone"),
        ("corpus.toml --vocab-size 5000", "--vocab-size is for a build without a .toml; write it into corpus.toml"),
        ("raw --skip claen", "--skip has 'claen'; did you mean 'clean'?"),
        ("raw --processes 0", "processes is 0; give 1 to 256"),
        ("missing.toml", "missing.toml cannot be read"),
    ],
)
def test_options_that_cannot_be_used(raw, capsys, words, message):
    with pytest.raises(SystemExit):
        main(["data", "build", *words.split(), "--out", "corpus"])
    assert message in capsys.readouterr().err
    assert not (raw / "corpus").exists()
