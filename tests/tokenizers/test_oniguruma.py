r"""Patterns of Oniguruma: what they find here is what they find there, or they are refused by name."""

# ruff: noqa: RUF001

from __future__ import annotations

import random
import unicodedata

import pytest

from minillm.errors import InputError
from minillm.tokenizers.normal_form import normalise
from minillm.tokenizers.oniguruma import translate
from minillm.tokenizers.patterns import PATTERNS, ForeignPattern, check_foreign

# A pattern, a text, and what it finds, which was taken from Oniguruma itself.
FOUND = [
    ("[a[b-d]]+", "abd]", ["abd"]),
    ("[a-c[x-z&&[^y]]]+", "abxyz", ["abx", "z"]),
    ("[a-z&&[^b]]+", "abc", ["a", "c"]),
    ("[^a[bc]]+", "abcd", ["d"]),
    (r"[^\W\d]+", "a1²_", ["a", "_"]),
    (r"[$^.]+", "$^.a", ["$^."]),
    ("[]a]", "]a", ["]", "a"]),
    ("[[:digit:]]+", "x1\u0661²", ["1\u0661"]),
    ("[[:^alpha:]]+", "aé1-", ["1-"]),
    ("[[:punct:]]+", "a!$+é«😀", ["!$+", "«😀"]),
    (r"\p{Punct}+", "a!$+", ["!"]),
    (r"\p{Word}+", "a²½_1 ", ["a²½_1"]),
    (r"\w+", "a\u0301²-b", ["a\u0301²", "b"]),
    (r"[\w]+", "a²b", ["a", "b"]),
    (r"\p{^L}", "a1", ["1"]),
    (r"\h+", "xa0gF", ["a0", "F"]),
    (r"\R", "a\r\nb\n\r\u2028", ["\r\n", "\n", "\r", "\u2028"]),
    (r"\N", "a\nb", ["a", "b"]),
    (r"\O", "a\nb", ["a", "\n", "b"]),
    (r"\X", "e\u0301x", ["e\u0301", "x"]),
    (r"\x{1F600}|\u00e9|\x41", "😀éA", ["😀", "é", "A"]),
    (r"a\Z", "a\na", ["a"]),
    (r"a\z", "a\na\n", []),
    ("a$", "a\nab\na", ["a", "a"]),
    ("^a", "ba\na", ["a"]),
    ("(?m:.)", "a\n", ["a", "\n"]),
    (".", "a\n\r", ["a", "\r"]),
    (r"\d{,}x", "1x1{,}x", ["1{,}x"]),
    ("a{,2}", "aaa", ["aa", "a"]),
    ("a{2}+", "aaaaa", ["aaaa"]),
    ("a{1,2}+a", "aaa", ["aaa"]),
    ("a{2}?", "aaa", ["aa"]),
    ("a++a", "aaa", []),
    ("(?i:ss)", "aßb SS ſs", ["ß", "SS", "ſs"]),
    ("(?i:ß)", "ssSßẞ", ["ss", "ß", "ẞ"]),
    ("(?i:sss)", "ßs sß", ["ßs"]),
    ("(?i:ffi)", "ffi ﬃ ﬀi", ["ffi", "ﬃ"]),
    ("(?i:[a-z]+)", "aİb\u212a", ["a", "b\u212a"]),
    ("(?i)a(?-i)b", "Ab AB", ["Ab"]),
    (r"(?i:\p{Lu})", "aB", ["B"]),
    (r"(?<=a|bc)d", "ad bcd cd", ["d", "d"]),
    (r"(?<!a)b", "ab b", ["b"]),
    (r"(a)(?<n>b)(?#no)c", "abc", ["abc"]),
    ("(?x: a b # c\n)", "ab", ["ab"]),
    (r"\ba", "a²a a", ["a", "a"]),
    (r"[\x00-\x1f]|[一-龥]", "\x01中a", ["\x01", "中"]),
]
REFUSED = [
    (r"(a)\1", r"has '\\1', which is not supported; write it without"),
    (r"(?<n>a)\k<n>", r"has '\\k'"),
    (r"(?~ab)", r"has '\(\?~a'"),
    (r"a\Kb", r"has '\\K'"),
    (r"\G", r"has '\\G'"),
    (r"\y", r"has '\\y'"),
    (r"(?W)\w", r"has '\(\?W\)'"),
    ("(?i:[ß])", "the letter 'ß' in a class without regard to case"),
    (r"(?i:[\p{L}])", "the set 'L' in a class without regard to case"),
    ("(?<=(?i:ss))a", "'ss' without regard to case in a lookbehind"),
    (r"\p{InGreek}", "the property 'InGreek'"),
    (r"\pL", r"'\\p' without a name in braces"),
    ("(?P<n>a)", r"has '\(\?P<'"),
    ("a{2,1}", r"has '\{2,1\}'"),
    ("*a", "with nothing to repeat"),
    ("(a", r"a '\(' without its '\)'"),
    ("a)", r"a '\)' too many"),
    ("[a", "an end that comes too early"),
    ("[a&&]", "nothing on one side of '&&'"),
    (r"[\d-a", "an end that comes too early"),
    ("[z-a]", "a range that has no end"),
    (r"\x{110000}", "the character"),
    ("\\", "an end that comes too early"),
]


