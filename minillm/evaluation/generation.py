"""Answers that a model writes: generated greedily up to a stop string, and compared with the right ones.

    exact_match      the answer is one of the right ones, letter by letter, without white space around it
    squad_exact      the same after SQuAD's normalisation: lower case, no punctuation, no a, an, the
    f1               the overlap of the words of both, after that normalisation; the best of the right answers

Source: `generate_until` and `exact_match` of lm-evaluation-harness; the official script of SQuAD (squad.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from minillm.errors import InputError
from minillm.evaluation.intervals import Measure, mean, share
from minillm.evaluation.likelihood import BATCH_TOKENS, Progress
from minillm.evaluation.squad import best_of, exact_match, f1
from minillm.generate import Sequences, evaluating, stop_ids
from minillm.nn import Decoder
from minillm.text_stream import TextStream
from minillm.tokenizers import Tokenizer

STOP = "\n"


class Exercise(NamedTuple):
    """A prompt with the answers that are right."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """The measures of a model's answers, and the texts that it wrote."""

    measures: dict[str, Measure]  # exact_match, squad_exact, f1
    written: list[str]
    cut_prompts: int  # prompts that lost their beginning, since the model's context is too short


def exact(
    model: Decoder,
    tokenizer: Tokenizer,
    exercises: Sequence[Exercise],
    max_tokens: int = 32,
    stop_strings: Sequence[str] = (STOP,),
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Answers:
    """The exact match and F1 of a model's greedy answers.

    Args:
        max_tokens: longest answer.
        stop_strings: an answer ends before the first of these, or at the model's end of text.
        seed: of the interval of F1.

    Raises: InputError for no exercises, or `max_tokens` that leaves no room for a prompt.
    """
    prompts = [exercise.prompt for exercise in exercises]
    written, cut = answers(model, tokenizer, prompts, max_tokens, stop_strings, batch_tokens, progress)
    pairs = [(text, exercise.answers) for text, exercise in zip(written, exercises, strict=True)]
    measures = {
        "exact_match": share([text.strip() in {right.strip() for right in golds} for text, golds in pairs]),
        "squad_exact": share([best_of(exact_match, text, golds) == 1 for text, golds in pairs]),
        "f1": mean([best_of(f1, text, golds) for text, golds in pairs], seed=seed),
    }
    return Answers(measures, written, cut)


def answers(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_tokens: int,
    stop_strings: Sequence[str] = (STOP,),
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> tuple[list[str], int]:
    """The text that a model writes after each prompt, always the likeliest token, and how many prompts were cut.

    Prompts of similar length are computed together. A prompt that leaves no room for an answer loses its beginning, as
    in lm-evaluation-harness.

    Raises: InputError for an empty prompt, or for `max_tokens` that fill the model's context.
    """
    room = model.config.context - max_tokens
    if max_tokens < 1 or room < 1:
        raise InputError(
            f"exact: max_tokens={max_tokens}; give 1 to {model.config.context - 1}, since the model's context is "
            f"{model.config.context} and a prompt needs one token or more"
        )
    before = tokenizer.before_text()
    encoded = [before + tokenizer.encode(prompt) for prompt in prompts]
    if empty := [number for number, ids in enumerate(encoded) if not ids]:
        raise InputError(f"exact: prompt {empty[0]} has no tokens; give at least one character of text")
    written = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda number: -len(encoded[number]))
    done = 0
    with evaluating(model):
        for batch in _batches(order, [min(len(ids), room) + max_tokens for ids in encoded], batch_tokens):
            texts = _written(model, tokenizer, [encoded[number][-room:] for number in batch], max_tokens, stop_strings)
            for number, text in zip(batch, texts, strict=True):
                written[number] = text
            done += len(batch)
            if progress is not None:
                progress(done, len(prompts))
    return written, sum(len(ids) > room for ids in encoded)


def _batches(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield numbers in this order, together as many as `batch_tokens` allows, or one."""
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _written(
    model: Decoder, tokenizer: Tokenizer, prompts: list[list[int]], max_tokens: int, stop_strings: Sequence[str]
) -> list[str]:
    """The texts that follow several prompts. A text that has ended is not computed any further."""
    ends = stop_ids("exact", None, model) | ({tokenizer.eos_id} if tokenizer.eos_id is not None else set())
    streams = [TextStream(tokenizer, prompt, stop_strings) for prompt in prompts]
    written = [""] * len(prompts)
    texts = Sequences("exact", model, prompts)
    for step in range(max_tokens):
        tokens = [int(row.argmax()) for row in texts.next_logits()]
        texts.append(tokens)
        going = []
        for row, (number, token) in enumerate(zip(texts.prompts, tokens, strict=True)):
            stream = streams[number]
            if token not in ends:
                written[number] += stream.add(token)
            if token in ends or step == max_tokens - 1:
                written[number] += "" if stream.ended else stream.rest()
            elif not stream.ended:
                going.append(row)
        if not going:
            break
        texts.select(going)
    return written


def exercise_of(record: Mapping[str, Any]) -> Exercise:
    """The exercise of a record, such as {"prompt": "2 + 2 =", "answer": "4"}.

    `question` may stand for `prompt`; `answer` (or `answers`) may be a list of right ones.

    Raises: InputError that says what is missing or wrong.
    """
    prompt = record.get("prompt", record.get("question"))
    given = record.get("answer", record.get("answers"))
    if not isinstance(prompt, str) or not prompt:
        raise InputError(f"prompt (or question) is {prompt!r:.60}; give a text")
    right = [given] if isinstance(given, str) else given
    if not isinstance(right, list) or not right or not all(isinstance(text, str) for text in right):
        raise InputError(f"answer is {given!r:.60}; give a text, or a list of texts that are right")
    return Exercise(prompt, tuple(right))
