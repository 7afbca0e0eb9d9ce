"""Every threshold of every rule has a text that it drops, for the right reason, and one at its bound that stays."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest

from minillm.corpus.rules.c4 import C4, c4, c4_lines
from minillm.corpus.rules.cleaning import RULES, Clean, explain
from minillm.corpus.rules.page import Page

PROSE = """The harbour lies on the north side of the bay, where the wind seldom reaches the smaller boats.
Every morning the fishermen bring what they have caught, and the market opens before the sun is up.
People come from the villages in the hills with baskets, and they argue about prices that have not changed in years.
By noon the stalls are empty, so a stranger might think that nothing ever happens here!
Yet each crate was carried up the stairs by hand, and someone kept a list of all of it.
Would you believe that the list goes back two hundred years?"""
GERMAN = """Der Hafen liegt an der Nordseite der Bucht, wo der Wind die kleineren Boote selten erreicht.
Jeden Morgen bringen die Fischer ihren Fang, und der Markt öffnet, bevor die Sonne aufgegangen ist.
Aus den Dörfern kommen Leute mit Körben und streiten über Preise, die sich seit Jahren nicht geändert haben.
Am Mittag sind die Stände leer, und ein Fremder könnte glauben, dass hier nie etwas geschieht!
Dabei wurde jede Kiste von Hand die Treppe hinaufgetragen, und jemand führte eine Liste von allem.
Würden Sie glauben, dass die Liste zweihundert Jahre zurückreicht?"""
FRENCH = "Le port se trouve du côté nord de la baie, et tous les matins les pêcheurs y apportent leurs poissons."


class Example(NamedTuple):
    rule: str
    field: str  # the threshold
    dropped: str  # a text that the rule drops by this threshold
    reason: str  # why
    bound: Any  # a value of the threshold with which the same text passes
    kept: str  # a text that passes with the default, at the bound where one can be


def words(count: int, letters: int) -> str:
    """So many different words of so many letters."""
    return " ".join(f"{number:0{letters - 1}d}x" for number in range(count))


def lines(*parts: str) -> str:
    return "\n".join(parts)


def different(count: int, letters: int = 40) -> list[str]:
    """So many different lines of one word each."""
    return [f"{'n' + str(number):x<{letters}}" for number in range(count)]


def ten_times(n: int, letters: int) -> str:
    """A run of n words of 9 letters ten times, a word of so many letters of its own behind each."""
    run = " ".join(f"{letter * 9}" for letter in "abcd"[:n])
    return " ".join(f"{run} {number:0{letters}d}" for number in range(10))


def two_twice(n: int, total: int) -> str:
    """Words of five letters, so many in total: two runs of n that stand twice each, and others once."""
    first, second = ([f"{letter}{number:04d}" for number in range(n)] for letter in "ab")
    rest = [f"{number:05d}" for number in range(total - 4 * n)]
    return " ".join([*first, *second, *rest[:-1], *first, rest[-1], *second])


PARAGRAPHS = "\n\n"
SIX = "six words stand in this line"
EXAMPLES = [
    Example("language", "min_language_score", "x[3] = f(7); y += g[2]", " is the probability of ", 0.0, PROSE),
    Example("language", "languages", FRENCH, "fr is the language, not en or de", "fr", GERMAN),
    Example("gopher_quality", "min_words", "word " * 49 + "-- !!", "49 words, under 50", 49, "word " * 50),
    Example(
        "gopher_quality", "max_words", "word " * 100_001, "100,001 words, over 100,000", 100_001, "word " * 100_000
    ),
    Example("gopher_quality", "min_word_length", "ab " * 60, "2 characters a word, under 3", 2, "abc " * 60),
    Example("gopher_quality", "max_word_length", words(60, 11), "11 characters a word, over 10", 11, words(60, 10)),
    Example(
        "gopher_quality",
        "max_hashes",
        "word " * 100 + "#" * 11,
        "0.109 signs # a word, over 0.1",
        0.11,
        "word " * 99 + "#" * 10,
    ),
    Example(
        "gopher_quality",
        "max_ellipses",
        "word " * 100 + "end..." + "…" * 10,
        "0.109 ellipses a word, over 0.1",
        0.11,
        "word " * 99 + "end..." + "…" * 9,
    ),
    Example(
        "gopher_quality",
        "max_bullet_lines",
        lines(*["  - six words stand in here"] * 19, "no bullet", " ", ""),
        "0.95 of the lines begin with a bullet, over 0.9",
        0.95,
        lines(*["• six words stand in here"] * 9, "no bullet " * 10, " "),
    ),
    Example(
        "gopher_quality",
        "max_ellipsis_lines",
        lines(*[SIX + "..."] * 4, *[SIX] * 6),
        "0.4 of the lines end with an ellipsis, over 0.3",
        0.4,
        lines(*[SIX + "…  "] * 3, *[SIX] * 7),
    ),
    Example(
        "gopher_quality",
        "min_letter_words",
        "word " * 79 + "1234 " * 21,
        "0.79 of the words have a letter, under 0.8",
        0.79,
        "word " * 80 + "1234 " * 20,
    ),
    Example("gopher_quality", "min_stop_words", "the word " * 30, "1 common words, under 2", 1, "the word of " * 30),
    Example(
        "gopher_repetition",
        "max_duplicate_paragraphs",
        PARAGRAPHS.join(["one"] * 5 + different(5)),
        "0.4 of the paragraphs are duplicates, over 0.3",
        0.4,
        "\n\n\n".join(["one"] * 4 + different(6)),
    ),
    Example(
        "gopher_repetition",
        "max_paragraph_characters",
        PARAGRAPHS.join(["y" * 200] * 2 + different(10)),
        "0.243 of the characters are in duplicate paragraphs, over 0.2",
        0.25,
        PARAGRAPHS.join(["y" * 100] * 2 + different(10)),
    ),
    Example(
        "gopher_repetition",
        "max_duplicate_lines",
        lines(*["one"] * 5, *different(5)),
        "0.4 of the lines are duplicates, over 0.3",
        0.4,
        lines(*["one"] * 4, *different(6)),
    ),
    Example(
        "gopher_repetition",
        "max_line_characters",
        lines(*["y" * 200] * 2, *different(10)),
        "0.247 of the characters are in duplicate lines, over 0.2",
        0.25,
        lines(*["y" * 100] * 2, *different(10)),
    ),
    *(
        Example(
            "gopher_repetition",
            f"max_top_{n}gram",
            ten_times(n, letters),
            f"{(100 * n - 10) / (100 * n + 10 * letters + 9):.3g} of the characters are in the most frequent {n}-gram",
            0.4,
            ten_times(n, enough),
        )
        for n, letters, enough in [(2, 69, 75), (3, 99, 131), (4, 160, 203)]
    ),
    *(
        Example(
            "gopher_repetition",
            f"max_repeated_{n}gram",
            two_twice(n, total),
            f"{10 * n / (6 * total - 1):.3g} of the characters are in repeated {n}-grams",
            0.4,
            two_twice(n, enough),
        )
        for n, total, enough in [(5, 50, 56), (6, 60, 72), (7, 80, 90), (8, 100, 112), (9, 124, 137), (10, 152, 167)]
    ),
    Example("c4", "min_sentences", PROSE.split("!")[0], "4 sentences, under 5", 4, PROSE.split("Would")[0]),
    Example(
        "c4", "max_line_word", lines(*[f"a {'x' * 1001} b."] * 5), "0 sentences", 1001, f"a {'x' * 1000} b. C. " * 5
    ),
    Example("c4", "min_line_words", lines(*["Two words."] * 5), "0 sentences", 2, lines(*["Three words here."] * 5)),
    Example(
        "fineweb",
        "min_ended_lines",
        lines(*different(8), "end."),
        "0.111 of the lines end with punctuation, under 0.12",
        0.11,
        lines(*different(7), "end.", ""),
    ),
    Example(
        "fineweb",
        "short_line",
        lines(*[f"{number:030d}." for number in range(7)], *["x" * number for number in range(16, 31)]),
        "0.682 of the lines have 30 characters or fewer, over 0.67",
        15,
        lines(*[f"{number:030d}." for number in range(8)], *["x" * number for number in range(16, 31)]),
    ),
    Example(
        "fineweb",
        "max_short_lines",
        lines(*[f"{number}." for number in range(7)], *different(3)),
        "0.7 of the lines have 30 characters or fewer, over 0.67",
        0.7,
        lines(*[f"{number}." for number in range(6)], *different(3)),
    ),
    Example(
        "fineweb",
        "max_repeated_characters",
        lines(PROSE, *["twice here."] * 2),
        "0.0194 of the characters are in duplicate lines, over 0.01",
        0.02,
        lines(PROSE, *["x."] * 2),
    ),
    Example(
        "fineweb",
        "max_line_breaks",
        lines(*[f"{line} b c." for line in different(9)], "n 0."),
        "0.31 line breaks a word, over 0.3",
        0.32,
        lines(*[f"{line} b c.\n\n" for line in different(10)]),
    ),
    Example(
        "word_lists",
        "max_toxic_words",
        "Shit! " * 3 + PROSE,
        "0.0283 of the words are vulgar or insulting, over 0.02",
        0.029,
        "Shit! That idiot again. " + PROSE,
    ),
]


def failures(example: Example, text: str, **limits: Any) -> list[tuple[str, str]]:
    """The checks that a text does not pass: what each measures, and why it drops the text."""
    rule = RULES[example.rule]
    page, chosen = Page(text), dataclasses.replace(getattr(Clean(), example.rule), **limits)
    if rule.edit:
        page = rule.edit(page, chosen)
    assert rule.checks
    return [(check.what, check.reason) for check in rule.checks(page, chosen) if not check.passed]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.rule}.{example.field}")
def test_a_threshold_drops_its_example_and_no_other(example: Example) -> None:
    if example.rule == "language":
        pytest.importorskip("py3langid")
    what, reason = failures(example, example.dropped)[0]
    assert example.reason in reason
    assert reason not in [why for _, why in failures(example, example.dropped, **{example.field: example.bound})]
    assert what not in [found for found, _ in failures(example, example.kept)]


def test_every_threshold_has_an_example() -> None:
    thresholds = {
        (name, field.name) for name in RULES for field in dataclasses.fields(getattr(Clean(), name)) if name != "pii"
    }
    examples = {(example.rule, example.field) for example in EXAMPLES}
    assert examples == thresholds - {("c4", "end_punctuation")}  # it has a test below


@pytest.mark.parametrize("text", [PROSE, GERMAN], ids=["English", "German"])
def test_prose_passes_every_rule_and_stays_as_it_is(text: str) -> None:
    pytest.importorskip("py3langid")
    found = explain(text, Clean(rules=", ".join(RULES)))
    assert found.dropped is None
    assert found.text == text
    assert len(found.checks) == sum(len(list(checks_of(name))) for name in RULES)


def checks_of(name: str) -> list[Any]:
    rule, limits = RULES[name], getattr(Clean(), name)
    page = rule.edit(Page(PROSE), limits) if rule.edit else Page(PROSE)
    return list(rule.checks(page, limits)) if rule.checks else []


@pytest.mark.parametrize("name", [name for name in RULES if RULES[name].checks])
@pytest.mark.parametrize("text", ["", " ", "\n\n\n", "\ud800", "a", "\x00", "🙂", "\u2028", "...", "#"])
def test_texts_with_hardly_anything_are_measured_without_error(name: str, text: str) -> None:
    if name == "language":
        pytest.importorskip("py3langid")
    for options in (Clean(rules=name), Clean(rules=f"c4, {name}") if name != "c4" else Clean(rules="c4, pii")):
        found = explain(text, options)
        assert found.checks
        assert all(isinstance(check.value, (int, float, str)) for _, check in found.checks)


def test_a_document_with_nothing_in_it_is_dropped_by_the_default_rules() -> None:
    rules = "gopher_repetition, gopher_quality, c4, fineweb"
    assert explain("", Clean(rules=rules)).dropped == "gopher_quality: 0 words, under 50"


# --- the lines that C4's rule removes ------------------------------------------------------------------------------

LINES = [  # a line, why it is removed or None, and what is left of it
    ("Please enable JavaScript to see this page.", "javascript", ""),
    ("Read our Privacy Policy before you go on.", "privacy policy", ""),
    ("This site uses cookies to count its visitors.", "uses cookies", ""),
    ("Two words.", "under 3 words", ""),
    ("a word of " + "x" * 1001 + " letters", "a word over 1000 characters", ""),
    ("a word of " + "x" * 1000 + " letters", None, "a word of " + "x" * 1000 + " letters"),
    ("The town has 300 people[12] and a church.[citation needed]", None, "The town has 300 people and a church."),
    ("  three words here\t", None, "three words here"),
    ("Eine Datenschutzerklärung steht am Ende.", None, "Eine Datenschutzerklärung steht am Ende."),  # in German alone
]


@pytest.mark.parametrize(("line", "why", "left"), LINES)
def test_c4_removes_lines_that_are_no_prose(line: str, why: str | None, left: str) -> None:
    page = c4_lines(Page(f"{PROSE}\n{line}\n{GERMAN}"), C4())
    assert page.text == "\n".join([PROSE, *filter(None, [left]), GERMAN])
    assert page.removed == ([(line, why)] if why else [])
    assert page.facts == ({"lines_removed": {why: 1}} if why else {})


def test_c4_knows_german_notices_on_german_pages() -> None:
    line = "Eine Datenschutzerklärung steht am Ende."
    assert c4_lines(Page(line, "de"), C4()).removed == [(line, "datenschutzerklärung")]


@pytest.mark.parametrize("line", ["This has no end", "This ends later...", "And this …"])
def test_c4_removes_lines_without_an_end_where_that_is_wanted(line: str) -> None:
    assert c4_lines(Page(line), C4(end_punctuation=True)).removed == [(line, "no end of a sentence")]
    assert c4_lines(Page(line), C4()).text == line
    assert c4_lines(Page(PROSE), C4(end_punctuation=True)).text == PROSE


def test_c4_keeps_the_border_between_paragraphs() -> None:
    text = "\n\n one two three \n\n\n two\n\n \none two three\r\none two four\n\nmenu\n"
    assert c4_lines(Page(text), C4()).text == "one two three\n\none two three\none two four"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Lorem ipsum dolor sit amet, with javascript.", 'times "lorem ipsum"'),
        ("if (x) { return our privacy policy }", 'signs "{"'),
    ],
)
def test_c4_drops_the_document_for_a_line_that_it_would_remove_too(line: str, reason: str) -> None:
    dropped = explain(f"{PROSE}\n{line}", Clean(rules="c4")).dropped
    assert dropped == f"c4: 1 {reason}, over 0"


def test_c4_does_not_drop_a_document_for_a_brace_in_a_line_about_javascript() -> None:
    assert explain(f"{PROSE}\nif (javascript) {{ return; }}", Clean(rules="c4")).dropped is None


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One here. Two here! Three here? Four", 4),
        ("It costs 3.50 and e.g. more, i.e. much. End", 2),
        ('He said "no." She said nothing. "Why?" asked I.', 3),
        ("a line without an end\nanother one", 2),
        ("Wait... what? No... Yes.", 3),
    ],
)
def test_sentences_are_counted(text: str, sentences: int) -> None:
    [check] = [check for check in c4(Page(text), C4()) if check.what == "sentences"]
    assert check.value == sentences
