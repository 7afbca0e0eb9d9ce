"""Questions about texts in SQuAD's JSON, and the windows in which a model looks for their answers.

A window is a question and as much of its context as fits, in the frame of the model's family (frames.py). A longer
context gives several windows, whose starts are `stride` tokens apart, up to one that reaches its end:

    [CLS] question [SEP] context[0 : room]               [SEP]
    [CLS] question [SEP] context[stride : stride + room] [SEP] ...

An answer is marked by its first and its last token. In a window that does not hold all of it, and for a question
without an answer, both are [CLS]. Places of tokens are those in the *original* context (`encode_with_offsets`),
whatever the tokenizer changes, so that the answer is context[start of the first : end of the last], letter by letter.
Where an answer begins or ends within a token ("12" in "1234"), the tokens around it are learnt, and it is counted; one
that does not stand where its file says is left out, and counted.

Source: Rajpurkar et al., "SQuAD" (2016, arXiv:1606.05250); Devlin et al.'s run_squad.py for the windows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm.counted import counted
from minillm.data.frames import Frame
from minillm.errors import InputError
from minillm.files import check_is_file
from minillm.tokenizers import Tokenizer

Span = tuple[int, int]
ONE = {  # of each case that is counted, its name where it occurs once
    "cut questions": "cut question",
    "answers that do not stand where they should": "answer that does not stand where it should",
    "answers that begin or end within a token": "answer that begins or ends within a token",
    "questions without an answer": "question without an answer",
    "windows without their answer": "window without its answer",
    "answers cut by every window": "answer cut by every window",
}


class Question(NamedTuple):
    """A question about a context, with its right answers, each with its start there; none if it has no answer."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the right answers."""
        return tuple(text for text, _ in self.answers)


class Answer(NamedTuple):
    """The first and the last token of an answer in its context; `aligned` if they are the answer, letter by letter."""

    first: int
    last: int
    aligned: bool


class Window:
    """A question and a part of its context, in their frame.

    question: its number. ids, types (T,): of each token, and the text that it is of. offset: the place of the first
    token of the context. places: for each token, where it stands in the original context, None outside of it. cls: the
    position of [CLS]. first, last: the positions of the answer, [CLS] if the window has none.
    """

    def __init__(
        self, question: int, frame: Frame, asked: Sequence[int], context: EncodedContext, start: int, end: int
    ):
        self.question, self.start, self.end = question, start, end
        self.ids, self.types = frame.around(asked, context.ids[start:end])
        self.cls = frame.cls(len(self.ids))
        self.offset = len(frame.before) + len(asked) + len(frame.between)
        self.places: list[Span | None] = [None] * len(self.ids)
        self.places[self.offset : self.offset + end - start] = context.places[start:end]
        self.first = self.last = self.cls
        self.is_whole = np.zeros(len(self.ids), bool)  # (T,), True where no other window has more context around

    def mark(self, answer: Answer | None) -> None:
        """Set the positions of the answer, if all of it is in the window."""
        if answer is not None and self.start <= answer.first and answer.last < self.end:
            self.first, self.last = (self.offset + place - self.start for place in (answer.first, answer.last))

    @property
    def has_answer(self) -> bool:
        """True if the answer, all of it, is in the window."""
        return self.first != self.cls

    def text(self, context: str, first: int, last: int) -> str:
        """The original text from one position of the window to another, both in the context."""
        start, end = self.places[first], self.places[last]
        assert start is not None
        assert end is not None
        return context[start[0] : end[1]]


class EncodedContext:
    """A context's ids, and the place of each in it, without the white space that a token begins with."""

    def __init__(self, context: str, tokenizer: Tokenizer):
        self.context = context
        self.ids, places = tokenizer.encode_with_offsets(context)
        self.places = [_trimmed(context, *place) for place in places]

    def find(self, text: str, start: int) -> Answer | None:
        """The tokens of an answer that begins at a character; None if it does not stand there, or has no token."""
        text, start = text.rstrip(), start + len(text) - len(text.lstrip())
        text = text.lstrip()
        end = start + len(text)
        if not text or self.context[start:end] != text:
            return None
        tokens = [number for number, (a, b) in enumerate(self.places) if a < end and b > start]
        if not tokens:
            return None
        first, last = tokens[0], tokens[-1]
        return Answer(first, last, (self.places[first][0], self.places[last][1]) == (start, end))


def _trimmed(text: str, start: int, end: int) -> Span:
    while start < end and text[start].isspace():
        start += 1
    return start, end


