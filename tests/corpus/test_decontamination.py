"""The stage `decontaminate`: planted copies of evaluation records are found, near misses stay, gaps are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from minillm.corpus.decontamination import Decontaminate, DecontaminateStage, pieces_around
from minillm.corpus.document import Document, read_documents
from minillm.corpus.evaluation_files import find_files, pairs_of, read_evaluated
from minillm.corpus.stage import run_stage
from minillm.errors import InputError

LONG = "When the old lighthouse keeper saw the storm, he lit the lamp and rang the bell for an hour."
QUESTION = "Which river flows through the town of Elmshorn in the north?"  # 11 words
ANSWER = "The Krückau, not far from the Elbe."  # 7 words
SHORT = ("What is it?", "A cat.")
FILLER = "Nothing here has anything to do with it, and so it goes on for some time before the end comes. " * 5


def squad(path: Path) -> Path:
    qas = [
        {"id": "q1", "question": QUESTION, "answers": [{"text": ANSWER, "answer_start": 0}]},
        {"id": "q2", "question": SHORT[0], "answers": [{"text": SHORT[1], "answer_start": 0}]},
    ]
    content = {"data": [{"paragraphs": [{"context": f"{ANSWER} {LONG}", "qas": qas}]}]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def records(path: Path, *found: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in found), encoding="utf-8")
    return path


def cleaned(folder: Path, texts: list[str], evaluation: Path, **options) -> list[Document]:
    documents = [Document(text, f"d{number}") for number, text in enumerate(texts)]
    source = folder / "in.jsonl"
    source.write_bytes(b"".join(document.to_line() for document in documents))
    stage = DecontaminateStage(Decontaminate(against=str(evaluation), **options))
    run_stage(stage, [source], folder / "decontaminate.jsonl", progress=False)
    return list(read_documents(folder / "decontaminate.jsonl"))


def test_planted_copies_are_found_and_near_misses_stay(tmp_path):
    words = LONG.split()
    texts = [
        f"{FILLER}{LONG} {FILLER}",  # whole
        f"{FILLER} {LONG.upper().replace(',', ' -- ').replace(' ', chr(10))}",  # case, punctuation, line ends
        " ".join(words[3:16]),  # 13 words
        " ".join(words[3:15]),  # 12 words
        " ".join([*words[:12], "suddenly", *words[12:]]),  # no 13 in a row: 12, and 7
        FILLER,
    ]
    found = cleaned(tmp_path, texts, records(tmp_path / "test.jsonl", {"text": LONG}))
    assert [document.rule for document in found] == ["contamination"] * 3 + [None] * 3
    assert [document.text for document in found] == texts
    assert found[0].info == {"contaminated_by": {"file": "test.jsonl", "record": "line 1"}}
    quote = "when the old lighthouse keeper saw the storm he lit the lamp and"
    assert found[0].dropped == f"contamination: 13 words of test.jsonl, line 1: {quote!r}"


def test_ngrams_span_question_and_answer(tmp_path):
    """Neither has 13 words; together they have 18."""
    texts = [
        f"Quiz! {QUESTION} {ANSWER} Next.",
        f"{QUESTION} Who knows?",
        f"{ANSWER} {QUESTION}",
        f"{QUESTION}: {ANSWER[:11]}",
    ]
    found = cleaned(tmp_path, texts, squad(tmp_path / "dev.json"))
    assert [document.rule for document in found] == ["contamination", None, None, "contamination"]
    assert found[0].info["contaminated_by"] == {"file": "dev.json", "record": "record q1"}


def test_what_cannot_be_checked_is_reported(tmp_path, capsys):
    text = f"{FILLER} {SHORT[0]} {SHORT[1]}"
    choices = {"question": "Is it so?", "choices": ["no", f"yes, because {LONG}"], "answer": 0}
    folder = tmp_path / "tests"
    folder.mkdir()
    squad(folder / "dev.json")
    records(folder / "choices.jsonl", choices, {"nothing": 1})
    found = cleaned(tmp_path, [text], folder)
    assert found[0].dropped is None  # it holds the pair, which is too short to be found: hence the report
    [of_choices, of_squad] = json.loads((tmp_path / "decontaminate.json").read_bytes())["settings"]["read"]
    assert (of_squad["records"], of_squad["unchecked_records"], of_squad["unchecked_answers"]) == (2, 1, 0)
    assert of_squad["examples"] == [{"record": "record q2", "question": SHORT[0], "answer": SHORT[1]}]
    assert (of_choices["unchecked_records"], of_choices["unchecked_answers"]) == (0, 1)
    assert of_choices["examples"][0]["answer"] == "no"
    assert of_choices["left_out"] == 1
    said = capsys.readouterr().err
    assert "1 records, and 0 answers of others" in said
    assert "record q2" in said
    assert "cannot be read, the first is line 2" in said


def test_shorter_ngrams_find_more(tmp_path):
    text = f"{FILLER} {SHORT[0]} {SHORT[1]}"
    evaluation = squad(tmp_path / "dev.json")
    assert cleaned(tmp_path, [text], evaluation, ngram=5)[0].rule == "contamination"


def test_numbers_are_compared_as_they_are(tmp_path):
    question = "If a train leaves at 9 and goes 120 km at 60 km an hour, when does it come?"
    found = cleaned(
        tmp_path,
        [question, question.replace("120", "180")],
        records(tmp_path / "sums.jsonl", {"prompt": question, "answer": "11"}),
    )
    assert [document.rule for document in found] == ["contamination", None]


def test_ngrams_do_not_run_from_one_document_into_the_next(tmp_path):
    words = LONG.split()
    halves = [" ".join(words[:8]), " ".join(words[8:]), "", LONG]
    found = cleaned(tmp_path, halves, records(tmp_path / "test.jsonl", {"text": LONG}))
    assert [bool(document.dropped) for document in found] == [False, False, False, True]


def test_records_of_an_evaluation_do_not_run_together_either(tmp_path):
    words = LONG.split()
    evaluation = records(
        tmp_path / "t.jsonl", {"text": " ".join(words[:8])}, {"text": " ".join(words[8:])}, {"text": FILLER}
    )
    assert cleaned(tmp_path, [LONG], evaluation)[0].dropped is None


def test_cut_takes_the_words_and_their_surroundings_out(tmp_path):
    before, after = "left " * 120, "right " * 120
    text = f"{before}{LONG} {after}"
    evaluation = records(tmp_path / "test.jsonl", {"text": LONG})
    [found] = cleaned(tmp_path, [text], evaluation, cut=200)
    start = text.index(LONG)
    end = start + len(LONG) - 1  # the last word ends before its full stop
    assert found.dropped is None
    assert found.text == f"{text[: start - 200].strip()}\n\n{text[end + 200 :].strip()}"
    assert found.info["cut_characters"] == len(text) - len(found.text)
    assert found.info["contaminated_by"]["record"] == "line 1"
    [short] = cleaned(tmp_path, [f"A few words. {LONG} And a few more."], evaluation, cut=200)
    assert short.dropped is not None
    assert short.dropped.endswith("cutting such words out leaves 0 pieces")
    [often] = cleaned(tmp_path, [f"{FILLER}{LONG} {FILLER}" * 12], evaluation, cut=10)
    assert often.dropped is not None
    assert often.dropped.endswith("leaves 13 pieces")


def test_cut_finds_its_place_behind_letters_that_change_their_number(tmp_path):
    before = "Straße é e\u0301 ﬁ 世界 " * 30
    text = f"{before}{LONG} {FILLER}"
    [found] = cleaned(tmp_path, [text], records(tmp_path / "test.jsonl", {"text": LONG}), cut=0)
    assert found.text == f"{before.strip()}\n\n{text[len(before) + len(LONG) - 1 :].strip()}"


def test_pieces_around_spans():
    text = "a" * 300 + "X" * 10 + "b" * 100 + "X" * 10 + "c" * 300
    assert pieces_around(text, [(300, 310), (410, 420)], 0) == ["a" * 300, "c" * 300]
    assert pieces_around(text, [(300, 310), (410, 420)], 90) == ["a" * 210, "c" * 210]
    assert pieces_around(text, [(300, 310), (305, 312)], 0)[1].startswith("b" * 98)
    assert pieces_around("a" * 250, [], 50) == ["a" * 250]
    assert pieces_around("a" * 250, [(5, 10)], 500) == []


def test_contexts_are_looked_for_when_asked(tmp_path):
    evaluation = squad(tmp_path / "dev.json")
    assert cleaned(tmp_path, [LONG], evaluation)[0].dropped is None
    assert cleaned(tmp_path, [LONG], evaluation, contexts=True)[0].rule == "contamination"


def test_documents_that_are_dropped_already_stay_as_they_are(tmp_path):
    stage = DecontaminateStage(Decontaminate(against=str(records(tmp_path / "t.jsonl", {"text": LONG}))))
    stage.prepare([], tmp_path, 1)
    dropped = Document(LONG, "d0", dropped="c4: reason")
    first, second = stage.apply([dropped, Document(LONG, "d1")])
    assert first == Document(LONG, "d0", dropped="c4: reason")
    assert second.rule == "contamination"


# --- evaluation files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": 1}, [("q", "a"), ("q", "b")]),
        ({"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}, [("q", "a")]),
        ({"ctx_a": "x", "ctx_b": "y", "ctx": "x y", "endings": ["e"], "label": "0"}, [("x\ny", "e")]),
        ({"ctx": "x y", "endings": ["e"]}, [("x y", "e")]),
        ({"prompt": "p", "answer": ["a", "b"]}, [("p", "a"), ("p", "b")]),
        ({"instruction": "i", "input": "n", "output": "o"}, [("i\nn", "o")]),
        ({"question": "q", "answers": {"text": ["a"], "answer_start": [3]}, "context": "c"}, [("q", "a")]),
        ({"question": "q", "answers": [{"text": "a", "answer_start": 3}]}, [("q", "a")]),
        ({"question": "q"}, [("q", "")]),
        ({"text": "t", "label": "pos"}, [("", "t")]),
        ({"source": "s", "target": "t"}, [("s", "t")]),
    ],
)
def test_pairs_of_records(record, expected):
    assert list(pairs_of(record)) == expected


def test_pairs_of_a_record_with_its_context():
    assert pairs_of({"question": "q", "context": "c"}, contexts=True) == (("q", ""), ("", "c"))
    with pytest.raises(InputError, match=r"no question, answer or text is among its fields \(label\)"):
        pairs_of({"label": 3})


def test_evaluation_files_of_every_kind(tmp_path):
    (tmp_path / "a.txt").write_text("plain text", encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps([{"text": "one"}, {"text": "two"}]), encoding="utf-8")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n'))
    (tmp_path / "picture.png").write_bytes(b"")
    squad(tmp_path / "d.json")
    files = find_files([tmp_path, tmp_path / "a.txt"])
    assert [file.name for file in files] == ["a.txt", "b.json", "c.jsonl.gz", "d.json"]
    assert [len(read_evaluated(file)[0]) for file in files] == [1, 2, 1, 2]
    assert read_evaluated(files[1])[0][1] == ("b.json", "record 2", (("", "two"),))
    assert len(find_files([str(tmp_path / "*.json")])) == 2
    for pattern, message in (
        (tmp_path / "none*", "is no file, folder or pattern"),
        (tmp_path / "picture.png", "ending"),
    ):
        with pytest.raises(InputError, match=message):
            find_files([pattern])


def test_options_are_checked():
    with pytest.raises(InputError, match="against names no file"):
        DecontaminateStage(Decontaminate())
    with pytest.raises(InputError, match="ngram is 0; give 1 or more"):
        Decontaminate(ngram=0)


def test_settings_change_with_the_evaluation_file(tmp_path):
    path = records(tmp_path / "t.jsonl", {"text": LONG})
    before = DecontaminateStage(Decontaminate(against=str(path))).settings()
    records(path, {"text": LONG.upper()})
    after = DecontaminateStage(Decontaminate(against=str(path))).settings()
    assert json.dumps(before) != json.dumps(after)
