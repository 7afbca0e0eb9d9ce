"""Pairs of a better and a worse answer to one prompt, as records, and the ids of both.

Records have the prompt of an instruction (instructions.py), and two answers in the fields `chosen` and `rejected`:

| fields                                                  | what it is                                              |
|---------------------------------------------------------|---------------------------------------------------------|
| `instruction`, perhaps `input`; texts                   | Alpaca: an instruction with two responses               |
| `prompt`, a text; texts                                 | a text and what may follow it, in no chat template      |
| `prompt`, a list of messages; lists of messages, texts  | a conversation and how it may go on                     |
| no prompt; two lists of messages                        | conversations that are equal up to their last messages  |

Only the answers are compared, each with the token that ends it: whatever comes before them is equal in both, earlier
answers of a conversation too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm.chat_templates import ChatTemplate, Message
from minillm.data.instructions import (
    Example,
    Instruction,
    encode_instruction,
    encode_prompt,
    parse_instruction,
    parse_messages,
    shortened,
)
from minillm.data.pairs import IGNORED
from minillm.data.records import Records, answer_field, read_records
from minillm.errors import InputError
from minillm.tokenizers import Tokenizer


class Preference(NamedTuple):
    """Two instructions that differ in their last message, the answer."""

    chosen: Instruction
    rejected: Instruction


class PairExample(NamedTuple):
    """The ids of both, with targets where their last answers are."""

    chosen: Example
    rejected: Example


# --- records -------------------------------------------------------------------------------------------------------


def read_preferences(path: str | Path) -> Records[Preference]:
    """Read the pairs of a file; the kinds of records may be mixed.

    A record is left out, with what is wrong with it, where a field is missing or is no text, an answer is empty, both
    answers are the same, or the conversations differ before their last messages.
    Raises: as `read_records`.
    """
    return read_records(path, parse_preference)


def parse_preference(record: Mapping[str, Any]) -> Preference:
    """The pair in a record. Raises: InputError that says what is wrong with it."""
    for field in ("chosen", "rejected"):
        if not isinstance(record.get(field), list):
            answer_field(record, field)
    pair = Preference(_with_answer(record, "chosen"), _with_answer(record, "rejected"))
    asked, answers = zip(*((one.messages[:-1], one.messages[-1]) for one in pair), strict=True)
    if asked[0] != asked[1]:
        raise InputError("chosen and rejected differ before their last messages; give two answers to one prompt")
    if answers[0] == answers[1]:
        raise InputError("chosen and rejected are the same, so neither is better")
    return pair


def _with_answer(record: Mapping[str, Any], field: str) -> Instruction:
    """The prompt of a record with the answer in a field."""
    answer, prompt = record[field], record.get("prompt")
    if isinstance(answer, list):
        asked = [] if prompt is None else _messages_of_prompt(prompt)
        messages = [*asked, *parse_messages(answer, field)]
        if messages[-1].role != "assistant":
            raise InputError(
                f"the last message of {field!r} is by {messages[-1].role}; give an answer by the assistant"
            )
        if len(messages) < 2:
            raise InputError(f"the field {field!r} has an answer alone; give what it answers, in it or as 'prompt'")
        return Instruction(tuple(messages))
    if isinstance(prompt, list):
        return Instruction((*parse_messages(prompt, "prompt"), Message("assistant", answer)))
    if "instruction" not in record and "prompt" not in record:
        raise InputError(
            f"the fields {', '.join(record)} have no prompt; give instruction, prompt, or conversations as {field!r}"
        )
    return parse_instruction({**record, "output": answer, "completion": answer})


def _messages_of_prompt(prompt: Any) -> list[Message]:
    """The messages of a prompt beside an answer that is a list: a text is what the user says."""
    return [Message("user", prompt)] if isinstance(prompt, str) else parse_messages(prompt, "prompt")


# --- ids -----------------------------------------------------------------------------------------------------------


def encode_preference(pair: Preference, tokenizer: Tokenizer, template: ChatTemplate) -> PairExample:
    """The ids of both conversations in a template; the targets are those of the last answers.

    Raises: as `encode_instruction`.
    """
    begin = len(encode_prompt(pair.chosen, tokenizer, template))  # both begin with the ids of the prompt
    return PairExample(*(_last_answer(encode_instruction(one, tokenizer, template), begin) for one in pair))


def _last_answer(example: Example, begin: int) -> Example:
    """The example with the targets from token `begin` on; position t has that of token t + 1."""
    places = np.arange(len(example.ids))  # (T,)
    return Example(example.ids, np.where(places >= begin - 1, example.targets, IGNORED))


def shortened_pairs(pairs: Sequence[PairExample], max_length: int) -> tuple[list[int], list[PairExample]]:
    """The pairs cut to their first `max_length` tokens, and the numbers of those that stay.

    A pair stays if both answers have a token left: if its prompt is shorter than `max_length`.
    """
    length = max_length - 1  # of inputs, which come without the last token
    (chosen_kept, chosen), (rejected_kept, rejected) = (
        shortened([pair[side] for pair in pairs], length) for side in range(2)
    )
    sides = dict(zip(chosen_kept, chosen, strict=True)), dict(zip(rejected_kept, rejected, strict=True))
    kept = [number for number in range(len(pairs)) if number in sides[0] and number in sides[1]]
    return kept, [PairExample(sides[0][number], sides[1][number]) for number in kept]


def pad_examples(examples: Sequence[Example], padding: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examples of one width: ids (N, T), targets (N, T) and their lengths (N,), with padding on the right.

    What is padding is told by the lengths and by targets of -100, never by an id: the padding id may occur in texts.
    """
    lengths = np.array([len(example.ids) for example in examples])  # (N,)
    ids = np.full((len(examples), lengths.max(initial=0)), padding)  # (N, T)
    targets = np.full_like(ids, IGNORED)  # (N, T)
    for row, example in enumerate(examples):
        ids[row, : lengths[row]], targets[row, : lengths[row]] = example
    return ids, targets, lengths
