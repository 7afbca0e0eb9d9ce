"""Windows over contexts, and answers in them: places in the original text, cut answers, counts, and SQuAD's files."""

from __future__ import annotations

import json
import unicodedata
from functools import cache
from typing import Any

import numpy as np
import pytest

from minillm.data.frames import Frame, frame_of
from minillm.data.squad import EncodedContext, Question, Windows, cuts, read_squad
from minillm.errors import InputError
from minillm.tokenizers import BPETokenizer, CharacterTokenizer, Tokenizer, UnigramTokenizer, WordPieceTokenizer

WORDS = [
    *("the", "river", "Ålesund", "café", "cafe\u0301", "E\u0301cole", "naïve", "STRASSE", "Straße", "1234", "3.5"),
    *("東京", "한국어", "Привет", "ﬁne", "😀", "👍🏽", "👩\u200d👧", "❤\ufe0f", "🇩🇪", "don't", "e-mail"),
    *("x²", "Ω", "ö\u0323", "İstanbul", "ñandú", "a\u0308hnlich", "हिन्दी", "U.S.", "(now)", "€5"),
]
SPACES = [" ", " ", " ", "  ", "\n", "\t ", "\u3000", "\xa0", " \u200a"]
CORPUS = [" ".join(WORDS), " ".join(map(str.lower, WORDS)), unicodedata.normalize("NFC", " ".join(WORDS))]


@cache
def tokenizers() -> dict[str, Tokenizer]:
    bpe = BPETokenizer.train(CORPUS, 400, ("<s>", "</s>"))
    return {
        "wordpiece": WordPieceTokenizer.train(CORPUS, 400, min_frequency=1),
        "wordpiece, cased": WordPieceTokenizer.train(CORPUS, 400, min_frequency=1, lowercase=False),
        "bpe": bpe,
        "bpe, NFC": BPETokenizer(bpe.vocab, bpe.merges, bpe.special_tokens, normalizer="NFC", prefix_space=True),
        "unigram": UnigramTokenizer.train(CORPUS, 300, special_tokens=("<s>", "</s>"), byte_fallback=False),
        "unigram, NFKC": UnigramTokenizer.train(CORPUS, 500, normalizer="NFKC", byte_fallback=True),
        "character": CharacterTokenizer.train("".join(CORPUS) + "".join(SPACES)),
    }


def drawn(rng: np.random.Generator, words: int) -> tuple[str, list[tuple[int, int]]]:
    """A context of hard words and hard spaces, and the place of each word."""
    parts: list[str] = [str(rng.choice(SPACES)) if rng.random() < 0.3 else ""]
    places = []
    for _ in range(words):
        start = len("".join(parts))
        parts.append(str(rng.choice(WORDS)))
        places.append((start, start + len(parts[-1])))
        parts.append(str(rng.choice(SPACES)))
    return "".join(parts), places


@pytest.mark.parametrize("name", tokenizers())
def test_answers_stand_at_their_places_in_the_original_text(name, rng) -> None:
    """One thousand contexts: the text from the first token of an answer to its last is the answer."""
    tokenizer = tokenizers()[name]
    for _ in range(1000 if name in ("wordpiece", "bpe", "unigram") else 200):
        context, places = drawn(rng, int(rng.integers(1, 12)))
        first = int(rng.integers(len(places)))
        last = int(rng.integers(first, min(len(places), first + 3)))
        start, end = places[first][0], places[last][1]
        encoded = EncodedContext(context, tokenizer)
        answer = encoded.find(context[start:end], start)
        assert answer is not None
        found = context[encoded.places[answer.first][0] : encoded.places[answer.last][1]]
        assert answer.aligned == (found == context[start:end])
        assert answer.aligned, (context, context[start:end], found)


def test_answers_that_do_not_align_are_counted_and_wrong_ones_left_out() -> None:
    tokenizer = WordPieceTokenizer.train("it was in 1234 or so", 60, min_frequency=1)
    tokenizer = WordPieceTokenizer({"1234": 0, "in": 1, "[UNK]": 2, "[CLS]": 3, "[SEP]": 4, "year": 5, "##s": 6})
    context = "  in  1234 years"
    questions = [
        Question("a", "year", context, (("1234", 6),)),
        Question("b", "year", context, ((" in  1234 ", 1),)),  # with white space around it
        Question("c", "year", context, (("12", 6),)),  # within a token
        Question("d", "year", context, (("1234", 5),)),  # not there
        Question("e", "year", context, (("  ", 4),)),  # nothing
        Question("f", "year", context, ()),
    ]
    windows = Windows(questions, tokenizer, frame_of(tokenizer, "bert"), 10, 4, max_question=2)
    assert [(w.question, w.first, w.last) for w in windows.windows] == [(0, 4, 4), (1, 3, 4), (2, 4, 4), (5, 0, 0)]
    assert [w.text(context, w.first, w.last) for w in windows.windows[:3]] == ["1234", "in  1234", "1234"]
    assert +windows.counts == {
        "answers that begin or end within a token": 1,
        "answers that do not stand where they should": 2,
        "questions without an answer": 1,
        "windows without their answer": 1,
    }
    assert "1 question without an answer" in windows.summary()
    assert windows.summary().startswith("6 questions in 4 windows of at most 10 tokens, 4 apart (")


def test_windows_overlap_and_the_last_one_reaches_the_end() -> None:
    for length in (*range(14), 57):
        for room, stride in ((5, 3), (5, 5), (4, 1), (20, 7)):
            found = list(cuts(length, room, stride))
            assert {place for start, end in found for place in range(start, end)} == {*range(length)}
            assert [start for start, _ in found] == [stride * number for number in range(len(found))]
            assert found[-1][1] == length
            assert all(end == start + room for start, end in found[:-1])
            assert len(found) == 1 or found[-2][1] < length  # none is needless


