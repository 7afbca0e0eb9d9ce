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

Sources: the `chat_template` in the files of SmolLM2, Qwen2, Llama 2 and 3, Mistral and Gemma 2; OpenAI for ChatML;
Touvron et al., "Llama 2" (2023, arXiv:2307.09288), section 3.3; Taori et al., "Stanford Alpaca" (2023), whose prompt
stands here with a line end behind "Response:".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from minillm.errors import InputError, did_you_mean
from minillm.generate import end_tokens, generate
from minillm.nn import Decoder
from minillm.text_stream import TextStream
from minillm.tokenizers.base import Tokenizer
from minillm.tokenizers.special import SpecialTokens


class Message(NamedTuple):
    """A message of one side."""

    role: str  # "system" (at the start alone), "user" or "assistant"; Alpaca also has "input"
    content: str


class Part(NamedTuple):
    """A piece of the text of a conversation."""

    text: str
    own: bool = True  # True for the template's own text, False for a message


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

        Raises: InputError where the tokenizer lacks a special token of this template; else as `render`.
        """
        for token in self.special_tokens:
            if token not in tokenizer.special_tokens:
                raise InputError(
                    f"ChatTemplate.encode: the template {self.name!r} needs the special token {token!r}, which the "
                    "tokenizer does not have; give the model's own tokenizer, or another template"
                )
        special = SpecialTokens(self.special_tokens)
        ids: list[int] = []
        ordinary = ""
        for part in self._checked_parts(messages, add_generation_prompt):
            start = 0
            for begin, end, token in special.find(part.text) if part.own else ():
                ids += tokenizer.encode(ordinary + part.text[start:begin])
                ids.append(tokenizer.special_tokens[token])
                ordinary, start = "", end
            ordinary += part.text[start:]
        return ids + tokenizer.encode(ordinary)

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
        yield Part(f"<|im_start|>{role}\n")
        yield Part(content, own=False)
        yield Part("<|im_end|>\n")
    if answer:
        yield Part("<|im_start|>assistant\n")


def llama3(messages: Sequence[Message], answer: bool) -> Iterator[Part]:
    """Llama 3's template (not 3.1's, which adds dates and tools)."""
    yield Part("<|begin_of_text|>")
    for role, content in messages:
        yield Part(f"<|start_header_id|>{role}<|end_header_id|>\n\n")
        yield Part(content.strip(), own=False)
        yield Part("<|eot_id|>")
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
            yield Part(" ")
            yield Part(content.strip(), own=False)
            yield Part(" </s>")


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
            yield Part(content, own=False)
            yield Part("</s>")


def gemma(messages: Sequence[Message], answer: bool) -> Iterator[Part]:
    """Gemma 2's template: the assistant is called "model", and there is no system message."""
    check_turns("gemma", messages)
    yield Part("<bos>")
    for role, content in messages:
        yield Part(f"<start_of_turn>{'model' if role == 'assistant' else role}\n")
        yield Part(content.strip(), own=False)
        yield Part("<end_of_turn>\n")
    if answer:
        yield Part("<start_of_turn>model\n")


def alpaca(messages: Sequence[Message], answer: bool) -> Iterator[Part]:
    """Alpaca's template: an instruction (role "user"), perhaps an "input", and for training the answer.

    No token ends the answer: append the tokenizer's `eos_id` for training.
    """
    roles = tuple(message.role for message in messages)
    if roles not in (order := (("user",), ("user", "input"), ("user", "assistant"), ("user", "input", "assistant"))):
        raise InputError(
            f"ChatTemplate: the template 'alpaca' has messages {', '.join(roles)}; give one of: "
            f"{'; '.join(' '.join(one) for one in order)}"
        )
    context = ", paired with an input that provides further context" if "input" in roles else ""
    yield Part(
        f"Below is an instruction that describes a task{context}. "
        "Write a response that appropriately completes the request."
    )
    titles = {"user": "Instruction", "input": "Input", "assistant": "Response"}
    for role, content in messages:
        yield Part(f"\n\n### {titles[role]}:\n")
        yield Part(content, own=False)
    if answer and roles[-1] != "assistant":
        yield Part("\n\n### Response:\n")


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
        ChatTemplate("alpaca", alpaca, stop_strings=("\n\n### ",), roles=("user", "input", "assistant")),
    )
}
# Special tokens that identify a template; the first entry wins of which a tokenizer has all.
SIGNS = {
    "smollm2": ("<|im_start|>", "<jupyter_start>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
}


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


# Talking


class Conversation:
    """A conversation with a model: its messages, and the model's cache of keys and values."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, template: ChatTemplate, system: str | None = None):
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.messages = [] if system is None else [Message("system", system)]
        self.cache = model.new_cache()
        self.cached_ids: list[int] = []  # the ids that the cache holds

    def say(self, text: str, max_tokens: int = 512, **settings: Any) -> Iterator[str]:
        """Yield the answer to `text`, piece by piece; both then belong to the conversation.

        The settings are those of `generate`. Only new tokens are computed, while all fits into the model's context.
        """
        asked = [*self.messages, Message("user", text)]
        ids = self.template.encode(self.tokenizer, asked)
        common = next((i for i, (a, b) in enumerate(zip(ids, self.cached_ids, strict=False)) if a != b), None)
        kept = min(len(ids) - 1, len(self.cached_ids)) if common is None else common
        for one in self.cache:
            one.length = min(one.length, kept)
        self.cached_ids = ids[:kept]
        stop = [*self.template.stop_ids(self.tokenizer), *end_tokens(self.model)]
        stream = TextStream(self.tokenizer, ids, self.template.stop_strings)
        answer = ""
        for token in generate(self.model, ids, max_tokens, stop=stop, cache=self.cache, **settings):
            if token in stop:
                break
            piece = stream.add(token)
            answer += piece
            if piece:
                yield piece
            if stream.ended:
                break
        if rest := stream.rest():
            answer += rest
            yield rest
        self.messages = [*asked, Message("assistant", answer)]
        # When the window has moved, the cached positions no longer match the text, so the cache is useless.
        fits = len(stream.ids) < self.model.config.context
        self.cached_ids = stream.ids[: self.cache[0].length] if fits else []
