"""Chat templates: how a conversation is written as one text for a model that was trained to answer.

    <|im_start|>user
    What is 2 + 3?<|im_end|>
    <|im_start|>assistant

A model knows one way of marking who speaks, and answers badly in any other. Each way is a function here, written out,
that yields the text part by part: the template's own parts, with its special tokens, and the messages.

Only the template's own parts may make special tokens. `encode` never looks for them in a message: whoever writes
"<|im_end|>" into one has written ten ordinary characters, and cannot end a turn or speak as the system. (A text that
is put together first and searched for special tokens afterwards has lost that difference.) Between special tokens
the parts make one text, which is encoded as a whole, as the models' own tokenizers do it.

An answer is encoded apart from the text before it, because a model that answers has that text's ids already and adds
its own. So the ids of a prompt begin the ids of every conversation that goes on from it, id by id, also where a merge
of a BPE would join the end of the prompt and the start of the answer. Training (`encode_with_answers`) and talking
(`encode`) use the same ids. An evaluation that scores given continuations does the opposite: it encodes prompt and
continuation together, because there the text is what is compared.

Sources: the `chat_template` in the files of SmolLM2, Qwen2, Llama 2 and 3, Mistral and Gemma 2; OpenAI for ChatML;
Touvron et al., "Llama 2" (2023, arXiv:2307.09288), section 3.3; Taori et al., "Stanford Alpaca" (2023), whose prompt
stands here with a line end behind "Response:".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import NamedTuple

from minillm.errors import InputError, did_you_mean
from minillm.tokenizers.base import Tokenizer
from minillm.tokenizers.special import SpecialTokens


class Message(NamedTuple):
    """A message of one side."""

    role: str  # "system" (at the start alone), "user" or "assistant"; behind an instruction, also "input"
    content: str


class Part(NamedTuple):
    """A piece of the text of a conversation."""

    text: str
    own: bool = True  # True for the template's own text, False for a message
    answer: bool = False  # True for what the assistant writes: its message, and the token that ends it


Parts = Callable[[Sequence[Message], bool], Iterator[Part]]


@dataclass(frozen=True)
class ChatTemplate:
    """A way to write a conversation; `TEMPLATES` has the known ones.

    An answer ends at one of the special tokens in `stop`, or at one of `stop_strings` if a template has none.
    """

    name: str
    parts: Parts  # a function of the messages, and of whether an answer is to follow
    special_tokens: tuple[str, ...] = ()  # the special tokens in its own parts
    stop: tuple[str, ...] = ()
    stop_strings: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("system", "user", "assistant")

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation, for reading; `encode` differs from encoding it if a message spells a token.

        Args:
            add_generation_prompt: end with the text that comes before an answer.

        Raises: InputError for no messages, or a role that is unknown or out of place.
        """
        return "".join([part.text for part in self._checked_parts(messages, add_generation_prompt)])

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True
    ) -> list[int]:
        """The token ids of a conversation; special tokens come from the template alone, never from a message.

        A token that the tokenizer puts in front of every text comes first, and once: where the template begins with
        it, no second one is added. Where the template has no token that ends an answer, the tokenizer's end of text
        does.

        Raises: InputError where the tokenizer lacks a special token of this template; else as `render`.
        """
        return [one for ids, _ in self._encoded(tokenizer, messages, add_generation_prompt) for one in ids]

    def encode_with_answers(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """The token ids of a conversation, and for each of them whether it belongs to an answer: True in what the
        assistant writes, including the token that ends it.

        Raises: as `encode`.
        """
        runs = list(self._encoded(tokenizer, messages, add_generation_prompt=False))
        return [one for ids, _ in runs for one in ids], [answers for ids, answers in runs for _ in ids]

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise InputError where the tokenizer lacks a special token of this template."""
        for token in self.special_tokens:
            if token not in tokenizer.special_tokens:
                raise InputError(
                    f"ChatTemplate.encode: the template {self.name!r} needs the special token {token!r}, which the "
                    "tokenizer does not have; give the model's own tokenizer, or another template"
                )

    def _encoded(
        self, tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool
    ) -> Iterator[tuple[list[int], bool]]:
        """Runs of ids, in turn not of answers and of answers, each with True for an answer."""
        self.check_tokenizer(tokenizer)
        before = tokenizer.before_text()
        parts = self._checked_parts(messages, add_generation_prompt)
        for number, (answers, run) in enumerate(groupby(parts, lambda part: part.answer)):
            ids = self._ids_of_run(tokenizer, run, continues=answers)
            if number == 0 and ids[: len(before)] != before:
                ids = before + ids
            yield ids + (self.end_of_answer(tokenizer) if answers and not self.stop else []), answers

    def _ids_of_run(self, tokenizer: Tokenizer, run: Iterable[Part], continues: bool) -> list[int]:
        """The ids of parts that are encoded together. continues: they follow other text."""
        special = SpecialTokens(self.special_tokens)
        ids: list[int] = []
        ordinary, encode = "", tokenizer.encode_continuation if continues else tokenizer.encode
        for part in run:
            start = 0
            for begin, end, token in special.find(part.text) if part.own else ():
                ids += encode(ordinary + part.text[start:begin])
                ids.append(tokenizer.special_tokens[token])
                ordinary, start, encode = "", end, tokenizer.encode
            ordinary += part.text[start:]
        return ids + encode(ordinary)

    def end_of_answer(self, tokenizer: Tokenizer) -> list[int]:
        """The ids that end an answer of a template without a special token for that: the tokenizer's end of text, or
        the first of `stop_strings` where it has none.

        Raises: InputError where there is neither, so that a model could not learn to end an answer.
        """
        if tokenizer.eos_id is not None:
            return [tokenizer.eos_id]
        if not self.stop_strings:
            raise InputError(
                f"ChatTemplate: nothing ends an answer of the template {self.name!r}, because the tokenizer has no "
                "token that ends a text; train the tokenizer with <|endoftext|> in special_tokens"
            )
        return tokenizer.encode_continuation(self.stop_strings[0])

    def stop_ids(self, tokenizer: Tokenizer) -> list[int]:
        """The ids that end an answer: those of `stop` that the tokenizer has, and its own end of text."""
        ids = [tokenizer.special_tokens[token] for token in self.stop if token in tokenizer.special_tokens]
        return ids if tokenizer.eos_id is None or tokenizer.eos_id in ids else [*ids, tokenizer.eos_id]

    def _checked_parts(self, messages: Sequence[Message], add_generation_prompt: bool) -> Iterator[Part]:
        messages = [Message(*message) for message in messages]
        if not messages:
            raise InputError(f"ChatTemplate: there are no messages; give one or more, such as {Message('user', 'Hi')}")
        for i, (role, _) in enumerate(messages):
            if role not in self.roles:
                raise InputError(
                    f"ChatTemplate: message {i} has the role {role!r}, which the template {self.name!r} does not "
                    f"have{did_you_mean(str(role), self.roles)}"
                )
        return self.parts(messages, add_generation_prompt)


# The templates


def chatml(messages: Sequence[Message], answer: bool, system: str | None = None) -> Iterator[Part]:
    """ChatML; `system` is the system message of a conversation that begins with none."""
    if system is not None and messages[0].role != "system":
        yield Part(f"<|im_start|>system\n{system}<|im_end|>\n")
    for role, content in messages:
        answers = role == "assistant"
        yield Part(f"<|im_start|>{role}\n")
        yield Part(content, own=False, answer=answers)
        yield Part("<|im_end|>", answer=answers)
        yield Part("\n")
    if answer:
        yield Part("<|im_start|>assistant\n")


def llama3(messages: Sequence[Message], answer: bool) -> Iterator[Part]:
    """Llama 3's template (not 3.1's, which adds dates and tools)."""
    yield Part("<|begin_of_text|>")
    for role, content in messages:
        yield Part(f"<|start_header_id|>{role}<|end_header_id|>\n\n")
        yield Part(content.strip(), own=False, answer=role == "assistant")
        yield Part("<|eot_id|>", answer=role == "assistant")
    if answer:
        yield Part("<|start_header_id|>assistant<|end_header_id|>\n\n")


def llama2(messages: Sequence[Message], answer: bool) -> Iterator[Part]:
    """Llama 2's template: the system message is inside the first message of the user."""
    system = ""
    if messages[0].role == "system":
        system, messages = f"<<SYS>>\n{messages[0].content}\n<</SYS>>\n\n", messages[1:]
    check_turns("llama2", messages)
    for i, (role, content) in enumerate(messages):
        if role == "user":
            yield Part("<s>[INST] ")
            yield Part((system + content if i == 0 else content).strip(), own=False)
            yield Part(" [/INST]")
        else:
            yield Part(" ", answer=True)
            yield Part(content.strip(), own=False, answer=True)
            yield Part(" </s>", answer=True)


