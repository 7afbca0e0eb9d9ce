"""Multiple choice: characters, bytes and ids disagree, ties, and records of three kinds."""

from __future__ import annotations

import pytest
from scored_models import TEXTS, small_gpt2, uniform_gpt2

from minillm.errors import InputError
from minillm.evaluation.likelihood import Likelihood, log_likelihoods
from minillm.evaluation.multiple_choice import Question, choose, multiple_choice, question_of
from minillm.tokenizers import BPETokenizer

BYTES = BPETokenizer.train(TEXTS, 320)


def likelihoods(*nats: float) -> list[Likelihood]:
    return [Likelihood(one, False, ids) for ids, one in enumerate(nats, 1)]


def test_characters_bytes_and_ids_disagree() -> None:
    """A choice of 2 characters and 6 bytes, one of 4 and 5, one of 6 and 6; the ids are 1, 2 and 3."""
    choices = ("東京", "café", "kitten")
    found = choose(choices, likelihoods(-5.0, -8.0, -9.6))
    # nats: -5, -8, -9.6; by characters: -2.5, -2, -1.6; by bytes: -0.833, -1.6, -1.6; by ids: -5, -4, -3.2
    assert (found.acc, found.acc_norm, found.acc_bytes) == (0, 2, 0)
    found = choose(choices, likelihoods(-10.0, -5.5, -6.0))
    # by characters: -5, -1.375, -1; by bytes: -1.67, -1.1, -1; by ids: -10, -2.75, -2
    assert (found.acc, found.acc_norm, found.acc_bytes) == (1, 2, 2)
    found = choose(choices, likelihoods(-6.5, -8.5, -12.0))
    # by characters: -3.25, -2.125, -2; by bytes: -1.083, -1.7, -2; by ids: -6.5, -4.25, -4
    assert (found.acc, found.acc_norm, found.acc_bytes) == (0, 2, 0)


def test_the_first_of_equal_choices_wins() -> None:
    found = choose(("ab", "cd"), likelihoods(-1.0, -1.0))
    assert (found.acc, found.acc_norm, found.acc_bytes) == (0, 0, 0)


def test_the_delimiter_is_scored_but_not_counted() -> None:
    model = small_gpt2(BYTES.vocab_size)
    question = Question("The cat sat on", ("the mat", "東京の猫", "naïvely, Zoë"), 1)
    found = multiple_choice(model, BYTES, [question])
    expected = log_likelihoods(model, BYTES, [(question.context, f" {choice}") for choice in question.choices])
    nats = [one.log_probability for one in expected]
    [chosen] = found.chosen
    assert chosen.log_probabilities == pytest.approx(nats)
    assert chosen.acc == max(range(3), key=nats.__getitem__)
    by_characters = [one / length for one, length in zip(nats, (7, 4, 12), strict=True)]
    assert chosen.acc_norm == max(range(3), key=by_characters.__getitem__)
    by_bytes = [one / length for one, length in zip(nats, (7, 12, 14), strict=True)]
    assert chosen.acc_bytes == max(range(3), key=by_bytes.__getitem__)


def test_accuracies_are_shares_of_all_questions() -> None:
    model = small_gpt2(BYTES.vocab_size)
    questions = [
        Question(text[:9], ("the", "cat sat", "ist naïv"), number % 3) for number, text in enumerate(TEXTS * 4)
    ]
    found = multiple_choice(model, BYTES, questions)
    for rule, measure in found.measures.items():
        right = [getattr(one, rule) == q.answer for one, q in zip(found.chosen, questions, strict=True)]
        assert measure.value == sum(right) / 16
        assert measure.denominator == 16
        assert measure.low <= measure.value <= measure.high
    assert 0 < found.measures["acc"].value < 1
    assert found.cut_contexts == 0
    assert multiple_choice(small_gpt2(BYTES.vocab_size, context=12), BYTES, questions).cut_contexts > 0


def test_a_uniform_model_takes_the_fewest_ids_and_is_fair_by_none() -> None:
    questions = [Question("The cat sat on", ("the mat and the dog sat", "the"), 1)]
    [chosen] = multiple_choice(uniform_gpt2(BYTES.vocab_size), BYTES, questions).chosen
    assert chosen.acc == 1


# Records


def test_a_plain_record() -> None:
    record = {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}
    assert question_of(record) == Question("2 + 2 =", ("3", "4"), 1)
    assert question_of(record | {"answer": "4"}).answer == 1


def test_a_record_of_hellaswag_is_cleaned() -> None:
    record = {
        "activity_label": "Making  tea",
        "ctx_a": "[header] How to make tea [title] Boil water.",
        "ctx_b": "the person",
        "endings": ["pours [substeps] it.", " [title] waits", "sings.", "leaves."],
        "label": "2",
    }
    found = question_of(record)
    assert found.context == "Making tea: How to make tea. Boil water. The person"
    assert found.choices == (
        "pours it.",
        "[title] waits".replace("[title] ", " ").strip() and " waits",
        "sings.",
        "leaves.",
    )
    assert found.answer == 2


def test_a_record_of_arc() -> None:
    record = {
        "question": "Which one is hot?",
        "choices": {"text": ["ice", "fire", "snow"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    }
    assert question_of(record) == Question("Question: Which one is hot?\nAnswer:", ("ice", "fire", "snow"), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": None}, "question is None; give a text"),
        ({"question": "  "}, "question is '  '; give a text"),
        ({"choices": ["one"]}, "choices is .*; give a list of two texts or more"),
        ({"choices": ["one", ""]}, "none of them empty"),
        ({"choices": "AB"}, "choices is 'AB'"),
        ({"answer": 2}, "answer is 2; give the number of a choice, 0 to 1, or its text"),
        ({"answer": -1}, "answer is -1"),
        ({"answer": True}, "answer is True"),
        ({"answer": "five"}, "answer is 'five'"),
        ({"choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}, "answerKey is 'C'"),
        ({"endings": ["a", "b"], "ctx_a": "x", "ctx_b": "", "activity_label": "y", "label": ""}, "answer is ''"),
    ],
)
def test_wrong_records_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        question_of({"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1} | changes)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InputError, match=r"the field 'choices' is missing \(there are question, answer\)"):
        question_of({"question": "2 + 2 =", "answer": 1})
