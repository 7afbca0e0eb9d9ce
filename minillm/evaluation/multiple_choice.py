"""Multiple choice: a model answers with the choice that it finds most probable after the question.

For the choices a_1 ... a_k of a question q, with log p(a) = log p(delimiter + a | q):

    acc          the choice with the largest log p(a)
    acc_norm     the choice with the largest log p(a) / characters of a      (not ids, and without the delimiter)
    acc_bytes    the choice with the largest log p(a) / bytes of a in UTF-8  (of use where scripts differ)

A longer choice has more ids to pay for, so acc prefers short choices; acc_norm and acc_bytes do not. The first of equal
choices wins. Each accuracy is a share of all questions, with the standard error s / sqrt(n) and Wilson's interval.

Source: lm-evaluation-harness (api/task.py, `process_results`); the records of HellaSwag and of ARC become the prompts
of its tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minillm.errors import InputError
from minillm.evaluation.intervals import Measure, share
from minillm.evaluation.likelihood import BATCH_TOKENS, Likelihood, Progress, log_likelihoods
from minillm.evaluation.perplexity import count_bytes
from minillm.tokenizers import Tokenizer

DELIMITER = " "  # between a question and a choice


class Question(NamedTuple):
    """A question with its choices."""

    context: str
    choices: tuple[str, ...]
    answer: int  # number of the right choice, from 0


class Choices(NamedTuple):
    """The model's choice by each rule: three numbers of choices, and the log-probability of every choice, in nats."""

    acc: int
    acc_norm: int
    acc_bytes: int
    log_probabilities: tuple[float, ...]


@dataclass(frozen=True)
class MultipleChoice:
    """The accuracies of a model, and what it chose."""

    measures: dict[str, Measure]  # acc, acc_norm, acc_bytes
    chosen: list[Choices]  # for each question
    ids: int  # that were scored
    cut_contexts: int  # of how many choices the context lost its beginning, since the model's is too short


def multiple_choice(
    model: Any,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    delimiter: str = DELIMITER,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> MultipleChoice:
    """The accuracy of a model on questions with choices, by log-likelihood.

    Raises: InputError for no questions, and for a choice that has no ids of its own after its question.
    Source: `multiple_choice` of lm-evaluation-harness.
    """
    pairs = [(question.context, delimiter + choice) for question in questions for choice in question.choices]
    found = log_likelihoods(model, tokenizer, pairs, batch_tokens, progress)
    waiting = iter(found)
    chosen = [choose(question.choices, [next(waiting) for _ in question.choices]) for question in questions]
    measures = {
        rule: share([getattr(one, rule) == question.answer for one, question in zip(chosen, questions, strict=True)])
        for rule in ("acc", "acc_norm", "acc_bytes")
    }
    return MultipleChoice(measures, chosen, sum(one.ids for one in found), sum(one.cut > 0 for one in found))


def choose(choices: Sequence[str], found: Sequence[Likelihood]) -> Choices:
    """The choice by each rule; the first of equal ones."""
    nats = np.array([one.log_probability for one in found])
    characters = np.array([len(choice) for choice in choices])
    in_bytes = np.array([count_bytes(choice) for choice in choices])
    acc, acc_norm, acc_bytes = (int(np.argmax(values)) for values in (nats, nats / characters, nats / in_bytes))
    return Choices(acc, acc_norm, acc_bytes, tuple(nats.tolist()))


# --- records -------------------------------------------------------------------------------------------------------


def question_of(record: Mapping[str, Any]) -> Question:
    """The question of a record: one of ours, of HellaSwag, or of ARC.

    - {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}; the answer is the number of a choice, from 0, or its
      text;
    - HellaSwag: ctx_a, ctx_b, activity_label, endings, label, cleaned as its task does;
    - ARC: {"question": ..., "choices": {"text": [...], "label": ["A", ...]}, "answerKey": "A"}, with its prompt
      "Question: ...\\nAnswer:".

    Raises: InputError that says what is missing or wrong.
    """
    if "endings" in record:
        return _hellaswag(record)
    choices = _field(record, "choices")
    if isinstance(choices, Mapping):
        texts, labels = _texts("choices.text", choices.get("text")), _texts("choices.label", choices.get("label"))
        key = _field(record, "answerKey")
        if len(labels) != len(texts) or key not in labels:
            raise InputError(f"answerKey is {key!r}, but the labels of the {len(texts)} choices are {list(labels)}")
        return Question(f"Question: {_text(record, 'question')}\nAnswer:", texts, labels.index(key))
    texts = _texts("choices", choices)
    return Question(_text(record, "question"), texts, _number(_field(record, "answer"), texts))


def _hellaswag(record: Mapping[str, Any]) -> Question:
    context = _text(record, "ctx_a") + " " + _text(record, "ctx_b", empty=True).capitalize()
    endings = _texts("endings", list(map(cleaned, _texts("endings", record["endings"]))))
    label = _field(record, "label")
    number = int(label) if isinstance(label, str) and label.isdecimal() else label
    return Question(cleaned(f"{_text(record, 'activity_label')}: {context}"), endings, _number(number, endings))


def cleaned(text: str) -> str:
    """A text of HellaSwag without the marks of WikiHow: " [title]" ends a sentence, other brackets go."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _field(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise InputError(
            f"the field {name!r} is missing (there are {', '.join(record) or 'none'}); give question, choices and "
            "answer, or a record of HellaSwag or ARC"
        )
    return record[name]


def _text(record: Mapping[str, Any], name: str, empty: bool = False) -> str:
    value = _field(record, name)
    if not isinstance(value, str) or not (value.strip() or empty):
        raise InputError(f"{name} is {value!r:.60}; give a text")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(text, str) and text for text in value):
        raise InputError(f"{name} is {value!r:.60}; give a list of two texts or more, none of them empty")
    return tuple(value)


def _number(answer: Any, choices: tuple[str, ...]) -> int:
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    raise InputError(f"answer is {answer!r}; give the number of a choice, 0 to {len(choices) - 1}, or its text")