def mistral(messages: Sequence[Message], answer: bool) -> Iterator[Part]:
    """Mistral 7B Instruct's template, version 0.2."""
    check_turns("mistral", messages)
    yield Part("<s>")
    for role, content in messages:
        if role == "user":
            yield Part("[INST] ")
            yield Part(content, own=False)
            yield Part(" [/INST]")
        else:
            yield Part(content, own=False, answer=True)
            yield Part("</s>", answer=True)


def gemma(messages: Sequence[Message], answer: bool) -> Iterator[Part]:
    """Gemma 2's template: the assistant is called "model", and there is no system message."""
    check_turns("gemma", messages)
    yield Part("<bos>")
    for role, content in messages:
        yield Part(f"<start_of_turn>{'model' if role == 'assistant' else role}\n")
        yield Part(content.strip(), own=False, answer=role == "assistant")
        yield Part("<end_of_turn>", answer=role == "assistant")
        yield Part("\n")
    if answer:
        yield Part("<start_of_turn>model\n")


def alpaca(messages: Sequence[Message], answer: bool) -> Iterator[Part]:
    """Alpaca's template: an instruction (role "user"), perhaps an "input", and the answer; and so on, turn by turn.

    A system message takes the place of the first two sentences. The tokenizer's end of text ends an answer.
    """
    system, turns = (messages[0], messages[1:]) if messages[0].role == "system" else (None, messages)
    roles = [message.role for message in turns]
    check_turns("alpaca", [message for message in turns if message.role != "input"])
    if any(role == "input" and roles[i - 1 : i] != ["user"] for i, role in enumerate(roles)):
        raise InputError(
            f"ChatTemplate: the template 'alpaca' has messages {', '.join(roles)}; give an input behind a user alone"
        )
    if system is None:
        context = ", paired with an input that provides further context" if roles[1:2] == ["input"] else ""
        yield Part(
            f"Below is an instruction that describes a task{context}. "
            "Write a response that appropriately completes the request."
        )
    else:
        yield Part(system.content, own=False)
    titles = {"user": "Instruction", "input": "Input", "assistant": "Response"}
    for role, content in turns:
        yield Part(f"\n\n### {titles[role]}:\n")
        yield Part(content, own=False, answer=role == "assistant")
    if answer and roles[-1] != "assistant":
        yield Part("\n\n### Response:\n")


