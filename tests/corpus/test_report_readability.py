"""Reading ease: syllables as a dictionary counts them, and the formulas on texts that were counted by hand."""

from __future__ import annotations

import pytest

from minillm.corpus.report.readability import reading_ease, syllables

ENGLISH = {
    1: "the make walked makes strength through eye hmm cake blue whole",
    2: "table wanted boxes happy water people reader little houses",
    3: "beautiful banana remember families syllable",
    4: "dictionary information television",
}
GERMAN = {
    1: "haus baum Brief neu See",
    2: "Häuser schreiben Äpfel Liebe heute Leser",
    3: "Zeitungen Gebäude Theater",
    4: "Elefanten Universum",
    5: "Universität",
}


@pytest.mark.parametrize(("number", "words"), ENGLISH.items())
def test_english_syllables(number: int, words: str) -> None:
    assert {word: syllables(word, "en") for word in words.split()} == dict.fromkeys(words.split(), number)


@pytest.mark.parametrize(("number", "words"), GERMAN.items())
def test_german_syllables(number: int, words: str) -> None:
    assert {word: syllables(word, "de") for word in words.split()} == dict.fromkeys(words.split(), number)


def test_flesch_on_a_text_counted_by_hand() -> None:
    text = "The cat sat on the mat. The little dog was happy. " * 12  # 2 sentences, 11 words, 13 syllables
    assert reading_ease(text, "en") == pytest.approx(206.835 - 1.015 * 11 / 2 - 84.6 * 13 / 11)


def test_amstad_on_a_text_counted_by_hand() -> None:
    text = "Der Hund lief in das Haus. Die Katze schlief heute lange. " * 12  # 2 sentences, 11 words, 14 syllables
    assert reading_ease(text, "de") == pytest.approx(180 - 11 / 2 - 58.5 * 14 / 11)


def test_the_end_of_a_text_and_an_empty_line_end_a_sentence() -> None:
    words = "one two cat dog pig " * 10
    assert reading_ease(f"{words}\n\n{words}", "en") == reading_ease(f"{words}. {words}.", "en")
    assert reading_ease(f"{words}.\n \n{words}.", "en") == reading_ease(f"{words}. {words}.", "en")
    assert reading_ease(f"“{words.strip()}!” {words}", "en") == reading_ease(f"{words}. {words}", "en")
    assert reading_ease(f"{words} 3.14 {words}", "en") < reading_ease(f"{words}. {words}", "en")


@pytest.mark.parametrize(
    ("text", "language"), [("cat " * 99, "en"), ("cat " * 100, "fr"), ("cat " * 100, None), ("", "de")]
)
def test_there_is_no_score_for_what_the_formulas_do_not_fit(text: str, language: str | None) -> None:
    assert reading_ease(text, language) is None


@pytest.mark.parametrize("text", ["x" * 1_000_000, "\0" * 5000, "1 " * 5000, "ee" * 100 + " cat" * 3000, "-'" * 9000])
def test_awkward_texts_take_no_time(text: str) -> None:
    assert isinstance(reading_ease(text, "en"), float | None)


def test_easy_words_read_easier_than_long_ones() -> None:
    easy, hard = "The cat sat on the mat. " * 30, "Institutional considerations notwithstanding, representatives " * 40
    assert reading_ease(easy, "en") > 90 > 0 > reading_ease(hard, "en")
