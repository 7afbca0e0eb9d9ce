"""Use a model with a head on texts: the classes of each, or the answers to questions about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minillm.autograd import no_grad
from minillm.data.frames import Frame, frame_of, padded
from minillm.data.squad import Question, Window, Windows
from minillm.device import like, to_host
from minillm.evaluation.squad import Found, find_answer
from minillm.tokenizers import Tokenizer

LENGTH = 128  # tokens of the longest text that is classified, unless another is given
BATCH = 32


def family_of(model: Any) -> str:
    """The name of a model's family, that of its file, such as "bert"."""
    return type(model).__module__.rpartition(".")[2]


def padding_of(config: Any, tokenizer: Tokenizer) -> int:
    """The id that fills short texts: the model's, or else the tokenizer's, or else 0."""
    found = getattr(config, "padding_id", tokenizer.pad_id)
    return 0 if found is None else found


def inputs_of(batch: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a model with a head, from a batch that `padded` made."""
    return {"ids": batch["ids"], "token_types": batch.get("types"), "lengths": batch["lengths"]}


def probabilities(logits: np.ndarray) -> np.ndarray:
    """softmax of logits (..., K)."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def classify(
    model: Any, tokenizer: Tokenizer, texts: Sequence[str], max_length: int | None = None, batch_size: int = BATCH
) -> np.ndarray:
    """The probability of each class for each text, (N, K), by a model with a head for texts, in evaluation mode.

    max_length: tokens that are read of a text, with its special tokens; by default 128, or the model's context if less.
    """
    frame = frame_of(tokenizer, family_of(model))
    rows = [framed(tokenizer, frame, text, longest(model.config, max_length)) for text in texts]
    found = np.zeros((len(texts), model.config.labels))
    for chosen in _by_length([len(ids) for ids, _ in rows], batch_size):
        batch = padded([rows[i] for i in chosen], frame, padding_of(model.config, tokenizer))
        found[chosen] = probabilities(_run(model, batch)[0].astype(np.float64))
    return found


def longest(config: Any, max_length: int | None, default: int = LENGTH) -> int:
    """The number of tokens that is read of a text: as given, and not more than the model's context."""
    return min(default if max_length is None else max_length, getattr(config, "context", None) or 1 << 30)


def framed(tokenizer: Tokenizer, frame: Frame, text: str, length: int) -> tuple[list[int], list[int]]:
    """The ids of a text in its frame, cut at its end to `length`, and their types."""
    room = length - len(frame.around([])[0])
    return frame.around(tokenizer.encode(text)[: max(room, 0)])


def answer_questions(
    model: Any, tokenizer: Tokenizer, windows: Windows, count: int | None = None, batch_size: int = BATCH
) -> list[tuple[Question, Found]]:
    """The answers of a model with a head for answers to each question, or to the first `count`, in evaluation mode.

    Questions whose answers do not stand where their file says have no windows, and are left out.
    """
    asked = list(windows.of_question.items())[:count]
    numbers = [number for _, of_one in asked for number in of_one]
    chosen, frame = [windows.windows[number] for number in numbers], frame_of(tokenizer, family_of(model))
    logits = _span_logits(model, chosen, frame, padding_of(model.config, tokenizer), batch_size)
    found, place = [], 0
    for number, of_one in asked:
        end, question = place + len(of_one), windows.questions[number]
        starts, ends = (one[place:end] for one in logits)
        found.append((question, find_answer(question.context, chosen[place:end], starts, ends)))
        place = end
    return found


def _span_logits(
    model: Any, windows: Sequence[Window], frame: Frame, padding_id: int, batch_size: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    starts: list[Any] = [None] * len(windows)
    ends: list[Any] = [None] * len(windows)
    for chosen in _by_length([len(window.ids) for window in windows], batch_size):
        batch = padded([(windows[i].ids, windows[i].types) for i in chosen], frame, padding_id)
        for place, logits in zip((starts, ends), _run(model, batch), strict=True):
            for number, row in zip(chosen, logits, strict=True):
                place[number] = row[: len(windows[number].ids)]
    return starts, ends


def _by_length(lengths: Sequence[int], batch_size: int) -> list[np.ndarray]:
    order = np.argsort(lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _run(model: Any, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The logits of a batch, on the host."""
    weight = model.parameters()[0].data
    arrays = {name: like(array, weight) for name, array in batch.items()}
    with no_grad():
        logits = model(**inputs_of(arrays))
    return tuple(to_host(one.data) for one in (logits if isinstance(logits, tuple) else (logits,)))