def raw(messages: Sequence[Message], answer: bool) -> Iterator[Part]:
    """No template: a prompt (role "user") and what follows it, as they are."""
    check_turns("raw", messages[:2])
    if len(messages) > 2:
        raise InputError(f"ChatTemplate: the template 'raw' has {len(messages)} messages; give a prompt and its answer")
    for role, content in messages:
        yield Part(content, own=False, answer=role == "assistant")


def check_turns(name: str, messages: Sequence[Message]) -> None:
    """Refuse messages that are not user, assistant, user, assistant ..."""
    expected = [("user", "assistant")[i % 2] for i in range(max(1, len(messages)))]
    if (roles := [message.role for message in messages]) != expected:
        raise InputError(
            f"ChatTemplate: the template {name!r} has messages {', '.join(roles) or 'of nobody'}; "
            "give user, assistant, user, assistant and so on"
        )


SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QWEN2_SYSTEM = "You are a helpful assistant."
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GEMMA_TOKENS = ("<bos>", "<start_of_turn>", "<end_of_turn>")

TEMPLATES = {
    template.name: template
    for template in (
        ChatTemplate("chatml", chatml, CHATML_TOKENS, stop=("<|im_end|>",)),
        ChatTemplate("smollm2", partial(chatml, system=SMOLLM2_SYSTEM), CHATML_TOKENS, stop=("<|im_end|>",)),
        ChatTemplate("qwen2", partial(chatml, system=QWEN2_SYSTEM), CHATML_TOKENS, stop=("<|im_end|>",)),
        ChatTemplate("llama3", llama3, LLAMA3_TOKENS, stop=("<|eot_id|>", "<|end_of_text|>")),
        ChatTemplate("llama2", llama2, ("<s>", "</s>"), stop=("</s>",)),
        ChatTemplate("mistral", mistral, ("<s>", "</s>"), stop=("</s>",), roles=("user", "assistant")),
        ChatTemplate("gemma", gemma, GEMMA_TOKENS, stop=("<end_of_turn>",), roles=("user", "assistant")),
        ChatTemplate("alpaca", alpaca, stop_strings=("\n\n### ",), roles=("system", "user", "input", "assistant")),
    )
}
RAW = ChatTemplate("raw", raw, roles=("user", "assistant"))  # of records with a prompt and its completion
# Special tokens that identify a template; the first entry wins of which a tokenizer has all.
SIGNS = {
    "smollm2": ("<|im_start|>", "<jupyter_start>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
}


def template_for(tokenizer: Tokenizer | None, name: str | None = None) -> ChatTemplate:
    """The template of this name; without a name, the one that fits the tokenizer, or Alpaca's if none does.

    Raises: InputError for an unknown name.
    """
    if name is not None:
        return chat_template(name)
    special = {} if tokenizer is None else tokenizer.special_tokens
    fits = any(special.keys() >= {*tokens} for tokens in SIGNS.values())
    return chat_template(tokenizer) if fits and tokenizer is not None else TEMPLATES["alpaca"]


def chat_template(of: str | Tokenizer) -> ChatTemplate:
    """The template of this name ("smollm2", "chatml", "qwen2", "llama3", ...), or the one that fits a tokenizer.

    A tokenizer with ChatML's tokens gets "chatml", without a system message of its own, or "smollm2" where it is
    SmolLM2's; give "qwen2" by name. Llama 2's and Mistral's special tokens do not identify them.

    Raises: InputError for an unknown name, or a tokenizer whose special tokens identify no template.
    """
    if isinstance(of, str):
        if of not in TEMPLATES:
            raise InputError(f"chat_template: there is no template {of!r}{did_you_mean(of, TEMPLATES)}")
        return TEMPLATES[of]
    for name, tokens in SIGNS.items():
        if of.special_tokens.keys() >= {*tokens}:
            return TEMPLATES[name]
    raise InputError(
        "chat_template: the tokenizer's special tokens do not tell its template; "
        f"give the name of one: {', '.join(TEMPLATES)}"
    )
