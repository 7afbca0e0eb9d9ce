"""The stage `dedup` from files to files: which documents stay, what is said of the others, and in which memory."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from minillm.corpus import stage as stages
from minillm.corpus.document import Document, read_documents
from minillm.corpus.duplicates import repeated, sketches, verdicts
from minillm.corpus.duplicates.lsh import candidate_probability
from minillm.corpus.duplicates.options import Dedup
from minillm.corpus.duplicates.stage import INDEX, DedupStage
from minillm.corpus.stage import run_stage
from minillm.errors import InputError
from tests.corpus.planted import PLANTED, planted_pair, within

PLAIN = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst"]


def words(count: int, seed: int) -> list[str]:
    return random.Random(seed).choices(PLAIN, k=count)


def write(path: Path, documents: list[Document]) -> Path:
    path.write_bytes(b"".join(document.to_line() for document in documents))
    return path


def numbered(texts: list[str]) -> list[Document]:
    return [Document(text, f"d{number}") for number, text in enumerate(texts)]


def deduplicated(folder: Path, documents: list[Document], processes: int = 1, **options) -> list[Document]:
    folder.mkdir(exist_ok=True)
    out = folder / "dedup.jsonl"
    run_stage(DedupStage(Dedup(**options)), [write(folder / "in.jsonl", documents)], out, processes, progress=False)
    return list(read_documents(out))


def test_equal_texts_and_equal_words_are_exact_duplicates(tmp_path):
    text = "The cat sat on the mat, and the dog lay beside it all day."
    found = deduplicated(
        tmp_path, numbered([text, "Another text of some length stands here.", text, text.upper() + "!"])
    )
    assert [document.dropped for document in found] == [
        None,
        None,
        "exact_duplicate: the same text as d0",
        "exact_duplicate: the same words as d0",
    ]
    assert [document.info.get("cluster") for document in found] == ["d0", None, "d0", "d0"]
    assert found[0].info == {"cluster": "d0"}
    assert found[3].info == {"cluster": "d0", "duplicate_of": "d0", "jaccard": 1.0}
    assert [document.text for document in found] == [text, found[1].text, text, text.upper() + "!"]


def test_documents_shorter_than_a_shingle_are_compared_exactly(tmp_path):
    texts = ["Yes, of course.", "yes of COURSE", "Yes, of", "?!", "...", "?!", "", "", "one two three four"]
    found = deduplicated(tmp_path, numbered(texts))
    duplicates = {document.id: document.info["duplicate_of"] for document in found if document.dropped}
    assert duplicates == {"d1": "d0", "d5": "d3", "d7": "d6"}


@pytest.mark.parametrize(("numbers", "duplicates"), [("zero", 2), ("kept", 0)])
def test_numbers_count_if_asked(tmp_path, numbers, duplicates):
    texts = ["12 + 7 = 19", "3 + 4 = 7", "Meeting on 3 May 2021 at 10.30, please come in time.", "Nothing."]
    texts.insert(3, texts[2].replace("3 May 2021", "14 May 2022"))
    found = deduplicated(tmp_path, numbered(texts), numbers=numbers)
    assert sum(document.dropped is not None for document in found) == duplicates


def test_near_duplicates_are_found_with_their_similarity(tmp_path):
    base = words(204, 1)
    near = [*words(20, 2), *base[20:]]  # 200 shingles, of which 180 are common: J = 180 / 220
    far = [*words(80, 3), *base[80:]]
    found = deduplicated(tmp_path, numbered([" ".join(text) for text in (base, far, near, words(204, 4))]))
    assert [document.rule for document in found] == [None, None, "near_duplicate", None]
    assert found[2].info["duplicate_of"] == "d0"
    assert found[2].info["jaccard"] == pytest.approx(180 / 220, abs=1e-4)
    assert found[2].dropped == "near_duplicate: Jaccard 0.8182 to d0"


def test_clusters_are_transitive_and_keep_their_first(tmp_path):
    """A ~ B ~ C, but A and C are under the threshold: one cluster, and C says its similarity to A."""
    a = words(204, 1)
    b = [*words(20, 2), *a[20:]]
    c = [*b[:-20], *words(20, 3)]
    texts = [" ".join(text) for text in (a, c, b)]
    found = deduplicated(tmp_path, numbered(texts))
    assert [document.info["cluster"] for document in found] == ["d0"] * 3
    assert [document.rule for document in found] == [None, "near_duplicate", "near_duplicate"]
    assert found[1].info["jaccard"] == pytest.approx(160 / 240, abs=1e-4)
    assert found[1].dropped == "near_duplicate: Jaccard 0.6667 to d0, through others between them"
    assert found[2].dropped == "near_duplicate: Jaccard 0.8182 to d0"
    alone = deduplicated(tmp_path / "alone", numbered(texts[:2]))
    assert [document.dropped for document in alone] == [None, None]


def test_an_exact_duplicate_of_a_near_duplicate_is_near(tmp_path):
    a = words(204, 1)
    b = " ".join([*words(20, 2), *a[20:]])
    found = deduplicated(tmp_path, numbered([" ".join(a), b, b.title()]))
    assert [document.info["jaccard"] for document in found[1:]] == [pytest.approx(180 / 220, abs=1e-4)] * 2
    assert [document.rule for document in found] == [None, "near_duplicate", "near_duplicate"]


def test_documents_that_are_dropped_already_are_neither_first_nor_changed(tmp_path):
    text = " ".join(words(50, 1))
    documents = numbered([text, text, text])
    documents[0].dropped = "gopher_quality: 3 words, under 50"
    found = deduplicated(tmp_path, documents)
    assert found[0] == documents[0]
    assert [document.info.get("duplicate_of") for document in found] == [None, None, "d1"]


def planted_corpus(count: int = 150) -> tuple[list[Document], dict[str, int]]:
    """Documents in a shuffled order: each third is alone, the others are pairs of J = 0.9 and J = 0.6."""
    documents = []
    for number in range(count):
        base = words(194, number)
        documents.append(Document(" ".join(base), f"base{number}"))
        if number % 3:
            changed = 10 if number % 3 == 1 else 48  # of 190 shingles: 180 / 200 and 142 / 238
            documents.append(Document(" ".join([*words(changed, 10_000 + number), *base[changed:]]), f"copy{number}"))
    random.Random(0).shuffle(documents)
    return documents, {document.id: place for place, document in enumerate(documents)}


def test_precision_and_recall_on_a_planted_corpus(tmp_path):
    documents, place = planted_corpus()
    found = deduplicated(tmp_path, documents)
    dropped = {document.id for document in found if document.dropped}
    expected = {max(f"base{n}", f"copy{n}", key=place.__getitem__) for n in range(150) if n % 3 == 1}
    assert dropped == expected  # each pair of J = 0.9 is a candidate with 1 - 1e-6


def test_recall_follows_the_curve_and_precision_is_one(tmp_path):
    """At each similarity the share of pairs that are found is that of the S-curve; none under the threshold is."""
    pairs, levels = 200, list(PLANTED)
    documents = [
        Document(text, f"{similarity}/{pair}/{side}")
        for level, similarity in enumerate(levels)
        for pair in range(pairs)
        for side, text in enumerate(planted_pair(similarity, 1000 * level + pair))
    ]
    random.Random(0).shuffle(documents)
    for bands, rows in ((25, 8), (6, 8)):
        found = deduplicated(tmp_path / str(bands), documents, bands=bands, rows=rows)
        dropped = [document for document in found if document.dropped]
        for document in dropped:  # the other one of its pair, of which it is the later
            similarity, pair, side = document.id.split("/")
            assert document.info["duplicate_of"] == f"{similarity}/{pair}/{1 - int(side)}"
            assert document.info["jaccard"] == float(similarity)
        for similarity in levels:
            count = sum(document.id.startswith(f"{similarity}/") for document in dropped)
            expected = candidate_probability(similarity, bands, rows) if similarity >= 0.8 else 0
            assert within(count, pairs, expected)
            assert similarity >= 0.8 or count == 0


def shingles(text: str) -> set[tuple[str, ...]]:
    found = text.split()
    return {tuple(found[place : place + 5]) for place in range(len(found) - 4)}


@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_are_those_of_all_pairs_by_sets(tmp_path, seed):
    """Against Python's sets, over all pairs. 100 bands of 2 rows miss a pair of J = 0.7 with 1e-29."""
    rng = random.Random(seed)
    texts = [" ".join(words(rng.choice((3, 4, 6, 60, 120)), seed * 1000 + number)) for number in range(40)]
    for number in range(120):
        old = rng.choice(texts).split()
        for _ in range(rng.randrange(3)):
            old[rng.randrange(len(old))] = rng.choice(PLAIN)
        start = rng.randrange(4)
        texts.append(" ".join(old[start:] + words(rng.randrange(3), 5000 + number)))
    rng.shuffle(texts)
    sets = [shingles(text) for text in texts]
    first = list(range(len(texts)))
    for other in range(len(texts)):
        for one in range(other):
            union = sets[one] | sets[other]
            alike = texts[one] == texts[other] or (union and len(sets[one] & sets[other]) / len(union) >= 0.7)
            if alike and first[one] != first[other]:
                low, high = sorted((first[one], first[other]))
                first = [low if value == high else value for value in first]
    found = deduplicated(tmp_path, numbered(texts), bands=100, rows=2, threshold=0.7)
    expected = [f"d{number}" if first.count(number) > 1 else None for number in first]
    assert [document.info.get("cluster") for document in found] == expected
    assert [document.dropped is not None for document in found] == [
        number != place for place, number in enumerate(first)
    ]
    for document, number, own in zip(found, first, sets, strict=True):
        if document.rule == "near_duplicate":
            union = own | sets[number]
            assert document.info["jaccard"] == pytest.approx(len(own & sets[number]) / len(union), abs=5e-5)
    assert 30 < sum(document.dropped is not None for document in found) < 130


