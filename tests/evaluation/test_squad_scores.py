"""SQuAD's measures beside the official script's, and the search for the best answer beside all possible ones."""

from __future__ import annotations

import pytest

from minillm.data.frames import frame_of
from minillm.data.squad import Question, Windows
from minillm.evaluation.squad import best_of, exact_match, f1, find_answer, normalized, squad_scores
from minillm.tokenizers import WordPieceTokenizer

ANSWERS = [
    *("the Cat", "cat", "a  cat!", "An apple, a pear", "apple pear", "", "the", "U.S.", "US", "42", "forty-two"),
    *("Ålesund", "ålesund.", "in the year 1234", "year 1234 in", "cat cat", "theatre", "“quoted”", "quoted", "a\nb\tc"),
]


def test_answers_are_normalised_as_by_the_official_script() -> None:
    assert normalized("The  CAT's a-hat, an (old) one!") == "cats ahat old one"
    assert exact_match("a cat", "The cat.") == 1
    assert exact_match("theatre", "atre") == 0
    assert f1("the black cat", "a cat sat") == pytest.approx(2 * (1 / 2) * (1 / 2) / 1)
    assert f1("cat cat", "cat") == pytest.approx(2 * (1 / 2) * 1 / (1 / 2 + 1))
    assert (f1("", ""), f1("the", ""), f1("x", ""), f1("", "x")) == (1, 1, 0, 0)
    assert best_of(f1, "cat", ("dog", "the cat")) == 1
    assert best_of(exact_match, "", ()) == best_of(exact_match, "a", ("the",)) == 1  # no right answer has words


def test_scores_have_intervals() -> None:
    scores = squad_scores(["cat", "dog", ""], [("a cat",), ("cat", "big dog"), ()])
    assert scores["exact_match"].value == pytest.approx(2 / 3)
    assert scores["f1"].value == pytest.approx((1 + 2 / 3 + 1) / 3)
    for measure in scores.values():
        assert measure.low is not None
        assert measure.high is not None
        assert measure.low <= measure.value <= measure.high
        assert measure.items == 3


def test_the_best_answer_of_all_windows_is_found(rng) -> None:
    """The search beside a plain loop over all starts and ends in all windows."""
    words = [f"w{number}" for number in range(30)]
    tokenizer = WordPieceTokenizer({word: i for i, word in enumerate([*words, "[UNK]", "[CLS]", "[SEP]"])})
    for number in range(40):
        context = "  ".join(words[i] for i in rng.integers(0, 30, int(rng.integers(1, 30))))
        question = Question("q", "w1 w2", context, ())
        windows = Windows([question], tokenizer, frame_of(tokenizer, "bert"), 14, 4, max_question=2).windows
        starts, ends = ([rng.normal(size=16) for _ in windows] for _ in range(2))  # 2 places of padding
        most = int(rng.integers(1, 6))
        found = find_answer(context, windows, starts, ends, max_tokens=most, n_best=100)
        expected = max(
            (start[a] + end[b], number, a, b)
            for number, (window, start, end) in enumerate(zip(windows, starts, ends, strict=True))
            for a in range(window.offset, window.offset + window.end - window.start)
            for b in range(a, min(a + most, window.offset + window.end - window.start))
            if window.is_whole[a]
        )
        assert found.score == pytest.approx(expected[0])
        window = windows[expected[1]]
        assert found.text == context[window.places[expected[2]][0] : window.places[expected[3]][1]]
        assert found.null_score == pytest.approx(min(s[0] + e[0] for s, e in zip(starts, ends, strict=True)))
        few = find_answer(context, windows, starts, ends, max_tokens=most, n_best=1)
        assert few.score <= found.score


@pytest.mark.oracle
def test_measures_equal_those_of_the_official_script() -> None:
    """lm-evaluation-harness has its functions; two answers without words are equal in the script's second version."""
    official = pytest.importorskip("lm_eval.tasks.qasper.metrics")
    for one in ANSWERS:
        assert normalized(one) == official.normalize_answer(one)
        for other in ANSWERS:
            assert exact_match(one, other) == (official.normalize_answer(one) == official.normalize_answer(other))
            neither = not normalized(one) and not normalized(other)
            expected = 1.0 if neither else official.f1_abstractive([one], [other])
            assert f1(one, other) == pytest.approx(expected, rel=1e-12)