def test_an_answer_that_is_cut_is_marked_where_it_is_whole(rng) -> None:
    words = [f"w{number}" for number in range(40)]
    tokenizer = WordPieceTokenizer({word: i for i, word in enumerate([*words, "[UNK]", "[CLS]", "[SEP]", "who"])})
    context = " ".join(words[i] for i in rng.integers(0, 40, 23))
    starts = [0, *(place + 1 for place, c in enumerate(context) if c == " ")]
    frame, seen_cut = frame_of(tokenizer, "bert"), 0
    for first in range(23):
        for last in range(first, min(23, first + 6)):
            text = context[starts[first] :].split(" ")[: last - first + 1]
            question = Question("q", "who who", context, ((" ".join(text), starts[first]),))
            windows = Windows([question], tokenizer, frame, 13, 5, max_question=2)  # 8 tokens of context
            for window in windows.windows:
                inside = window.start <= first and last < window.end
                assert window.has_answer == inside
                if inside:
                    assert window.text(context, window.first, window.last) == " ".join(text)
                    assert window.ids[window.first : window.last + 1] == tokenizer.encode(" ".join(text))
                else:
                    assert (window.first, window.last) == (0, 0)
            assert windows.windows[-1].end == 23
            whole = [(w.start + place - w.offset) for w in windows.windows for place in np.flatnonzero(w.is_whole)]
            assert sorted(whole) == [*range(23)]  # each token has one window with the most context
            seen_cut += windows.counts["answers cut by every window"]
    assert seen_cut > 0


def test_what_does_not_fit_is_refused_or_cut() -> None:
    tokenizer = WordPieceTokenizer({"a": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3})
    frame = frame_of(tokenizer, "bert")
    for length, stride in ((10, 6), (8, 4), (10, 0)):
        with pytest.raises(InputError, match=r"Windows: a window of length=.*so that no token is left out"):
            Windows([], tokenizer, frame, length, stride, max_question=2)
    long = Windows([Question("", "a a a a", "a a", (("a", 2),))], tokenizer, frame, 12, 3, max_question=3)
    assert long.counts["cut questions"] == 1
    assert long.windows[0].ids == [2, 0, 0, 0, 3, 0, 0, 3]
    assert long.windows[0].types == [0] * 5 + [1] * 3
    empty = Windows([Question("", "a", "", ())], tokenizer, frame, 12, 3, max_question=3)
    assert [w.ids for w in empty.windows] == [[2, 0, 3, 3]]


def test_the_frame_is_that_of_the_family() -> None:
    bpe = tokenizers()["bpe"]
    begin, end = bpe.special_tokens["<s>"], bpe.special_tokens["</s>"]
    with pytest.raises(InputError, match="frame_of: the tokenizer has no special token that begins and ends a text"):
        frame_of(bpe, "bert")
    roles = BPETokenizer(bpe.vocab, bpe.merges, bpe.special_tokens)
    roles.name_special_tokens(bos_token="<s>", eos_token="</s>")
    assert frame_of(roles, "bert") == Frame((begin,), (end,), (end,), True, False)
    assert frame_of(roles, "roberta") == Frame((begin,), (end, end), (end,), False, False)
    assert frame_of(roles, "bart").around([7], [8, 9])[0] == [begin, 7, end, end, 8, 9, end]
    xlnet = frame_of(roles, "xlnet")
    assert xlnet.around([7], [8, 9]) == ([7, end, 8, 9, end, begin], [0, 0, 1, 1, 1, 2])
    assert xlnet.around([7]) == ([7, end, begin], [0, 0, 2])
    assert (xlnet.cls(6), frame_of(roles, "bert").cls(6)) == (5, 0)


# Files


def written(tmp_path, content: Any) -> str:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_both_versions_of_squads_files_are_read(tmp_path) -> None:
    qas = [
        {
            "id": "1",
            "question": "who?",
            "answers": [{"text": "Bo", "answer_start": place} for place in (0, 9)],
        },
        {"id": "2", "question": "why?", "is_impossible": True, "answers": [], "plausible_answers": []},
        {"question": "when?", "answers": []},
    ]
    questions = read_squad(written(tmp_path, {"data": [{"paragraphs": [{"context": "Bo and a Bo", "qas": qas}]}]}))
    assert [one.answers for one in questions] == [(("Bo", 0), ("Bo", 9)), (), ()]
    assert questions[0].texts == ("Bo", "Bo")
    assert [one.id for one in questions[:2]] == ["1", "2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "has no list 'data' of objects"),
        ({"data": []}, "has no questions"),
        ({"data": [{"paragraphs": [{"context": 3, "qas": [{"question": "x", "answers": []}]}]}]}, "context is 3"),
        ({"data": [{"paragraphs": [{"context": "c", "qas": [{"answers": []}]}]}]}, r"qas\[0\]: question is None"),
        (
            {"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "x", "answers": [{"text": "c"}]}]}]}]},
            r"data\[0\]\.paragraphs\[0\]\.qas\[0\]: answer_start is None",
        ),
    ],
)
def test_what_is_no_squad_file_is_refused_with_its_place(tmp_path, content, message) -> None:
    with pytest.raises(InputError, match=message):
        read_squad(written(tmp_path, content))
    with pytest.raises(InputError, match="cannot read"):
        read_squad(tmp_path / "missing.json")