def test_the_output_is_the_same_for_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "CHUNK_BYTES", 20_000)
    documents, _ = planted_corpus(60)
    options = {"lines": 1, "shortest": 5}
    outputs = []
    for processes in (1, 2):
        deduplicated(tmp_path / str(processes), documents, processes, **options)
        outputs.append((tmp_path / str(processes) / "dedup.jsonl").read_bytes())
    assert outputs[0] == outputs[1]
    assert b"duplicate_of" in outputs[0]


def test_a_run_that_was_killed_goes_on(tmp_path, monkeypatch):
    """Three chunks are sketched, then the run dies in the middle of a write; the next one begins with chunk 4."""
    monkeypatch.setattr(stages, "CHUNK_BYTES", 20_000)
    documents, _ = planted_corpus(60)
    expected = deduplicated(tmp_path / "whole", documents)
    folder = tmp_path / "killed"
    folder.mkdir()
    source = write(folder / "in.jsonl", documents)
    states = []

    def dies(index: Path, state: dict) -> None:
        write_state(index, state)
        states.append(state["chunks"])
        if state["chunks"] == 3:
            with open(index / "rows", "ab") as rows:
                rows.write(b"half of a row")
            raise KeyboardInterrupt

    write_state = sketches.write_state
    monkeypatch.setattr(sketches, "write_state", dies)
    with pytest.raises(KeyboardInterrupt):
        run_stage(DedupStage(Dedup()), [source], folder / "dedup.jsonl", progress=False)
    monkeypatch.setattr(
        sketches, "write_state", lambda index, state: (write_state(index, state), states.append(state["chunks"]))
    )
    run_stage(DedupStage(Dedup()), [source], folder / "dedup.jsonl", progress=False)
    assert states[:4] == [1, 2, 3, 4]
    assert list(read_documents(folder / "dedup.jsonl")) == expected
    chunks = states[-1]
    del states[:]
    state = {"identity": {}, "chunks": 2, "bytes": dict.fromkeys(sketches.FILES, 1 << 30)}  # the files are shorter
    write_state(folder / INDEX, state)
    sketches.write_sketches(Dedup(), [source], folder / INDEX, {}, 1)
    assert states == list(range(1, chunks + 1))