@pytest.mark.parametrize(("pattern", "text", "found"), FOUND)
def test_a_pattern_finds_what_it_finds_in_oniguruma(pattern, text, found):
    ours = ForeignPattern("test", {"Regex": pattern})
    assert [text[start:end] for start, end in ours.spans(text) if start < end] == [one for one in found if one]


@pytest.mark.parametrize(("pattern", "message"), REFUSED)
def test_a_pattern_without_an_equal_is_refused(pattern, message):
    with pytest.raises(InputError, match=message):
        translate("test", pattern)


TEXTS = [
    "aAbB kKſsSßẞ iIİı ﬁ \n\r\r\n\x0b\x85\u2028 é e\u0301 中文 12\u0661²½ _-!$+<>^`|~§\u203f",
    "😀 \x00\x1b\ufeff\u3000 ǅ Σς",
    "x",
    "",
    "abab\nab a1b2 {,} [a] ss SS ab\r\n",
]
PATTERNS_FOUND = [pattern for pattern, _, _ in FOUND]
PATTERNS_KNOWN = [pattern for several in PATTERNS.values() for pattern in several]
MAY_BE_EMPTY = ["x*", "(?=b)", "a*?", "a|", ""]
SETS = [r"\w", r"[\w]", r"\d", r"\s", r"\h", r"\p{Punct}", r"\p{Word}", r"\p{Upper}", r"\p{XDigit}"]
SETS += [f"[[:{name}:]]" for name in ("word", "punct", "graph", "print", "blank", "alnum", "alpha", "cntrl", "upper")]


@pytest.mark.oracle
@pytest.mark.parametrize("pattern", [*PATTERNS_FOUND, *PATTERNS_KNOWN, *MAY_BE_EMPTY])
def test_a_pattern_cuts_as_it_cuts_in_oniguruma(pattern):
    tokenizers = pytest.importorskip("tokenizers")
    from minillm.tokenizers.pre_tokenizers import PreTokenizer

    for behavior in ("isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous"):
        for invert in (False, True):
            theirs = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), behavior, invert)
            name = "".join(part.capitalize() for part in behavior.split("_"))
            step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": name, "invert": invert}
            ours = PreTokenizer("test", step)
            for text in (*TEXTS, *(found[1] for found in FOUND)):
                expected = [piece for piece, _ in theirs.pre_tokenize_str(text)]
                assert ours(text, 1) == expected, (behavior, invert, text)


@pytest.mark.oracle
def test_sets_of_characters_are_oniguruma_s():
    tokenizers = pytest.importorskip("tokenizers")
    characters = [chr(code) for code in (*range(1, 0xD800), *range(0xE000, 0x3000))]
    text = "".join(characters)
    newer = set("\u0295")  # a small letter until Unicode 16
    for one in SETS:
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(one), "removed")
        left = {character for piece, _ in split.pre_tokenize_str(text) for character in piece}
        theirs = {*characters} - left
        ours = {text[start:end] for start, end in ForeignPattern("test", {"Regex": one}).spans(text)}
        assert {c for c in theirs ^ ours if unicodedata.category(c) != "Cn"} <= newer, one


def test_known_patterns_stay_as_they_are():
    for patterns in PATTERNS.values():
        for pattern in patterns:
            assert check_foreign("test", pattern) == pattern
    assert ForeignPattern("test", {"String": "a.b"}).replace("a.b axb", "-") == "- axb"
    with pytest.raises(InputError, match="is not a pattern; give a String or a Regex"):
        ForeignPattern("test", {"Strange": "a"})


def test_normal_forms_of_long_runs_of_marks():
    draw = random.Random(2)
    marks = [chr(code) for code in range(0x300, 0x370)]
    for _ in range(100):
        text = "".join(
            draw.choice("aé中\u0344") + "".join(draw.choices(marks, k=draw.randint(0, 200))) for _ in range(3)
        )
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            assert normalise(form, text) == unicodedata.normalize(form, text)
