"""The quick measures give the same numbers as the plain formulation of their definitions."""

from __future__ import annotations

import random
import string
import unicodedata
from collections import Counter

import numpy as np
import pytest

from minillm.corpus.rules.gopher import GopherQuality, GopherRepetition, gopher_quality, gopher_repetition
from minillm.corpus.rules.ngrams import repeated_ngrams
from minillm.corpus.rules.page import LETTER, OTHER, Limits, Page, at_least, at_most, count_ngrams, duplicates
from minillm.errors import InputError

AWKWARD = [
    "",
    "a",
    "a a",
    "a a a a a a a a a a a a a a a a a a a a a a",
    "a b " * 40,
    "a b c d e " * 11 + "f",
    "a b c d e f g h i j " * 3,
    "\ud800 \udfff \ud800 \udfff",
    "e\u0301 é \u00a0 x\u3000y \x1c z \x85 w \u200b",
    "ä Ö ß 漢字 かな 𠀀𠀁 🙂🙂 ½ ² Ⅷ ٣ _ __ a_ -- … « »",
    "\x00\x01 \x7f word\x00",
    "one\n\n\ntwo\n\none\n \n two\n",
    "one two\n\n\n" * 9,
]


def random_texts() -> list[str]:
    """Texts of few different words, so that much is repeated, and some of them in lines."""
    random_ = random.Random(17)
    found = []
    for number in range(150):
        vocabulary = [
            "".join(random_.choices(string.ascii_letters + ".,-#…1", k=random_.randint(1, 8)))
            for _ in range(random_.choice([1, 2, 3, 8, 40, 400]))
        ]
        chosen = random_.choices(vocabulary, k=random_.choice([0, 1, 3, 10, 60, 300]))
        if number % 3 == 0 and chosen:  # a phrase that comes again and again
            phrase = random_.choices(vocabulary, k=random_.randint(2, 12))
            chosen = [word for one in chosen for word in ([one, *phrase] if random_.random() < 0.2 else [one])]
        found.append("".join(word + random_.choice([" ", " ", " ", "\n", "\n\n", "  "]) for word in chosen))
    return found


TEXTS = AWKWARD + random_texts()


def slow_repetition(text: str) -> list[float]:
    """Gopher's shares, word for word as the docstring of the rule defines them."""
    size = max(len(text), 1)
    shares: list[float] = []
    paragraphs = [part.removeprefix("\n") for part in text.strip().replace("\n\n", "\x01").split("\x01")]
    paragraphs = [part for part in paragraphs if part]
    for parts in (paragraphs, [line for line in text.split("\n") if line.strip()]):
        before: list[str] = []
        again = []
        for part in parts:
            (again if part in before else before).append(part)
        shares += [len(again) / max(len(parts), 1), sum(map(len, again)) / size]
    words = text.split()
    for n in range(2, 11):
        grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
        if n < 5:
            [(top, times)] = Counter(grams).most_common(1) or [((), 0)]
            shares.append(len(" ".join(top)) * times / size if times > 1 else 0)
            continue
        seen = set()
        characters = start = 0
        while start < len(grams):
            if grams[start] in seen:
                characters += len("".join(grams[start]))
                start += n
            else:
                seen.add(grams[start])
                start += 1
        shares.append(characters / size)
    return shares


@pytest.mark.parametrize("number", range(0, len(TEXTS), 6))
def test_repetition_is_what_its_definition_says(number: int) -> None:
    for text in TEXTS[number : number + 6]:
        found = [check.value for check in gopher_repetition(Page(text), GopherRepetition())]
        assert found == pytest.approx(slow_repetition(text), rel=1e-12), text


def test_texts_that_are_measured_together_do_not_mix() -> None:
    texts = ["a b c d e f", "", "a b c d e f", *TEXTS, "one", "one", *TEXTS[:20]]
    pages = [Page(text) for text in texts]
    count_ngrams(pages)
    for text, page in zip(texts, pages, strict=True):
        assert page.ngram_characters.tolist() == Page(text).ngram_characters.tolist()
    assert [page.ngram_characters.any() for page in pages[:3]] == [False] * 3
    count_ngrams([])


