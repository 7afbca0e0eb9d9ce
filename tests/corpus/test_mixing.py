"""Sources are mixed by weight and epochs, in one seeded order that every run has."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from minillm.corpus import mixing
from minillm.corpus import stage as stages
from minillm.corpus.document import Document, open_lines, read_documents
from minillm.corpus.mixing import Mixture, epochs_of, mix
from minillm.errors import InputError

pytest.importorskip("zstandard")
COUNTS = {"books": 400, "web": 900, "code": 250}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(stages, "CHUNK_BYTES", 6000)
    monkeypatch.setattr(mixing, "CHUNK_BYTES", 6000)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    path = tmp_path / "train.jsonl.zst"
    with open_lines(path, "wb") as lines:
        for source, count in COUNTS.items():
            for number in range(count):
                text = "ä" * int(rng.integers(1, 60))
                dropped = "rule: 1" if number == 5 else None
                lines.write(Document(text, f"{source}:{number}", source, dropped=dropped).to_line())
    return path


def mixed(corpus: Path, mixture: Mixture, name: str = "mixed", processes: int = 1) -> list[Document]:
    out = corpus.parent / name / "mixed.jsonl.zst"
    mix([corpus], out, mixture, processes, progress=False)
    assert sorted(path.name for path in out.parent.iterdir()) == ["mix.json", "mixed.jsonl.zst"]
    return list(read_documents(out))


def measured(documents: list[Document]) -> dict[str, int]:
    """Bytes of text by source."""
    sizes: Counter = Counter()
    for document in documents:
        sizes[document.source] += len(document.text.encode())
    return sizes


@pytest.mark.parametrize(
    ("weights", "epochs"),
    [({"books": 5.0, "web": 3.0, "code": 2.0}, {}), ({"books": 1.0, "web": 1.0, "code": 8.0}, {"code": 6.0})],
)
def test_weights_are_shares_of_the_bytes_but_for_chance(corpus, weights, epochs):
    found = mixed(corpus, Mixture(weights, epochs))
    sizes: dict[str, list[int]] = {source: [] for source in COUNTS}
    for document in read_documents(corpus):
        if document.dropped is None:
            sizes[document.source].append(len(document.text.encode()))
    total = min(epochs.get(source, 1) * sum(sizes[source]) / weights[source] for source in COUNTS)
    bound = 0.0
    for source, of_source in sizes.items():
        times = total * weights[source] / sum(of_source)
        chance = times % 1  # of one copy more
        deviation = math.sqrt(chance * (1 - chance) * sum(size**2 for size in of_source))
        assert abs(measured(found)[source] - total * weights[source]) <= 4 * deviation + 1, source
        assert max(Counter(one.id for one in found if one.source == source).values()) <= math.ceil(times)
        bound += 4 * deviation / (total * sum(weights.values()))
    for source, weight in weights.items():
        share = measured(found)[source] / sum(measured(found).values())
        assert abs(share - weight / sum(weights.values())) <= bound < 0.15


def test_the_largest_mixture_with_these_shares_uses_one_source_up(corpus):
    sizes = {"books": 100, "web": 1000, "code": 50}
    epochs = epochs_of(sizes, Mixture({"books": 1, "web": 1, "code": 2}, {"code": 3.0, "books": 2.0}))
    assert epochs == {"books": 0.75, "web": 0.075, "code": 3.0}
    assert epochs_of(sizes, Mixture({}, {"code": 1.5})) == {"books": 1.0, "web": 1.0, "code": 1.5}


def test_epochs_repeat_whole_documents(corpus):
    found = Counter(document.id for document in mixed(corpus, Mixture({}, {"web": 1.5, "code": 3.0})))
    assert "web:5" not in found  # a dropped one
    by_source = {name: [found[f"{name}:{n}"] for n in range(count) if n != 5] for name, count in COUNTS.items()}
    assert set(by_source["books"]) == {1}
    assert set(by_source["code"]) == {3}
    assert set(by_source["web"]) == {1, 2}
    assert abs(by_source["web"].count(2) - 899 / 2) <= 4 * math.sqrt(899 / 4)
    again = Counter(document.id for document in mixed(corpus, Mixture({}, {"web": 1.5}), "again"))
    assert all(again[f"web:{n}"] == found[f"web:{n}"] for n in range(900))  # by hash: whatever the others do


def test_the_order_is_the_same_in_every_run_and_another_for_another_seed(corpus):
    mixture = Mixture({"books": 1, "web": 1, "code": 1}, {}, seed=4)
    one = mixed(corpus, mixture, "one")
    mixed(corpus, mixture, "two", processes=2)
    first, second = (corpus.parent / name / "mixed.jsonl.zst" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    other = mixed(corpus, Mixture(mixture.weights, {}, seed=5), "other")
    assert [document.id for document in other] != [document.id for document in one]


def test_the_order_is_random_over_the_whole_mixture(corpus):
    found = mixed(corpus, Mixture({}, {}))
    places = {name: [i for i, one in enumerate(found) if one.source == name] for name in COUNTS}
    for name, of_source in places.items():
        middle = np.mean(of_source) / len(found)
        assert abs(middle - 0.5) < 4 * math.sqrt(1 / 12 / len(of_source)), name
    numbers = [int(one.id.partition(":")[2]) for one in found if one.source == "web"]
    assert abs(np.corrcoef(numbers, np.arange(len(numbers)))[0, 1]) < 0.15


def test_documents_stay_as_they_are(corpus):
    before = {one.id: one for one in read_documents(corpus) if one.dropped is None}
    assert {one.id: one for one in mixed(corpus, Mixture({}, {}))} == before


def test_a_mixture_that_is_stopped_goes_on(corpus, monkeypatch):
    mixture = Mixture({}, {"web": 2.0})
    mixed(corpus, mixture, "one")
    append, calls = mixing.append, []

    def stopping(journal, done):
        calls.append(done)
        if len(calls) == 4:
            raise KeyboardInterrupt
        append(journal, done)

    monkeypatch.setattr(mixing, "append", stopping)
    with pytest.raises(KeyboardInterrupt):
        mixed(corpus, mixture, "two")
    mixed(corpus, mixture, "two")
    first, second = (corpus.parent / name / "mixed.jsonl.zst" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    assert len(calls) < 2 * len(range(0, first.stat().st_size, 6000)) + 40


def test_refusals(corpus):
    with pytest.raises(
        InputError, match="no document that was kept is of source 'bokks', but of books, web, code; leave"
    ):
        mixed(corpus, Mixture({"bokks": 1, "web": 1, "code": 1, "books": 1}, {}))
    with pytest.raises(InputError, match="source 'code' has no weight, but others have"):
        mixed(corpus, Mixture({"books": 1, "web": 1}, {}))
    with pytest.raises(InputError, match="the weight of source 'books' is 0; give a number above 0"):
        Mixture({"books": 0}, {})
    with pytest.raises(InputError, match="the epochs of source 'books' is nan"):
        Mixture({}, {"books": float("nan")})
