"""The same decisions as datatrove, where both split words in the same way.

datatrove splits words and sentences with spaCy; here it is given our splitting, our punctuation and our ends of lines,
because the rules are compared and not these. Two differences are left, which the rules state: empty lines are no lines
for us (gopher_quality, fineweb), and an n-gram that stands once is not the most frequent one (gopher_repetition).
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minillm.corpus.rules.c4 import C4, SENTENCE_END
from minillm.corpus.rules.cleaning import RULES, Clean
from minillm.corpus.rules.fineweb import ENDS
from minillm.corpus.rules.page import Page

pytestmark = pytest.mark.oracle

REASONS = {  # datatrove's name of a reason, and what our check measures
    "dup_para_frac": "of the paragraphs are duplicates",
    "dup_para_char_frac": "of the characters are in duplicate paragraphs",
    "dup_line_frac": "of the lines are duplicates",
    "dup_line_char_frac": "of the characters are in duplicate lines",
    **{f"top_{n}_gram": f"of the characters are in the most frequent {n}-gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"of the characters are in repeated {n}-grams" for n in range(5, 11)},
    "gopher_short_doc": "words",
    "gopher_long_doc": "words",
    "gopher_below_avg_threshold": "characters a word",
    "gopher_above_avg_threshold": "characters a word",
    "gopher_too_many_hashes": "signs # a word",
    "gopher_too_many_ellipsis": "ellipses a word",
    "gopher_too_many_bullets": "of the lines begin with a bullet",
    "gopher_too_many_end_ellipsis": "of the lines end with an ellipsis",
    "gopher_below_alpha_threshold": "of the words have a letter",
    "gopher_enough_stop_words": "common words",
    "lorem_ipsum": 'times "lorem ipsum"',
    "curly_bracket": 'signs "{"',
    "too_few_sentences": "sentences",
    "line_punct_ratio": "of the lines end with punctuation",
    "short_line_ratio": "of the lines have 30 characters or fewer",
    "char_dup_ratio": "of the characters are in duplicate lines",
    "list_ratio": "line breaks a word",
}
FRAGMENTS = [
    *"word the of and with a { } javascript # ## ... … end. end! [12] 1234 56 -- • verylongwordverylongword".split(),
    *[
        "lorem ipsum",
        "privacy policy",
        '"quoted"',
        "- item",
        "x" * 1001,
        "\n",
        "\n",
        "\n\n",
        "one two three.",
        "Dr. No",
    ],
    *["A line of its own that comes again.\n", "This is a sentence of several words. "],
]


def texts() -> list[str]:
    """Pieces of Python's own texts and of this project, and mixtures of fragments that the rules look at."""
    import pydoc_data.topics

    found = [
        part for text in pydoc_data.topics.topics.values() for part in re.split(r"\n{3,}|(?<=\.)\n\n(?=[A-Z])", text)
    ]
    found += list(pydoc_data.topics.topics.values())
    for path in sorted(Path(__file__).parents[2].joinpath("minillm/guide").glob("*.md")):
        found.append(path.read_text(encoding="utf-8"))
    random_ = random.Random(5)
    for _ in range(400):
        chosen = random_.sample(FRAGMENTS, random_.randint(1, 12))
        found.append(" ".join(random_.choices(chosen, k=random_.choice([3, 20, 60, 150]))))
    for _ in range(200):
        sentences = [" ".join(random_.choices(found[0].split(), k=random_.randint(3, 14))) + "." for _ in range(40)]
        chosen = random_.choices(sentences, k=random_.choice([6, 20, 60]))
        found.append("".join(sentence + random_.choice([" ", "\n", "\n\n"]) for sentence in chosen))
    found += ["\n".join(f"{'x' * 20} {'y' * 20}{number}." for number in range(lines)) for lines in range(1, 40)]
    return found


def no_word(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "PS" or category == "Cc"


def stands_once(reason: str, text: str) -> bool:
    """datatrove's reason is an n-gram that stands only once."""
    words, n = text.split(), int(re.sub(r"\D", "", reason))
    return max(Counter(zip(*(words[start:] for start in range(n)), strict=False)).values()) == 1


@pytest.fixture(scope="module")
def filters() -> Iterator[dict[str, Any]]:
    pytest.importorskip("datatrove")
    from datatrove.pipeline.filters import c4_filters, fineweb_quality_filter, gopher_quality_filter
    from datatrove.pipeline.filters import gopher_repetition_filter as repetition

    def split(text: str, language: str = "") -> list[str]:
        return text.split()

    def sentences(line: str, language: str = "") -> list[str]:
        return SENTENCE_END.split(line)

    with pytest.MonkeyPatch.context() as patch:
        for module in (fineweb_quality_filter, gopher_quality_filter, repetition):
            patch.setattr(module, "split_into_words", split)
        patch.setattr(c4_filters, "split_into_sentences", sentences)
        patch.setattr(
            gopher_quality_filter, "PUNCTUATION_SET", {one for one in map(chr, range(0x20000)) if no_word(one)}
        )
        yield {
            "gopher_repetition": repetition.GopherRepetitionFilter(),
            "gopher_quality": gopher_quality_filter.GopherQualityFilter(),
            "c4": c4_filters.C4QualityFilter(filter_no_terminal_punct=False),
            "c4 with ends": c4_filters.C4QualityFilter(),
            "fineweb": fineweb_quality_filter.FineWebQualityFilter(stop_chars=ENDS),
        }


def ours(name: str, text: str) -> tuple[str | None, str]:
    """What our rule measures where it drops the text, or None; and the text that is left."""
    rule, limits = RULES[name.partition(" ")[0]], getattr(Clean(), name.partition(" ")[0])
    if name == "c4 with ends":
        limits = C4(end_punctuation=True)
    page = Page(text, "en")
    if rule.edit:
        page = rule.edit(page, limits)
    assert rule.checks
    return next((check.what for check in rule.checks(page, limits) if not check.passed), None), page.text


@pytest.mark.parametrize("name", ["gopher_repetition", "gopher_quality", "c4", "c4 with ends", "fineweb"])
def test_datatrove_decides_the_same(name: str, filters: dict[str, Any]) -> None:
    from datatrove.data import Document

    seen: dict[str | None, int] = {}
    for original in texts():
        text = re.sub(r"\n[^\S\n]+(?=\n)", "\n", original.strip())  # lines with spaces alone are empty for us
        if name != "gopher_repetition":
            text = re.sub(r"\n\s*\n", "\n", text)  # without empty lines
        if name == "c4 with ends":
            text = re.sub("[”“’»«]", "'", text)  # noqa: RUF001
        document = Document(text, "id")
        answer = filters[name].filter(document) if text else (False, "empty")
        reason = REASONS.get(answer[1], answer[1]) if isinstance(answer, tuple) else None
        if reason == "empty" or (
            isinstance(answer, tuple) and answer[1].startswith("top_") and stands_once(answer[1], text)
        ):
            continue
        found, left = ours(name, text)
        assert found == reason, text
        if name.startswith("c4") and reason is None:
            assert left == document.text
        seen[reason] = seen.get(reason, 0) + 1
    assert seen[None] > 50
    assert len(seen) > {"gopher_repetition": 8, "gopher_quality": 7, "fineweb": 4}.get(name, 3), seen
