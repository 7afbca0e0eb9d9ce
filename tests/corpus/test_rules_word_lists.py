"""Words of the lists are counted by group; only vulgar words drop a document, and only above a rate."""

from __future__ import annotations

import pytest

from minillm.corpus.document import Document
from minillm.corpus.rules.cleaning import Clean, clean_document, explain
from minillm.corpus.rules.word_lists import TOXIC, count_groups, groups


def test_groups_are_counted_in_whole_words_of_either_language() -> None:
    text = "The WOMEN and the man met a Jewish refugee; Frauen, Männer und Muslime. Womenfolk, manly. He's non-binary."
    assert count_groups(text) == {
        "women": 2,
        "men": 3,
        "jews": 1,
        "muslims": 1,
        "immigrants and refugees": 1,
        "trans and nonbinary people": 1,
    }
    assert count_groups("") == {}


def test_every_list_has_its_groups_and_no_word_is_in_two() -> None:
    assert len(set(groups().values())) == 23
    assert len(groups()) > 250
    assert all(word == word.lower() and count_groups(word) == {group: 1} for word, group in groups().items())


def test_names_of_groups_never_drop_a_document() -> None:
    text = " ".join(word for word, group in groups().items() if group != TOXIC)
    found = clean_document(Document(text, "a:0"), Clean(rules="word_lists"))
    assert found.dropped is None
    assert sum(found.info["words_by_group"].values()) == len(text.split())


@pytest.mark.parametrize(
    ("vulgar", "words", "kept"), [(2, 10, True), (3, 10, False), (20, 1000, True), (21, 1000, False)]
)
def test_vulgar_words_drop_a_document_above_their_rate(vulgar: int, words: int, kept: bool) -> None:
    text = "Scheiße! " * vulgar + "harmless " * (words - vulgar)
    found = clean_document(Document(text, "a:0"), Clean(rules="word_lists"))
    assert (found.dropped is None) == kept
    assert found.info["words_by_group"] == {TOXIC: vulgar}
    assert kept or str(found.dropped).startswith("word_lists: 0.0")


def test_the_rule_is_off_by_default() -> None:
    assert "word_lists" not in Clean().rules
    assert explain("Scheiße! " * 100, Clean(rules="c4")).dropped is None
