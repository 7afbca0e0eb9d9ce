"""Instructions and conversations with answers, as records, and what a model learns from each.

Four kinds of records are understood, each told by its fields:

| fields                                           | what it is                                                      |
|--------------------------------------------------|-----------------------------------------------------------------|
| `messages`: [{role, content}, ...]               | a conversation; roles system, user and assistant                |
| `conversations`: [{from, value}, ...]            | a conversation; human and gpt are user and assistant            |
| `instruction`, `output` and perhaps `input`      | Alpaca: an instruction, perhaps with an input, and its response |
| `prompt`, `completion`                           | a text and what follows it, as they are, in no chat template;   |
|                                                  | or lists of messages, which make one conversation               |

Every answer of a conversation is learned, with the token that ends it; nothing else is. Prompt and answer are encoded
apart (chat_templates.py says why), and `targets_of` is the one place that shifts ids by one to make targets of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm.chat_templates import RAW, ChatTemplate, Message
from minillm.data.pairs import IGNORED
from minillm.data.records import Records, answer_field, read_records, text_field
from minillm.errors import InputError
from minillm.tokenizers import Tokenizer

ROLES = {role: role for role in ("system", "user", "assistant")} | {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "model", "bot", "chatgpt"), "assistant"),
}


class Instruction(NamedTuple):
    """Messages that end with an answer. raw: they are a prompt and its completion, which stand in no template."""

    messages: tuple[Message, ...]
    raw: bool = False


class Example(NamedTuple):
    """The example made of an instruction: a model learns to write targets[t] after ids[: t + 1], unless it is -100."""

    ids: np.ndarray  # (T,), int64
    targets: np.ndarray  # (T,), int64


# --- records -------------------------------------------------------------------------------------------------------


def read_instructions(path: str | Path) -> Records[Instruction]:
    """Read the instructions of a file; the four kinds may be mixed.

    A record is left out, with what is wrong with it, where a field is missing or is no text, an answer is empty, a role
    is unknown, or no assistant speaks. What comes behind the last answer is left out too: nobody answers it.
    Raises: as `read_records`.
    """
    return read_records(path, parse_instruction)


def parse_instruction(record: Mapping[str, Any]) -> Instruction:
    """The instruction in a record. Raises: InputError that says what is wrong with it."""
    if "messages" in record:
        return Instruction(_answered(parse_messages(record["messages"], "messages")))
    if "conversations" in record:
        return Instruction(_answered(parse_messages(record["conversations"], "conversations", "from", "value")))
    if "instruction" in record:
        asked = [Message("user", text_field(record, "instruction"))]
        given = record.get("input") or ""
        if not isinstance(given, str):
            raise InputError(f"the field 'input' is a {type(given).__name__}; give a text")
        asked += [Message("input", given)] if given.strip() else []
        return Instruction((*asked, Message("assistant", answer_field(record, "output"))))
    if "prompt" in record:
        if isinstance(record["prompt"], list):
            asked = parse_messages(record["prompt"], "prompt")
            return Instruction(_answered([*asked, *parse_messages(record.get("completion"), "completion")]))
        if text_field(record, "prompt") == "":
            raise InputError("the field 'prompt' is empty; `minillm train` is for texts that follow nothing")
        completion = Message("assistant", answer_field(record, "completion"))
        return Instruction((Message("user", record["prompt"]), completion), raw=True)
    raise InputError(
        f"the fields {', '.join(record) or '(none)'} are of no known kind; give instruction and output, messages, "
        "conversations, or prompt and completion"
    )


def parse_messages(given: Any, field: str, role: str = "role", content: str = "content") -> list[Message]:
    """The messages in a list of objects, each with a role and a text. Raises: InputError that names the message."""
    if not isinstance(given, list) or not given:
        raise InputError(f"the field {field!r} is {'empty' if given == [] else 'no list'}; give a list of messages")
    messages = []
    for number, one in enumerate(given):
        try:
            if not isinstance(one, dict):
                raise InputError(f"it is a {type(one).__name__}; give an object with {role} and {content}")
            name = text_field(one, role)
            if name not in ROLES:
                raise InputError(f"there is no role {name!r}; give one of {', '.join(ROLES)}")
            read = answer_field if ROLES[name] == "assistant" else text_field
            messages.append(Message(ROLES[name], read(one, content)))
        except InputError as error:
            raise InputError(f"message {number} of {field!r}: {error}") from None
    return messages


def _answered(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages up to the last answer. Raises: InputError where nobody answers."""
    last = max((number for number, message in enumerate(messages) if message.role == "assistant"), default=None)
    if last is None:
        raise InputError("no assistant speaks in it, so there is nothing to learn")
    return tuple(messages[: last + 1])


