"""Find the answer to a question in a text: a head marks its first and its last token (data/squad.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minillm.autograd import Tensor
from minillm.data.frames import frame_of
from minillm.data.labelled import held_out_share
from minillm.data.squad import Question, Windows, read_squad
from minillm.errors import InputError
from minillm.evaluation.heads import answer_questions, inputs_of, longest
from minillm.parallel.objective import Batch
from minillm.tokenizers import Tokenizer
from minillm.training.tasks.heads import HeadOptions, HeadTask, checksum_of, models_of

SHOWN = 4  # held-out questions of a preview
HEAD = "ForQuestionAnswering"


@dataclass(frozen=True)
class QAOptions(HeadOptions):
    """Settings of question answering."""

    validation: str | None = None
    """File with the questions of the validation; by default a share of the contexts of --data is held out."""
    length: int = 384
    """Tokens of the longest window, with question and special tokens; at most the model's context."""
    stride: int | None = None
    """Tokens between the starts of two windows of a context; by default 128, or half of the context that fits into a
    window where that is less."""
    max_question: int | None = None
    """Tokens that are read of a question; by default 64, or a sixth of the window where that is less."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("length", "stride", "max_question"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"train: {name} is {getattr(self, name)}; give 1 or more")

    def windows(self, questions: Sequence[Question], tokenizer: Tokenizer, family: str, shape: Any) -> Windows:
        """The windows of questions, for a model of this family and shape.

        Raises: InputError as `Windows`.
        """
        frame, length = frame_of(tokenizer, family), longest(shape, self.length)
        asked = max(1, min(64, length // 6)) if self.max_question is None else self.max_question
        room = length - len(frame.around([], [])[0]) - asked  # for the context
        stride = max(1, min(128, room // 2)) if self.stride is None else self.stride
        return Windows(questions, tokenizer, frame, length, stride, asked)


class QATask(HeadTask):
    """Questions in windows over their contexts; the loss is the cross-entropy of starts and ends, in nats for each.

    Contexts are held out whole, with all their questions.
    """

    name = "qa"
    Options = QAOptions
    head = HEAD
    models: ClassVar = models_of(HEAD, xlnet=f"XLNet{HEAD}Simple")

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        questions = read_squad(config.data)
        parts = (
            divide(questions, config.validation_fraction)
            if self.options.validation is None
            else (questions, read_squad(self.options.validation))
        )
        self.prepare(tokenizer, (text for one in parts[0] for text in (one.question, one.context)))
        shape = self.shape(config, self.tokenizer)
        self.parts = [self.options.windows(part, self.tokenizer, config.architecture, shape) for part in parts]
        for what, part in zip(("train on", "validate with"), self.parts, strict=True):
            if not part.windows:
                raise InputError(f"train: no question is left to {what}; {part.summary()}")
        self.lengths = [np.array([len(window.ids) for window in part.windows]) for part in self.parts]

    def fingerprint(self) -> str:
        """The numbers of windows, the tokenizer, and a checksum of all ids and answers."""
        windows = [window for part in self.parts for window in part.windows]
        counts = "+".join(str(len(part.windows)) for part in self.parts)
        checksum = checksum_of([*window.ids, window.first, window.last] for window in windows)
        return f"{counts}-{self.tokenizer.fingerprint()}-{checksum}"

    def summary(self) -> str:
        """The numbers of questions and windows to learn and held out, and of the cases that were counted."""
        return f"to learn: {self.parts[0].summary()}; held out: {self.parts[1].summary()}"

    def made(self, part: int, numbers: np.ndarray) -> Batch:
        """The batch of some windows, with the marks of their answers."""
        windows = [self.parts[part].windows[number] for number in numbers]
        marked = {name: np.array([getattr(window, name) for window in windows]) for name in ("first", "last")}
        return self.padded([(window.ids, window.types) for window in windows]) | marked

    def counts(self, batch: Batch) -> dict[str, float]:
        """The number of starts and ends."""
        return {"loss": 2.0 * len(batch["first"])}

    def sums(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sum of the cross-entropies of starts and ends."""
        inputs = inputs_of(batch)
        ids = inputs.pop("ids")
        return {"loss": model.loss(ids, batch["first"], batch["last"], reduction="sum", **inputs)}

    def measures(self, model: Any, batch: Batch) -> dict[str, tuple[float, float]]:
        """The loss, and the share of windows whose likeliest start and likeliest end are both right."""
        real = np.arange(batch["ids"].shape[1], like=batch["ids"]) < batch["lengths"][:, None]
        logits = [np.where(real, one.data, -np.inf) for one in model(**inputs_of(batch))]
        right = [one.argmax(-1) == batch[name] for one, name in zip(logits, ("first", "last"), strict=True)]
        both = float((right[0] & right[1]).sum())
        return {**super().measures(model, batch), "both_right": (both, float(len(batch["first"])))}

    def preview(self, model: Any, step: int) -> Iterator[tuple[str, str]]:
        """Held-out questions, the answer that the model finds in all windows, and the right one."""
        for question, answer in answer_questions(model, self.tokenizer, self.parts[1], SHOWN):
            right = question.texts[0] if question.answers else "no answer"
            yield f"{question.question}\n", f"-> {answer.text!r}; right is {right!r}"


def divide(questions: Sequence[Question], fraction: float) -> tuple[list[Question], list[Question]]:
    """The questions to train on, and those held out: all questions of about this share of the contexts.

    Raises: InputError if either would be empty.
    """
    shares = {question.context: held_out_share(question.context) for question in questions}
    limit = max(fraction, min(shares.values()))
    train = [question for question in questions if shares[question.context] > limit]
    held = [question for question in questions if shares[question.context] <= limit]
    if not train:
        raise InputError("train: all questions are about one context; give several, or --validation with another file")
    return train, held