def test_the_random_texts_reach_every_threshold_of_repetition() -> None:
    values = np.array([[check.value for check in gopher_repetition(Page(text), GopherRepetition())] for text in TEXTS])
    assert (values.max(axis=0) > 0.3).all()
    assert (values.min(axis=0) == 0).all()


def test_an_ngram_is_found_only_where_it_stands_twice() -> None:
    ids = np.array([0, 1, 2, 3, 0, 1, 2, 4, 1, 2])
    found = {n: (places.tolist(), numbers.tolist()) for n, places, numbers in repeated_ngrams(ids, 4)}
    assert found[1][0] == [0, 1, 2, 4, 5, 6, 8, 9]
    assert found[2][0] == [0, 1, 4, 5, 8]
    assert found[2][1][1] == found[2][1][3] == found[2][1][4] != found[2][1][0] == found[2][1][2]
    assert found[3][0] == [0, 4]
    assert found[4] == ([], [])


def is_punctuation(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "PS" or category == "Cc"


def slow_quality(text: str) -> dict[str, float]:
    words = text.split()
    real = [word for word in words if any(not is_punctuation(one) for one in word)]
    lines = [line for line in text.split("\n") if line.strip()]
    return {
        "words": len(real),
        "characters a word": sum(map(len, real)) / max(len(real), 1),
        "signs # a word": text.count("#") / max(len(words), 1),
        "ellipses a word": (text.count("...") + text.count("…")) / max(len(words), 1),
        "of the lines begin with a bullet": sum(line.strip()[0] in "•-" for line in lines) / max(len(lines), 1),
        "of the lines end with an ellipsis": sum(
            line.strip().endswith("...") or line.strip()[-1] == "…" for line in lines
        )
        / max(len(lines), 1),
        "of the words have a letter": sum(any(map(str.isalpha, word)) for word in words) / max(len(words), 1),
    }


def test_quality_is_what_its_definition_says() -> None:
    for text in TEXTS:
        found = {check.what: check.value for check in gopher_quality(Page(text, "fr"), GopherQuality())}
        assert found == pytest.approx(slow_quality(text), rel=1e-12), text


def test_the_kinds_of_words_are_those_of_their_characters() -> None:
    for text in TEXTS:
        page = Page(text)
        assert len(page.word_kinds) == len(page.words) == len(page.word_lengths) == len(page.word_ids)
        letters = [any(map(str.isalpha, word)) for word in page.words]
        assert ((page.word_kinds & LETTER) > 0).tolist() == letters
        assert (page.word_kinds & OTHER > 0)[np.array(letters, bool)].all()
        assert [page.words[page.word_ids.tolist().index(one)] for one in page.word_ids] == page.words


@pytest.mark.parametrize("code", [9, 10, 0x1C, 0x85, 0xA0, 0x1680, 0x2003, 0x2028, 0x202F, 0x205F, 0x3000])
def test_every_whitespace_separates_words(code: int) -> None:
    assert len(Page(f"a{chr(code)}b").word_kinds) == 2


def test_duplicates_are_all_but_the_first() -> None:
    assert duplicates(["a", "bb", "a", "a", "bb", "c"]) == (3, 4)
    assert duplicates([]) == (0, 0)


def test_a_long_document_is_judged_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minillm.corpus.rules.page.MEASURED", 20)
    page = Page("one two three four five six")
    assert page.words == ["one", "two", "three", "four", "f"]
    assert page.lines == ["one two three four f"]
    assert page.text.endswith("six")


def test_a_reason_shows_more_digits_where_three_do_not_tell_value_and_bound_apart() -> None:
    assert at_most("of it", 0.30001, 0.3).reason == "0.30001 of it, over 0.3"
    assert at_most("of it", 0.3 + 1e-12, 0.3).reason == "0.30000000000099997 of it, over 0.3"
    assert at_least("words", 49, 50).reason == "49 words, under 50"
    assert at_least("of it", 0.3, 0.3).passed
    assert at_most("of it", 0.3, 0.3).passed


@pytest.mark.parametrize("bound", [-1, float("nan"), float("inf")])
def test_a_threshold_is_a_number_of_0_or_more(bound: float) -> None:
    with pytest.raises(InputError, match=r"GopherQuality: min_words is .*; give a number of 0 or more"):
        GopherQuality(min_words=bound)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="give a number of 0 or more"):
        GopherRepetition(max_top_2gram=bound)
    assert Limits() == Limits()
