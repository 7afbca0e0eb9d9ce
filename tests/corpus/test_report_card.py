"""The data card: its numbers are those of an independent count, whatever the order of processes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm.corpus.document import Document
from minillm.corpus.report import report
from minillm.corpus.report.counts import NAMES, OTHERS, CountChunk, Counts, Settings, domain_of, reason_of
from minillm.corpus.report.readability import reading_ease
from minillm.corpus.rules.word_lists import groups
from minillm.errors import InputError
from minillm.tokenizers import BPETokenizer, CharacterTokenizer
from tests.corpus.report_corpus import drawn_documents, whole_corpus, write_documents, write_record

DOCUMENTS = drawn_documents()
KEPT = [document for document in DOCUMENTS if not document.dropped]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_corpus(tmp_path_factory.mktemp("card") / "corpus", DOCUMENTS)


@pytest.fixture(scope="module")
def card(folder: Path) -> dict[str, Any]:
    return json.loads(report(folder).with_suffix(".json").read_text())


def rows(table: list[dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    found = {row[key]: row for row in table}
    assert len(found) == len(table)
    return found


def count(documents: list[Document]) -> dict[str, int]:
    return {
        "documents": len(documents),
        "characters": sum(len(one.text) for one in documents),
        "words": sum(len(one.text.split()) for one in documents),
        "bytes": sum(len(one.text.encode()) for one in documents),
    }


def having(row: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in expected}


# --- how much ------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_an_independent_count(card: dict[str, Any], folder: Path) -> None:
    composition = card["composition"]
    tokenizer = BPETokenizer.load(folder / "tokenizer")
    tokens = sum(len(tokenizer.encode(one.text)) for one in KEPT)
    assert composition["kept"] == {**count(KEPT), "tokens": tokens}
    assert composition["dropped"] == count([one for one in DOCUMENTS if one.dropped])
    assert (composition["documents_read"], composition["tokens_how"]) == (len(DOCUMENTS), "counted")
    assert 0 < len(KEPT) < len(DOCUMENTS)


@pytest.mark.parametrize(("table", "key"), [("sources", "source"), ("languages", "language")])
def test_every_source_and_language_has_its_numbers(card: dict[str, Any], folder: Path, table: str, key: str) -> None:
    tokenizer = BPETokenizer.load(folder / "tokenizer")
    found = rows(card["composition"][table], key)
    assert found.keys() == {getattr(one, key) or "" for one in DOCUMENTS}
    for name, row in found.items():
        read = [one for one in DOCUMENTS if (getattr(one, key) or "") == name]
        kept = [one for one in read if not one.dropped]
        expected = count(kept)
        assert having(row, expected) == expected
        assert row["documents_read"] == len(read)
        assert row["share_kept"] == pytest.approx(len(kept) / len(read), rel=1e-5)
        tokens = sum(len(tokenizer.encode(one.text)) for one in kept)
        assert row["tokens"] == tokens
        assert row["tokens_a_word"] == pytest.approx(tokens / expected["words"], rel=1e-5)
        assert row["bytes_a_token"] == pytest.approx(expected["bytes"] / tokens, rel=1e-5)
        assert row["unknown_share"] == 0
    words = [row["words"] for row in card["composition"][table]]
    assert words == sorted(words, reverse=True)


def test_lengths(card: dict[str, Any]) -> None:
    lengths = card["composition"]["lengths"]
    words = [len(one.text.split()) for one in KEPT]
    for row in lengths["bins"]:
        high = row["to"] or 10**9
        assert row["documents"] == sum(row["from"] <= n < high for n in words)
        dropped = [len(one.text.split()) for one in DOCUMENTS if one.dropped]
        assert row["dropped_documents"] == sum(row["from"] <= n < high for n in dropped)
    assert sum(row["documents"] for row in lengths["bins"]) == len(KEPT)
    for name, share in ("lower_quartile", 0.25), ("median", 0.5), ("upper_quartile", 0.75):
        assert lengths[name] == np.quantile(words, share, method="inverted_cdf")


def test_splits_have_their_documents_and_the_tokens_of_their_shards(card: dict[str, Any], folder: Path) -> None:
    tokenizer = BPETokenizer.load(folder / "tokenizer")
    for name, part in ("train", KEPT[10:]), ("validation", KEPT[:10]):
        tokens = sum(len(tokenizer.encode(one.text)) for one in part)
        assert rows(card["composition"]["splits"], "split")[name] == {"split": name, **count(part), "tokens": tokens}
    assert len(list(folder.glob("train_*.bin"))) > 1


def test_without_a_tokenizer_tokens_are_estimated_and_marked(tmp_path: Path) -> None:
    write_documents(tmp_path / "clean.jsonl", DOCUMENTS)
    card = json.loads(report(tmp_path).with_suffix(".json").read_text())
    assert card["composition"]["tokens_how"] == "estimated"
    assert card["composition"]["kept"]["tokens"] == round(count(KEPT)["bytes"] / 4)
    assert card["vocabulary"] is None
    assert card["composition"]["sources"][0]["tokens_a_word"] is None


# --- what was dropped ----------------------------------------------------------------------------------------------


def test_every_rule_has_its_documents_reasons_and_samples(card: dict[str, Any]) -> None:
    found = rows(card["preprocessing"]["rules"], "rule")
    by_rule: dict[str, list[Document]] = defaultdict(list)
    for document in DOCUMENTS:
        if document.dropped:
            by_rule[document.dropped.split(":")[0]].append(document)
    assert found.keys() == by_rule.keys()
    assert len(found) == 4
    characters = sum(len(one.text) for one in DOCUMENTS)
    texts = {document.id: document for document in DOCUMENTS}
    for rule, dropped in by_rule.items():
        row, expected = found[rule], count(dropped)
        assert having(row, expected) == expected
        assert row["share_of_documents"] == pytest.approx(len(dropped) / len(DOCUMENTS), rel=1e-5)
        assert row["share_of_characters"] == pytest.approx(expected["characters"] / characters, rel=1e-5)
        [reason] = row["reasons"]
        assert reason["documents"] == len(dropped)
        assert len(row["samples"]) == min(5, len(dropped))
        for sample in row["samples"]:
            document = texts[sample["id"]]
            assert sample["why"] == document.dropped
            assert document.text == sample["text"] + document.text[600:]
            assert sample["characters_left_out"] == max(0, len(document.text) - 600)
            assert (sample["source"], sample["url"]) == (document.source, document.info.get("url"))
    reasons = {row["reasons"][0]["reason"] for row in found.values()}
    assert reasons >= {"# words, under #", "Jaccard # to another document"}


def test_edits_are_those_of_the_kept_documents(card: dict[str, Any]) -> None:
    edited = [one for one in KEPT if "lines_removed" in one.info]
    assert edited
    assert card["preprocessing"]["edits"] == [
        {"edit": "lines_removed", "what": "no end", "documents": len(edited), "times": 2 * len(edited)},
        {"edit": "lines_removed", "what": "javascript", "documents": len(edited), "times": len(edited)},
        {"edit": "removed_lines", "what": "", "documents": len(edited), "times": 3 * len(edited)},
    ]


def test_clusters(card: dict[str, Any]) -> None:
    found = card["preprocessing"]["duplicates"]
    sizes = Counter(one.info["cluster"] for one in DOCUMENTS if "cluster" in one.info)
    assert found["clusters"] == len(sizes) > 5
    assert found["documents_in_clusters"] == sizes.total()
    for row in found["sizes"]:
        high = row["to"] or 10**9
        assert row["clusters"] == sum(row["from"] <= size < high for size in sizes.values())
    texts = {document.id: document.text for document in DOCUMENTS}
    for row in found["largest"]:
        assert row["documents"] == sizes[row["cluster"]]
        assert texts[row["cluster"]].startswith(row["first_words"])
        assert row["first_words"]
    assert found["largest"][0]["documents"] == max(sizes.values())
    assert (found["share_followed"], found["too_low_by"]) == (1, 0)
    assert len(found["examples"]) == 8
    for example in found["examples"]:
        first, *others = example["members"]
        assert first["why"] is None
        assert others
        assert all(other["why"].endswith(f" to {first['id']}") for other in others)


# --- tokens, readability, origin -----------------------------------------------------------------------------------


def test_vocabulary(card: dict[str, Any], folder: Path) -> None:
    tokenizer = BPETokenizer.load(folder / "tokenizer")
    seen = Counter(i for one in KEPT for i in tokenizer.encode(one.text))
    expected = {
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint(),
        "used": len(seen),
        "seldom": sum(times < 100 for times in seen.values()),
        "tokens": seen.total(),
        "unencodable": 0,
    }
    assert having(card["vocabulary"], expected) == expected
    assert card["vocabulary"]["share_used"] == pytest.approx(len(seen) / tokenizer.vocab_size, rel=1e-5)


def test_documents_that_a_tokenizer_cannot_encode_are_counted(tmp_path: Path) -> None:
    write_documents(tmp_path / "clean.jsonl", [Document("abc ab", "0"), Document("xyz", "1"), Document("a", "2")])
    CharacterTokenizer.train("abc ").save(tmp_path / "tokenizer")
    card = json.loads(report(tmp_path).with_suffix(".json").read_text())
    assert having(card["vocabulary"], {"tokens": 0, "unencodable": 0}) == {"tokens": 7, "unencodable": 1}
    assert card["vocabulary"]["tokens_a_word"] == pytest.approx(7 / 3, rel=1e-5)


def test_unknown_tokens_are_counted(tmp_path: Path) -> None:
    from minillm.tokenizers import WordPieceTokenizer

    tokenizer = WordPieceTokenizer.train("abc abd abc", 40)
    tokenizer.save(tmp_path / "tokenizer")
    write_documents(tmp_path / "clean.jsonl", [Document("abc Ж abc Ж", "0")])
    card = json.loads(report(tmp_path).with_suffix(".json").read_text())
    ids = tokenizer.encode("abc Ж abc Ж")
    assert ids.count(tokenizer.unk_id) == 2
    assert card["vocabulary"]["unknown_share"] == pytest.approx(2 / len(ids), rel=1e-5)


def test_readability(card: dict[str, Any]) -> None:
    scores: dict[str, list[int]] = defaultdict(list)
    for one in KEPT:
        if (score := reading_ease(one.text, one.language)) is not None:
            scores[one.language or ""].append(round(score))
    found = rows(card["readability"]["languages"], "language")
    assert found.keys() == scores.keys() == {"en", "de"}
    for language, values in scores.items():
        assert found[language]["documents"] == len(values) == sum(row["documents"] for row in found[language]["bins"])
        assert found[language]["mean"] == pytest.approx(np.mean(values), rel=1e-5)
        assert found[language]["median"] == np.quantile(values, 0.5, method="inverted_cdf")
    by_source = card["readability"]["sources"]
    assert sum(row["documents"] for row in by_source) == sum(map(len, scores.values()))


def test_domains_and_licences(card: dict[str, Any]) -> None:
    hosts = Counter(one.info["url"].split("/")[2].removeprefix("www.") for one in KEPT if "url" in one.info)
    domains = card["collection"]["domains"]
    assert {row["domain"]: row["documents"] for row in domains["top"]} == hosts
    assert (domains["different"], domains["without"]) == (len(hosts), len(KEPT) - hosts.total())
    licences = Counter(one.info["licence"] for one in KEPT if "licence" in one.info)
    found = card["composition"]["licences"]
    assert {row["licence"]: row["documents"] for row in found["top"]} == licences
    assert found["without"] == len(KEPT) - licences.total()


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("https://WWW.Example.org:80/x?y", "example.org"),
        ("http://user:secret@a.b.example/", "a.b.example"),
        ("javascript:alert(1)//a.example", ""),
        ("http://[", ""),
        ("", ""),
        (None, ""),
        ({"url": 1}, ""),
        ("//only.example", "only.example"),
        ("http://m\u00fcnchen.example/", "m\u00fcnchen.example"),
    ],
)
def test_the_domain_of_an_address(url: Any, domain: str) -> None:
    assert domain_of(url) == domain


# --- people --------------------------------------------------------------------------------------------------------


def test_words_for_groups_by_source_and_what_rules_do_to_them(card: dict[str, Any]) -> None:
    people = card["people"]
    found = rows(people["groups"], "group")
    assert found.keys() == set(groups().values())
    words = {term for term, group in groups().items() if group == "women"}

    def times(documents: list[Document]) -> int:
        return sum(word in words for one in documents for word in one.text.lower().split())

    women = found["women"]
    assert women["occurrences"] == times(KEPT) == sum(row["occurrences"] for row in women["terms"]) > 0
    assert women["per_million"] == pytest.approx(1e6 * times(KEPT) / count(KEPT)["words"], rel=1e-5)
    assert {row["term"] for row in women["terms"]} == {"women", "frau"}
    naming = [one for one in DOCUMENTS if times([one])]
    dropped = [one for one in naming if one.dropped]
    assert (women["documents"], women["dropped_documents"]) == (len(naming) - len(dropped), len(dropped))
    assert women["share_dropped"] == pytest.approx(len(dropped) / len(naming), rel=1e-5)
    by_rule = Counter(str(one.rule) for one in dropped)
    assert {row["rule"]: row["documents"] for row in women["dropped_by"]} == by_rule
    assert people["share_dropped"] == pytest.approx(1 - len(KEPT) / len(DOCUMENTS), rel=1e-5)
    for row in people["sources"]:
        if row["group"] == "women":
            kept = [one for one in KEPT if one.source == row["source"]]
            assert row["occurrences"] == times(kept)
            assert row["per_million"] == pytest.approx(1e6 * times(kept) / count(kept)["words"], rel=1e-5)


# --- enough to repeat it -------------------------------------------------------------------------------------------


def test_stages_stand_in_the_order_in_which_they_ran(card: dict[str, Any]) -> None:
    stages = card["preprocessing"]["stages"]
    assert [stage["stage"] for stage in stages] == ["extract", "dedup", "clean", "split"]
    assert stages[1]["settings"] == {"bands": 25, "rows": 8}
    assert stages[0]["inputs"] == [{"file": "raw.txt", "bytes": 10, "begins": "00ff"}]
    assert (stages[0]["problems"], stages[0]["first_problems"][0]) == (2, "raw/a.pdf: a PDF")
    assert {"rule": "kept", "documents": 3, "bytes": 80} in stages[0]["outcomes"]


def test_files_have_their_checksums(card: dict[str, Any], folder: Path) -> None:
    found = rows(card["files"], "file")
    assert {"clean.jsonl.gz", "train.jsonl.gz", "tokenizer/tokenizer.json", "train_00000.bin"} <= found.keys()
    for name, row in found.items():
        content = (folder / name).read_bytes()
        assert row == {"file": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_the_same_corpus_gives_the_same_bytes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [report(folder, tmp_path / f"{name}.html", processes) for name, processes in [("a", 1), ("b", 2), ("c", 1)]]
    assert len({page.read_bytes() for page in pages}) == 1
    assert len({page.with_suffix(".json").read_bytes() for page in pages}) == 1
    other = report(folder, tmp_path / "seed.html", seed=1).with_suffix(".json").read_text()
    assert (
        json.loads(other)["composition"]["samples"]
        != json.loads(pages[0].with_suffix(".json").read_text())["composition"]["samples"]
    )


def test_counts_do_not_depend_on_how_documents_are_divided(folder: Path) -> None:
    settings = Settings(folder / "tokenizer")
    whole = CountChunk(settings)(DOCUMENTS)
    vocabulary, whole.vocabulary = whole.vocabulary, None
    for size in (1, 37):
        merged = Counts(settings)
        for start in range(0, len(DOCUMENTS), size):
            merged.merge(CountChunk(settings)(DOCUMENTS[start : start + size]))
        np.testing.assert_array_equal(merged.vocabulary, vocabulary)
        merged.vocabulary = None
        assert merged == whole


def test_every_key_is_defined_and_every_definition_used(card: dict[str, Any]) -> None:
    opaque = {"settings", "inputs", "definitions"}

    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*(keys(one) for key, one in value.items() if key not in opaque))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    assert keys(card) == card["definitions"].keys()


# --- awkward folders and documents ---------------------------------------------------------------------------------


def test_a_folder_without_records_has_all_its_documents_counted(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", DOCUMENTS[:7])
    write_documents(tmp_path / "b.jsonl.gz", DOCUMENTS[7:20])
    write_documents(tmp_path / "validation.jsonl", DOCUMENTS[:3])
    card = json.loads(report(tmp_path).with_suffix(".json").read_text())
    assert card["composition"]["documents_read"] == 20
    assert [row["split"] for row in card["composition"]["splits"]] == ["validation"]


def test_the_bytes_may_be_those_of_zstandard(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    write_documents(tmp_path / "clean.jsonl.zst", DOCUMENTS)
    card = json.loads(report(tmp_path).with_suffix(".json").read_text())
    assert card["composition"]["documents_read"] == len(DOCUMENTS)


def test_no_document_and_one(tmp_path: Path) -> None:
    for documents in [], [Document("", "0")], [Document("", "0", dropped="gopher: 0 words")]:
        write_documents(tmp_path / "clean.jsonl", documents)
        card = json.loads(report(tmp_path).with_suffix(".json").read_text())
        assert card["composition"]["documents_read"] == len(documents)
        assert card["people"]["groups"][0]["per_million"] is None


def test_hostile_values_are_counted_like_others() -> None:
    documents = [
        Document(
            "a\ud800b \0", "\udfff", "__proto__", "constructor", "x" * 5000, {"url": 7, "cluster": 3, "licence": []}
        ),
        Document(
            "c", "1", dropped=":", info={"lines_removed": {"a": "b", "c": None}, "masked": [1], "removed_lines": "x"}
        ),
        Document(
            "d", "2", "y" * 10**6, dropped="", info={"url": "http://[::1", "licence": {"a": 1}, "duplicate_of": 5}
        ),
    ]
    counts = CountChunk(Settings())(documents)
    assert counts.sizes["all", "", False]["documents"] == 2
    assert counts.sizes["all", "", True]["documents"] == 1
    assert max(len(name) for _, name, _ in counts.sizes) < 120
    assert not counts.edits


def test_memory_is_bounded_where_names_are_not() -> None:
    many = [
        Document(
            "text", str(i), f"source {i}", f"language {i}", None if i % 2 else f"rule {i}: {i}", {"masked": {str(i): 1}}
        )
        for i in range(3 * NAMES)
    ]
    merged = Counts(Settings())
    for start in range(0, len(many), 500):
        merged.merge(CountChunk(Settings())(many[start : start + 500]))
    for kind in ("source", "language", "rule"):
        names = {name for one, name, _ in merged.sizes if one == kind}
        assert len(names) <= 2 * NAMES + 2
        total = sum(size["documents"] for (one, _, _), size in merged.sizes.items() if one == kind)
        assert total == len(many)
        assert OTHERS in names
    assert len(merged.samples) <= 2 * NAMES
    assert len(merged.edits) <= 2 * NAMES + 2


def test_reasons_lose_what_is_particular_to_a_document() -> None:
    info = {"duplicate_of": "a/b.txt:17"}
    assert reason_of(Document("", "0", dropped="near: Jaccard 0.91 to a/b.txt:17", info=info)) == (
        "Jaccard # to another document"
    )
    assert reason_of(Document("", "0", dropped="r: 1,234.5 of the words, over 0.2")) == "# of the words, over #"
    assert reason_of(Document("", "0", dropped="r")) == ""


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data report: .*nowhere is no folder; give the one that"):
        report(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"^data report: .* has no documents \(no \.jsonl.*\); give the folder"):
        report(tmp_path)
    write_documents(tmp_path / "clean.jsonl", DOCUMENTS[:1])
    with pytest.raises(InputError, match=r"^data report: there is no folder .*; make it, or choose another --out$"):
        report(tmp_path, tmp_path / "nowhere" / "card.html")
    with pytest.raises(InputError, match=r"^data report: --out is .*card\.json; give a name that ends in \.html"):
        report(tmp_path, tmp_path / "card.json")


def test_records_that_make_no_sense_are_passed_over(tmp_path: Path) -> None:
    write_documents(tmp_path / "clean.jsonl", DOCUMENTS[:5])
    (tmp_path / "a.json").write_text("[" * 100_000)
    (tmp_path / "b.json").write_text('{"stage": "x", "settings": []}')
    (tmp_path / "c.json").write_bytes(b"\xff")
    write_record(tmp_path, "dedup", ["clean.jsonl"], {})
    write_record(tmp_path, "clean", ["dedup.jsonl"], {})  # a circle
    card = json.loads(report(tmp_path).with_suffix(".json").read_text())
    assert {stage["stage"] for stage in card["preprocessing"]["stages"]} == {"clean", "dedup"}