# --- which are held out --------------------------------------------------------------------------------------------


def held_out(instructions: Sequence[Instruction], fraction: float) -> np.ndarray:
    """(N,), True for the instructions that are never trained on: `fraction` of them, 1 at least.

    All that ask one thing are on one side: a hash of what comes before the first answer decides, of its letters and
    digits alone, in lower case. So the choice depends neither on the order nor on a seed, and neither repeated nor
    reformatted records are on both sides.
    Raises: InputError for a fraction outside of 0 to 1, or instructions that all ask one thing.
    """
    if not 0 < fraction < 1:
        raise InputError(f"held_out: the fraction is {fraction}; give a share above 0 and below 1, such as 0.1")
    hashes = np.array([_hash_of_question(one) for one in instructions], np.uint64)  # (N,)
    different, counts = np.unique(hashes, return_counts=True)  # sorted
    if len(different) < 2:
        raise InputError(
            f"held_out: all {len(instructions)} records ask one thing, so none can be held out; give other records too"
        )
    wanted = max(1, round(fraction * len(instructions)))
    chosen = min(1 + int(np.searchsorted(np.cumsum(counts), wanted)), len(different) - 1)
    return hashes <= different[chosen - 1]


def _hash_of_question(instruction: Instruction) -> int:
    first = next(i for i, message in enumerate(instruction.messages) if message.role == "assistant")
    words = [re.findall(r"\w+", f"{role} {content}".lower()) for role, content in instruction.messages[:first]]
    return int.from_bytes(hashlib.sha256("\n".join(map(" ".join, words)).encode()).digest()[:8], "big")


# --- ids -----------------------------------------------------------------------------------------------------------


def encode_instruction(instruction: Instruction, tokenizer: Tokenizer, template: ChatTemplate) -> Example:
    """The ids of an instruction in a template, and its targets: those of the answers, with the token that ends each.

    An answer that ends with the text of that token already gets no second one.
    Raises: InputError where the messages do not fit the template, or the tokenizer does not fit it.
    """
    template, messages = _in_template(instruction, template)
    ends = [token for token, i in tokenizer.special_tokens.items() if i in template.stop_ids(tokenizer)]
    ids, answers = template.encode_with_answers(
        tokenizer, [_without_end(message, ends) if message.role == "assistant" else message for message in messages]
    )
    return targets_of(np.array(ids), np.array(answers))


def encode_prompt(instruction: Instruction, tokenizer: Tokenizer, template: ChatTemplate) -> list[int]:
    """The ids that ask for the last answer of an instruction; `chat` and `sample` give a model the same ones."""
    template, messages = _in_template(instruction, template)
    return template.encode(tokenizer, messages[:-1])


def rendered(instruction: Instruction, template: ChatTemplate) -> str:
    """The text of an instruction in a template; empty where its messages do not fit."""
    template, messages = _in_template(instruction, template)
    try:
        return template.render(messages, add_generation_prompt=False)
    except InputError:
        return ""


def targets_of(ids: np.ndarray, answers: np.ndarray) -> Example:
    """Inputs and targets of a text: position t is to tell id t + 1, if that belongs to an answer.

    Shapes: ids (T + 1,), answers (T + 1,), boolean; the example's (T,).
    """
    return Example(ids[:-1], np.where(answers[1:], ids[1:], IGNORED))


def shortened(examples: Sequence[Example], max_length: int) -> tuple[list[int], list[Example]]:
    """The examples cut to their first `max_length` tokens, without those that are left with nothing to learn; and the
    numbers of those that stay."""
    cut = [Example(ids[:max_length], targets[:max_length]) for ids, targets in examples]
    kept = [number for number, example in enumerate(cut) if (example.targets != IGNORED).any()]
    return kept, [cut[number] for number in kept]


def _in_template(instruction: Instruction, template: ChatTemplate) -> tuple[ChatTemplate, list[Message]]:
    """The template that an instruction is written in, and its messages as that template has them."""
    if instruction.raw:
        return RAW, list(instruction.messages)
    messages = list(instruction.messages)
    if "input" not in template.roles and any(message.role == "input" for message in messages):
        asked, given, *rest = messages
        messages = [Message("user", f"{asked.content}\n\n{given.content}"), *rest]
    return template, messages


def _without_end(message: Message, ends: Sequence[str]) -> Message:
    """An answer without the text of the token that ends it, which its template adds."""
    content = message.content
    for end in ends:
        content = content.removesuffix(end)
    return message._replace(content=content)
