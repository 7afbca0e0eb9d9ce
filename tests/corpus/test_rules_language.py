"""Languages are told apart; what is in none, or in too little text, is not taken for one with certainty."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("py3langid")

from minillm.corpus.document import Document
from minillm.corpus.rules.cleaning import Clean, CleanStage, clean_document
from minillm.corpus.rules.language import NONE, Language, _identifier, identify
from minillm.corpus.stage import run_stage
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
    found, score = identify([text])[0]
    assert found == language
    assert 0.85 < score <= 1
    document = clean_document(Document(text, "a:0"), Clean(rules="language"))
    assert document.language == language
    assert document.info["language_score"] == score
    assert (document.dropped is None) == (language in ("en", "de"))


@pytest.mark.parametrize("text", SOUP)
def test_numbers_and_code_are_certainly_in_no_language(text: str) -> None:
    language, score = identify([text])[0]
    assert language == NONE or score < 0.65
    found = clean_document(Document(text, "a:0"), Clean(rules="language"))
    assert found.rule == "language"
    assert found.info == {"language_score": score}


@pytest.mark.parametrize("text", ["", " ", "12 34", "🙂🙂🙂", "\x00", "...", "\ud800"])
def test_a_text_without_letters_is_in_no_language(text: str) -> None:
    assert identify([text]) == [("zxx", 0.0)]


def test_a_long_text_is_judged_by_its_beginning_and_middle() -> None:
    rest = "0123456789 " * 1000
    for language, score in identify([GERMAN * 6 + rest, rest[:5000] + GERMAN * 20 + rest[:5000]]):
        assert language == "de"
        assert score > 0.95
    assert identify([rest + GERMAN * 20])[0][1] < 0.5
    assert identify([GERMAN * 100 + ENGLISH * 20])[0][0] == "de"


def test_it_is_py3langid_with_many_texts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    monkeypatch.setattr("minillm.corpus.rules.langid.TOGETHER", 5)
    random_ = random.Random(3)
    texts = [
        ENGLISH,
        GERMAN,
        *OTHERS.values(),
        *(text[:500] for text in SOUP),
        "LOUD AND CLEAR",
        "e\u0301te\u0301",
        "x",
        "",
    ]
    texts += [text[: random_.randint(1, 60)] for text in texts[:7]]
    texts += ["".join(map(chr, random_.choices([*range(32, 600), 0xD800, 0x4E2D], k=80))) for _ in range(20)]
    random_.shuffle(texts)
    theirs = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    ours = _identifier()
    for text, probabilities in zip(texts, ours.probabilities(texts), strict=True):
        assert dict(zip(ours.names, probabilities, strict=True)) == pytest.approx(dict(theirs.rank(text)), abs=2e-3)
        [alone] = ours.probabilities([text])
        assert (alone == probabilities).all()  # the company of a text changes nothing


def test_the_stage_asks_for_many_documents_at_once_where_language_comes_first() -> None:
    documents = [Document(text, f"a:{number}") for number, text in enumerate([ENGLISH, *OTHERS.values(), GERMAN])]
    documents[2].dropped = "exact: as b:0"
    options = Clean(rules="language, pii")
    found = list(CleanStage(options).apply(documents))
    assert found == [one if one.dropped else clean_document(one, options) for one in documents]
    late = list(CleanStage(Clean(rules="pii, language")).apply(documents))
    assert [one.language for one in late] == [one.language for one in found]


def test_the_wanted_languages_are_an_option() -> None:
    options = Clean(rules="language", language=Language(languages="fr"))
    assert clean_document(Document(OTHERS["fr"], "a:0"), options).dropped is None
    assert clean_document(Document(GERMAN, "a:0"), options).dropped == "language: de is the language, not fr"
    assert Language(languages="en,de") == Language(languages=" en de ") == Language()
    with pytest.raises(InputError, match="Language: languages is empty"):
        Language(languages="")


@pytest.mark.parametrize("wrong", ["xx", "german", "EN", "en, deu"])
def test_a_language_that_nobody_can_find_is_refused(tmp_path: Path, wrong: str) -> None:
    """Every document would be dropped, and a person would look for the fault in the texts."""
    (tmp_path / "in.jsonl").write_bytes(Document(ENGLISH, "a:1").to_line())
    stage = CleanStage(Clean(rules="language", language=Language(languages=wrong)))
    with pytest.raises(InputError, match=f"clean: languages has '{wrong.split()[-1]}'.* give ISO 639-1 codes.* de, "):
        run_stage(stage, [tmp_path / "in.jsonl"], tmp_path / "out.jsonl", progress=False)
    run_stage(CleanStage(Clean(rules="c4")), [tmp_path / "in.jsonl"], tmp_path / "c4.jsonl", progress=False)


def test_a_probability_over_1_is_refused() -> None:
    Language(min_language_score=1)
    with pytest.raises(InputError, match="Language: min_language_score is 65; give a probability of at most 1"):
        Language(min_language_score=65)