KILLED = """
import os, signal, sys
from pathlib import Path
from minillm.corpus import stage
from minillm.corpus.duplicates import Dedup, DedupStage, sketches

stage.CHUNK_BYTES = 20_000
left = int(sys.argv[2])
write_state = sketches.write_state

def dies(folder, state):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write_state(folder, state)

sketches.write_state = dies
folder = Path(sys.argv[1])
stage.run_stage(DedupStage(Dedup(lines=1)), [folder / "in.jsonl"], folder / "dedup.jsonl", progress=False)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_run_that_is_killed_ends_with_the_same_bytes(tmp_path, monkeypatch):
    """Each run is killed after it has written a chunk, and before it says so; the last one is not."""
    monkeypatch.setattr(stages, "CHUNK_BYTES", 20_000)
    documents, _ = planted_corpus(60)
    deduplicated(tmp_path / "whole", documents, lines=1)
    folder = tmp_path / "killed"
    folder.mkdir()
    write(folder / "in.jsonl", documents)
    codes = [
        subprocess.run([sys.executable, "-c", KILLED, str(folder), str(calls)], check=False).returncode
        for calls in (2, 1, 3, -1)
    ]
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert (folder / "dedup.jsonl").read_bytes() == (tmp_path / "whole" / "dedup.jsonl").read_bytes()


def test_verdicts_are_used_again_if_nothing_changed(tmp_path, monkeypatch):
    documents, _ = planted_corpus(30)
    stage = DedupStage(Dedup())
    source = write(tmp_path / "in.jsonl", documents)
    stage.prepare([source], tmp_path, 1)
    assert {path.name for path in (tmp_path / INDEX).iterdir()} >= {"verdicts", "ids", "done.json"}
    assert not (tmp_path / INDEX / "shingles").exists()

    def never(*arguments):
        raise AssertionError("sketched again")

    monkeypatch.setattr("minillm.corpus.duplicates.stage.write_sketches", never)
    DedupStage(Dedup()).prepare([source], tmp_path, 1)
    with pytest.raises(AssertionError, match="again"):
        DedupStage(Dedup(threshold=0.9)).prepare([source], tmp_path, 1)
    (tmp_path / INDEX / "verdicts").rename(tmp_path / "elsewhere")
    with pytest.raises(AssertionError, match="again"):
        DedupStage(Dedup()).prepare([source], tmp_path, 1)
    (tmp_path / "elsewhere").rename(tmp_path / INDEX / "verdicts")
    write(source, documents[:-1])
    with pytest.raises(AssertionError, match="again"):
        DedupStage(Dedup()).prepare([source], tmp_path, 1)


@pytest.mark.parametrize("content", ["", "[]", "{}", "half of {", '{"identity": 1}'])
def test_a_damaged_record_is_no_record(tmp_path, content):
    folder = tmp_path / INDEX
    folder.mkdir()
    for name in ("done.json", "rows", "shingles"):
        (folder / name).write_text(content, encoding="utf-8")
    found = deduplicated(tmp_path, numbered(["one two three", "one two three"]))
    assert [document.rule for document in found] == [None, "exact_duplicate"]


def test_ids_must_be_unique(tmp_path):
    documents = [*numbered(["one text", "two texts"]), Document("three texts", "d1")]
    with pytest.raises(InputError, match=r"1 ids stand for two documents or more, the first is 'd1'"):
        deduplicated(tmp_path, documents)


def test_an_empty_corpus_is_no_error(tmp_path):
    dropped = Document("text", "d0", dropped="c4: no sentence")
    assert deduplicated(tmp_path, [dropped], lines=1) == [dropped]


def test_awkward_texts_and_ids(tmp_path):
    texts = [
        "\x00" * 9,
        "\u2028",
        "a" * 200_000,
        "A" * 200_000,
        "世界" * 50,
        "世界" * 50 + "。",
    ]
    documents = [Document(text, f"ü/\u2028{number}\n") for number, text in enumerate(texts)]
    found = deduplicated(tmp_path, documents)
    assert [document.id for document in found] == [document.id for document in documents]
    assert [bool(document.dropped) for document in found] == [False, False, False, True, False, True]
    assert found[3].info["duplicate_of"] == documents[2].id


def test_many_equal_documents_are_one_cluster(tmp_path, monkeypatch):
    """Boilerplate that differs in one word shares most bands; its pairs are not all compared."""
    compared = []
    similarity = verdicts._similarity
    monkeypatch.setattr(verdicts, "_similarity", lambda *pair: compared.append(pair) or similarity(*pair))
    base = words(120, 0)
    texts = [" ".join([*base, PLAIN[number % len(PLAIN)], PLAIN[number // 7]]) for number in range(1500)]
    found = deduplicated(tmp_path, numbered(texts + texts[:500]))
    assert {document.info["cluster"] for document in found} == {"d0"}
    assert sum(document.dropped is None for document in found) == 1
    assert len(compared) < 2 * 1500 + 2000  # once to join a document, once to say its similarity


def test_memory_does_not_hold_the_texts(tmp_path):
    documents = numbered([" ".join(words(2000, seed)) for seed in range(600)])  # 4.8 MB of text, 4.8 MB of shingles
    source = write(tmp_path / "in.jsonl", documents)
    del documents
    stage = DedupStage(Dedup())
    folder = tmp_path / INDEX
    folder.mkdir()
    sketches.write_sketches(stage.options, [source], folder, {}, 1)
    tracemalloc.start()
    firsts = verdicts.find_clusters(sketches.Sketches(folder, 25), stage.options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (firsts == np.arange(600)).all()
    assert peak < 600 * 150 + 100_000


def test_half_of_a_surrogate_pair_is_a_character_like_others():
    parts = sketches.Sketcher(Dedup(lines=1))([Document("half \ud800 of a pair of characters", "\udfff")] * 2)
    rows = np.frombuffer(parts["rows"], sketches.row_type(25))
    assert rows[0] == rows[1]
    assert rows["shingles"].tolist() == [2, 2]


# --- lines and paragraphs ------------------------------------------------------------------------------------------

MENU = "Home | About us | Contact | All rights reserved"
NOTICE = "We use cookies to give you the best experience.\nBy going on you agree to this."


def test_lines_of_many_documents_stay_in_the_first_alone(tmp_path):
    texts = [f"{MENU}\nA text about {name}, long enough.\n{MENU.upper()}\nYes." for name in ("cats", "dogs", "birds")]
    texts.append("Nothing in common.\nYes.")
    found = deduplicated(tmp_path, numbered(texts), lines=2)
    assert found[0].text == texts[0]
    assert found[1].text == "A text about dogs, long enough.\nYes."
    assert found[1].info == {"removed_lines": 2, "removed_characters": 2 * len(MENU) + 2}
    assert found[3].text == texts[3]
    assert found[3].info == {}
    untouched = deduplicated(tmp_path / "more", numbered(texts), lines=3)
    assert [document.text for document in untouched] == texts


def test_paragraphs_of_many_documents(tmp_path):
    texts = [f"{NOTICE}\n\nA text about {name}.\n \n{MENU}" for name in ("cats and mice", "dogs and wolves")]
    found = deduplicated(tmp_path, numbered(texts), paragraphs=1)
    assert found[0].text == texts[0]
    assert found[1].text == "A text about dogs and wolves."
    assert found[1].info["removed_paragraphs"] == 2
    lines_too = deduplicated(tmp_path / "both", numbered(texts), paragraphs=1, lines=1)
    assert lines_too[1].text == found[1].text
    assert "removed_lines" not in lines_too[1].info  # what is gone with its paragraph is not counted twice


def test_a_document_without_a_line_left_is_dropped(tmp_path):
    texts = [f"{MENU}\nA text that stays.", f"{MENU}\n\n", f"A text with a line of its own.\n{MENU}"]
    found = deduplicated(tmp_path, numbered(texts), lines=2)
    assert found[1].dropped == "repeated_lines: nothing is left without 1 lines that other documents have"
    assert found[2].text == "A text with a line of its own."


def test_lines_of_dropped_documents_are_not_counted(tmp_path):
    text = " ".join(words(40, 1)) + "\n" + MENU
    documents = [*numbered([text, text, text]), Document(f"{MENU}\nanother text", "other")]
    documents.append(Document(f"{MENU}\nbad", "bad", dropped="rule: reason"))
    found = deduplicated(tmp_path, documents, lines=2)
    assert found[3].text == documents[3].text
    assert [document.rule for document in found] == [None, "exact_duplicate", "exact_duplicate", None, "rule"]


def test_lines_are_counted_in_parts(monkeypatch, rng):
    hashes = rng.integers(0, 60, 3000).astype(np.uint64) * np.uint64(0x0400_0000_0000_0002)
    counts = rng.multinomial(3000, np.full(500, 1 / 500))
    kept = rng.random(500) < 0.8
    owners = np.repeat(np.arange(500), counts)
    expected = {}
    for value in np.unique(hashes):
        documents = owners[(hashes == value) & kept[owners]]
        if len(documents) > 40:
            expected[int(value)] = int(documents.min())
    for part in (repeated.PART, 700):
        monkeypatch.setattr(repeated, "PART", part)
        found = list(repeated.frequent(hashes, counts, kept, Dedup(lines=40)))
        values = np.concatenate([values for values, _ in found])
        firsts = np.concatenate([firsts for _, firsts in found])
        assert dict(zip(values.tolist(), firsts.tolist(), strict=True)) == expected
        assert (np.diff(values.astype(object)) > 0).all()
    assert 5 < len(expected) < 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold is 0; give a share above 0"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"bands": 0}, "bands is 0; give 1 or more"),
        ({"numbers": "one"}, "numbers is 'one'; give zero or kept"),
        ({"lines": 0}, "lines is 0; give 1 or more"),
        ({"bands": 1000, "rows": 1000}, "1,000,000 minima"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        Dedup(**options)


def test_settings_are_json():
    assert json.loads(json.dumps(DedupStage(Dedup()).settings()))["bands"] == 25
