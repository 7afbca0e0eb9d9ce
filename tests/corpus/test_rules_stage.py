"""The stage: which rule drops a document and why, what it writes down, and what `explain` shows of it."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.corpus.config import settings_from
from minillm.corpus.document import Document, read_documents
from minillm.corpus.rules import RULES, Clean, CleanStage, clean_document, explain
from minillm.corpus.rules.c4 import C4
from minillm.corpus.rules.gopher import GopherQuality
from minillm.corpus.rules.language import Language
from minillm.corpus.rules.pii import PII
from minillm.corpus.stage import run_stage
from minillm.errors import InputError
from minillm.options import help_lines, read

WITHOUT_LANGUAGE = "gopher_repetition, gopher_quality, c4, fineweb"
LINES = [
    "The harbour lies on the north side of the bay, where the wind seldom reaches the smaller boats.",
    "Every morning the fishermen bring what they have caught, and the market opens before the sun is up.",
    "People come from the villages in the hills with baskets, and they argue about prices.",
    "By noon the stalls are empty, so a stranger might think that nothing ever happens here!",
    "Yet each crate was carried up the stairs by hand, and someone kept a list of all of it.",
]
PROSE = "\n".join(LINES)


def cleaned(text: str, rules: str = WITHOUT_LANGUAGE, **options: Any) -> Document:
    return clean_document(Document(text, "a:0", "books", info={"url": "x"}), Clean(rules=rules, **options))


def test_prose_passes_and_keeps_what_was_known() -> None:
    assert cleaned(PROSE) == Document(PROSE, "a:0", "books", info={"url": "x"})


def test_the_first_rule_that_is_not_passed_gives_the_reason() -> None:
    reason = "gopher_repetition: 1.65 of the characters are in the most frequent 2-gram, over 0.2"
    assert cleaned("word " * 12).dropped == reason  # 11 times 9 of 60: they overlap
    text = " ".join(f"w{number}" for number in range(12))
    assert cleaned(text).dropped == "gopher_quality: 12 words, under 50"
    assert cleaned(text, "fineweb, gopher_quality").rule == "fineweb"
    assert cleaned(text, "gopher_quality, fineweb").rule == "gopher_quality"


def test_lines_that_are_no_prose_go_and_are_counted() -> None:
    text = f"Home\nAbout us\n{LINES[0]}\nWe use cookies to make this better.\n" + "\n".join(LINES[1:]) + "\nImprint"
    found = cleaned(text)
    assert found.dropped is None
    assert found.text == PROSE
    assert found.info == {"url": "x", "lines_removed": {"under 3 words": 3, "use cookies": 1}}


def test_a_dropped_document_keeps_its_text_for_the_report() -> None:
    text = "Home\nAbout\n" + LINES[0]
    found = cleaned(text, "c4")
    assert found.dropped == "c4: 1 sentences, under 5"
    assert found.text == text
    assert found.info["lines_removed"] == {"under 3 words": 2}


def test_what_an_earlier_stage_dropped_comes_back_as_it_is() -> None:
    before = Document("x", "a:0", dropped="exact: as b:0")
    kept = Document(PROSE, "a:1")
    found = list(CleanStage(Clean(rules=WITHOUT_LANGUAGE)).apply([before, kept, Document("x", "a:2")]))
    assert found[:2] == [before, kept]
    assert [document.id for document in found] == ["a:0", "a:1", "a:2"]
    assert found[2].rule == "gopher_quality"


def test_the_stage_goes_to_another_process_and_does_the_same_there() -> None:
    stage = CleanStage(Clean(rules="gopher_repetition, gopher_quality, word_lists, pii"))
    documents = [Document(text, "a:0") for text in (PROSE, "a@example.org " + PROSE, "x " * 99, "")]
    again = pickle.loads(pickle.dumps(stage))
    assert list(again.apply(documents)) == list(stage.apply(documents))
    assert documents[1].text.startswith("a@example.org")  # the documents that came in are not changed


def test_the_settings_name_every_threshold_that_counts() -> None:
    settings = CleanStage(Clean()).settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["rules"] == ["language", "gopher_repetition", "gopher_quality", "c4", "fineweb"]
    assert settings["gopher_quality"]["min_words"] == 50
    assert "pii" not in settings
    other = CleanStage(Clean(gopher_quality=GopherQuality(min_words=51))).settings()
    assert other != settings
    assert CleanStage(Clean(pii=PII(mask="ip"))).settings() == settings  # a rule that is off changes nothing
    assert len(CleanStage(Clean(rules="word_lists")).settings()["word_lists"]["lists"]) == 64


def test_rules_are_named_in_a_text() -> None:
    assert Clean(rules="c4, fineweb") == Clean(rules="c4,fineweb") == Clean(rules=" c4 fineweb ")
    with pytest.raises(InputError, match="there is no rule 'gopher_qualty'; did you mean 'gopher_quality'"):
        Clean(rules="c4, gopher_qualty")
    with pytest.raises(InputError, match="there is no rule 'x'; choose one of: language, gopher_repetition"):
        Clean(rules="x")
    with pytest.raises(InputError, match="the rule c4 stands twice"):
        Clean(rules="c4, c4")
    with pytest.raises(InputError, match="rules is empty"):
        Clean(rules="")


def test_every_threshold_is_an_option_with_a_text_and_a_name_of_its_own() -> None:
    found = read(Clean, "data clean", ["--rules", "c4", "--min-sentences", "2", "--end-punctuation", "--min-words=9"])
    assert found == Clean(
        rules="c4", c4=C4(end_punctuation=True, min_sentences=2), gopher_quality=GopherQuality(min_words=9)
    )
    thresholds = [field.name for name in RULES for field in dataclasses.fields(getattr(Clean(), name))]
    assert len(set(thresholds)) == len(thresholds)
    text = "\n".join(help_lines(Clean, "data clean"))
    for name in thresholds:
        assert f"--{name.replace('_', '-')}" in text
    with pytest.raises(InputError, match="data clean: --min-words is -1; give a number of 0 or more"):
        read(Clean, "data clean", ["--min-words", "-1"])


def test_thresholds_stand_in_the_configuration_of_a_build() -> None:
    table = {
        "rules": ["language", "gopher_quality"],
        "language": {"languages": ["fr", "en"]},
        "gopher_quality": {"min_words": 30, "max_word_length": 12},
    }
    found = settings_from(Clean, table, "[clean] of corpus.toml")
    assert found == Clean(
        rules="language, gopher_quality",
        language=Language(languages="fr, en"),
        gopher_quality=GopherQuality(min_words=30, max_word_length=12.0),
    )
    with pytest.raises(InputError, match=r"\[clean\] of corpus.toml, gopher_quality has 'min_word'.* 'min_words'"):
        settings_from(Clean, {"gopher_quality": {"min_word": 30}}, "[clean] of corpus.toml")


def test_every_rule_has_a_source_and_thresholds_in_its_docstring() -> None:
    for rule in RULES.values():
        text = (rule.checks or rule.edit).__doc__ or ""  # type: ignore[union-attr]
        assert "SOURCE" in text
        assert "THRESHOLD" in text


def test_explain_shows_every_check_also_behind_the_one_that_drops() -> None:
    text = "Home\n" + " ".join(f"w{number}" for number in range(12))
    found = explain(text, Clean(rules=WITHOUT_LANGUAGE))
    title, columns, rows = found.table("mine")
    assert title == "mine"
    assert all(len(row) == len(columns) for row in rows)
    assert ["gopher_quality", "words", "13", "at least 50", "dropped here"] in rows
    assert ["c4", "sentences", "1", "at least 5", "not passed"] in rows
    assert ["gopher_repetition", "of the lines are duplicates", "0", "at most 0.3", "passed"] in rows
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), key=WITHOUT_LANGUAGE.split(", ").index)
    assert sum(row[-1] == "dropped here" for row in rows) == 1
    assert list(found.sentences()) == ["removed (under 3 words): Home", "dropped by gopher_quality: 13 words, under 50"]
    assert found.dropped == cleaned(text).dropped


def test_explain_prints_no_control_characters_and_no_endless_line() -> None:
    found = explain(f"javascript \x1b[31m red\u202e and {'on ' * 100}", Clean(rules="c4"))
    [line, _] = found.sentences()
    assert line.isprintable()
    assert line.startswith("removed (javascript): javascript \ufffd[31m red\ufffd and on on")
    assert len(line) == len("removed (javascript): ") + 101


def test_explain_says_what_was_masked_and_that_a_document_is_kept() -> None:
    found = explain(f"Write to a@example.org and b@example.org.\n{PROSE}", Clean(rules=WITHOUT_LANGUAGE + ", pii"))
    assert list(found.sentences()) == ["masked: email, 2 times", "kept: every rule is passed"]
    assert found.text.startswith("Write to [EMAIL] and [EMAIL].")
    assert all(row[-1] == "passed" for row in found.table()[2])


def test_the_stage_writes_the_same_bytes_for_any_number_of_processes(tmp_path: Path) -> None:
    texts = [PROSE, f"Home\n{PROSE}", "one two three", "x" * 20_000] * 300  # two chunks
    lines = [Document(text, f"a:{number}").to_line() for number, text in enumerate(texts)]
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    outs = [tmp_path / f"{processes}.jsonl" for processes in (1, 2)]
    for processes, out in enumerate(outs, 1):
        stage = CleanStage(Clean(rules="gopher_quality, c4"))
        counts = run_stage(stage, [tmp_path / "in.jsonl"], out, processes=processes, progress=False)
        assert counts == {"kept": 600, "gopher_quality": 600}
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert [document.id for document in read_documents(outs[0])] == [f"a:{number}" for number in range(len(texts))]


PIECES = st.sampled_from(
    [*LINES, "\n", "\n\n", " ", "{", "a@example.org", "8.8.8.8", "javascript", "lorem ipsum", "[1]"]
)


@settings(max_examples=150)
@given(st.lists(st.one_of(PIECES, PIECES, st.text(max_size=30)), max_size=30).map(" ".join))
def test_any_text_gets_through_every_rule_and_is_explained_as_it_is_judged(text: str) -> None:
    options = Clean(rules="gopher_repetition, gopher_quality, c4, fineweb, word_lists, pii")
    document = Document(text, "a:0")
    found = clean_document(document, options)
    explanation = explain(text, options)
    assert found.dropped == explanation.dropped
    assert all(row for row in explanation.table()[2])
    assert list(explanation.sentences())
    assert document == Document(text, "a:0")
    assert Document.from_line(found.to_line()) == found
    if found.dropped is None:
        assert found.text == explanation.text
        assert len(found.text) <= len(text) + 10 * sum(found.info.get("masked", {}).values())