class Windows:
    """The windows of questions, and how many there are of which kind.

    length: tokens of the longest window, its frame included; stride: tokens between the starts of two windows.
    Questions that leave no room for a context are cut to `max_question` tokens first.
    Raises: InputError for a length with no room for a context, or a stride that would leave tokens out.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        tokenizer: Tokenizer,
        frame: Frame,
        length: int,
        stride: int,
        max_question: int = 64,
    ):
        self.questions, self.length, self.stride = questions, length, stride
        self.windows: list[Window] = []
        self.counts: Counter[str] = Counter()
        around = len(frame.around([], [])[0])
        if stride < 1 or length - around - max_question < stride:
            raise InputError(
                f"Windows: a window of length={length} has {around} special tokens, max_question={max_question} tokens "
                f"of the question and {length - around - max_question} of the context, and the next begins "
                f"stride={stride} tokens later; so that no token is left out, give a length of at least "
                f"{around + max_question + max(stride, 1)}, or a smaller stride or max_question"
            )
        known: dict[str, EncodedContext] = {}
        for number, question in enumerate(questions):
            if question.context not in known:
                known = {question.context: EncodedContext(question.context, tokenizer)}  # they come one after another
            self._add(number, question, known[question.context], tokenizer, frame, length, stride, max_question)

    def _add(
        self,
        number: int,
        question: Question,
        context: EncodedContext,
        tokenizer: Tokenizer,
        frame: Frame,
        length: int,
        stride: int,
        max_question: int,
    ) -> None:
        asked = tokenizer.encode(question.question.strip())
        self.counts["cut questions"] += len(asked) > max_question
        asked = asked[:max_question]
        room = length - len(frame.around(asked, [])[0])
        answer = context.find(*question.answers[0]) if question.answers else None
        if question.answers and answer is None:
            self.counts["answers that do not stand where they should"] += 1
            return
        self.counts["answers that begin or end within a token"] += answer is not None and not answer.aligned
        self.counts["questions without an answer"] += answer is None
        windows = [
            Window(number, frame, asked, context, start, end) for start, end in cuts(len(context.ids), room, stride)
        ]
        for window in windows:
            window.mark(answer)
        self.counts["windows without their answer"] += sum(not window.has_answer for window in windows)
        self.counts["answers cut by every window"] += answer is not None and not any(w.has_answer for w in windows)
        _mark_whole(windows)
        self.windows += windows

    @cached_property
    def of_question(self) -> dict[int, list[int]]:
        """The numbers of the windows of each question."""
        found: dict[int, list[int]] = {}
        for number, window in enumerate(self.windows):
            found.setdefault(window.question, []).append(number)
        return found

    def summary(self) -> str:
        """The numbers of questions and windows, and of the cases that were counted."""
        cases = [counted(count, ONE[what], what) for what, count in self.counts.items() if count]
        text = (
            f"{counted(len(self.questions), 'question')} in {counted(len(self.windows), 'window')} of at most "
            f"{self.length} tokens, {self.stride} apart"
        )
        return f"{text} ({', '.join(cases)})" if cases else text


def cuts(length: int, room: int, stride: int) -> Iterator[Span]:
    """Start and end of the windows over so many tokens; the last one reaches the end."""
    start = 0
    while True:
        yield start, min(length, start + room)
        if start + room >= length:
            return
        start += stride


def _mark_whole(windows: Sequence[Window]) -> None:
    """Mark each token of the context in the window that has the most context on both sides of it."""
    best: dict[int, tuple[float, Window]] = {}
    for window in windows:
        for place in range(window.start, window.end):
            score = min(place - window.start, window.end - 1 - place) + 0.01 * (window.end - window.start)
            if place not in best or score > best[place][0]:
                best[place] = score, window
    for place, (_, window) in best.items():
        window.is_whole[window.offset + place - window.start] = True


# SQuAD's files


def read_squad(path: str | Path) -> list[Question]:
    """The questions of a file in SQuAD's format, version 1 or 2, in their order.

    Raises: InputError for a file that cannot be read, or a part of it that is not in the format, with its place.
    """
    check_is_file("read_squad", path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"read_squad: cannot read {path} ({error}); give a file in SQuAD's JSON") from None
    questions = [
        question
        for number, article in enumerate(_listed(content, "data", str(path)))
        for place, paragraph in enumerate(_listed(article, "paragraphs", f"{path}: data[{number}]"))
        for question in _of_paragraph(paragraph, f"{path}: data[{number}].paragraphs[{place}]")
    ]
    if not questions:
        raise InputError(f"read_squad: {path} has no questions; give a file with data, paragraphs and qas")
    return questions


def _of_paragraph(paragraph: Mapping[str, Any], where: str) -> Iterator[Question]:
    context = _text(paragraph, "context", where)
    for number, asked in enumerate(_listed(paragraph, "qas", where)):
        place = f"{where}.qas[{number}]"
        answers: Iterable[Any] = () if asked.get("is_impossible") else _listed(asked, "answers", place)
        found = []
        for answer in answers:
            start = answer.get("answer_start")
            if not isinstance(start, int) or start < 0:
                raise InputError(f"read_squad: {place}: answer_start is {start!r}; give its first character's place")
            found.append((_text(answer, "text", place), start))
        yield Question(str(asked.get("id", place)), _text(asked, "question", place), context, tuple(found))


def _listed(content: Any, key: str, where: str) -> list[Mapping[str, Any]]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise InputError(f"read_squad: {where} has no list {key!r} of objects; give a file in SQuAD's JSON")
    return found


def _text(content: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(content.get(key), str):
        raise InputError(f"read_squad: {where}: {key} is {content.get(key)!r:.60}; give a text")
    return content[key]
