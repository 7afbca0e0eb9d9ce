"""Languages are told apart; what is in none, or in too little text, is not taken for one with certainty."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("py3langid")

from minillm.corpus.document import Document
from minillm.corpus.rules.cleaning import Clean, clean_document
from minillm.corpus.rules.language import NONE, Language, identify
from minillm.errors import InputError

ENGLISH = "The harbour lies on the north side of the bay, where the wind seldom reaches the smaller boats."
GERMAN = "Der Hafen liegt an der Nordseite der Bucht, wo der Wind die kleineren Boote selten erreicht."
OTHERS = {
    "fr": "Le port se trouve du côté nord de la baie, où le vent atteint rarement les petits bateaux.",
    "es": "El puerto está en el lado norte de la bahía, donde el viento rara vez llega a los barcos pequeños.",
    "nl": "De haven ligt aan de noordkant van de baai, waar de wind de kleinere boten zelden bereikt.",
    "ru": "Гавань лежит на северной стороне залива, где ветер редко достигает небольших лодок.",
    "zh": "港口位于海湾的北侧，风很少吹到那里的小船。",  # noqa: RUF001
}
SOUP = [
    "x[3] = f(7); for (i = 0; i < n; ++i) { a[i] += b[i] * c[i]; }\n" * 20,
    "12 34 55 8383 4.33 1,222 99 03 22 77 4.5e-7\n" * 20,
    "0x3f 0xa1 0x00 0xff 0x1c 0x7e 0x80 0x99\n" * 20,
    "|---|---|\n| 1 | 2 |\n" * 20,
    "qX7 zzk 9pL_w v03 jJq-8 kkR t1t\n" * 20,
]


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (GERMAN, "de"), *((t, n) for n, t in OTHERS.items())])
def test_a_sentence_is_enough(text: str, language: str) -> None:
    found, score = identify(text)
    assert found == language
    assert 0.85 < score <= 1
    document = clean_document(Document(text, "a:0"), Clean(rules="language"))
    assert document.language == language
    assert document.info["language_score"] == score
    assert (document.dropped is None) == (language in ("en", "de"))


@pytest.mark.parametrize("text", SOUP)
def test_numbers_and_code_are_certainly_in_no_language(text: str) -> None:
    language, score = identify(text)
    assert language == NONE or score < 0.65
    found = clean_document(Document(text, "a:0"), Clean(rules="language"))
    assert found.rule == "language"
    assert found.info == {"language_score": score}


@pytest.mark.parametrize("text", ["", " ", "12 34", "🙂🙂🙂", "\x00", "...", "\ud800"])
def test_a_text_without_letters_is_in_no_language(text: str) -> None:
    assert identify(text) == ("zxx", 0.0)


def test_a_long_text_is_judged_by_its_beginning_and_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    assert identify(GERMAN * 100)[0] == "de"
    assert identify("\n".join([ENGLISH * 3, *[GERMAN * 3] * 9])) != identify(GERMAN * 30)
    assert identify(GERMAN * 100 + ENGLISH * 20)[0] == "de"
    read = " ".join(map(str, range(2000)))
    monkeypatch.setattr("minillm.corpus.rules.language._identifier", lambda: reader)
    reader = SimpleNamespace(classify=lambda sample: (sample, 0.5))
    begin, middle = identify("a " + read)[0].split("\n")
    assert begin == ("a " + read)[:250]
    assert middle in read[len(read) // 2 - 9 :][:270]
    assert len(middle) == 250


def test_the_wanted_languages_are_an_option() -> None:
    options = Clean(rules="language", language=Language(languages="fr"))
    assert clean_document(Document(OTHERS["fr"], "a:0"), options).dropped is None
    assert clean_document(Document(GERMAN, "a:0"), options).dropped == "language: de is the language, not fr"
    assert Language(languages="en,de") == Language(languages=" en de ") == Language()
    with pytest.raises(InputError, match="Language: languages is empty"):
        Language(languages="")
