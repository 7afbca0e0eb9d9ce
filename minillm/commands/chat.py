"""`minillm chat`: a conversation with a published model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minillm.commands.common import tell_of_a_cut
from minillm.console import lines_of_input, print_as_it_comes
from minillm.errors import InputError
from minillm.options import Positional, read
from minillm.resolver import open_model
from minillm.tuning import tuned_process


@dataclass(frozen=True)
class Chat:
    """Hold a conversation with a model that was trained to answer; each line is a message."""

    model: Positional[Path]
    """A run directory, a folder with config.json and tokenizer.json, a .gguf file or a LoRA adapter."""
    template: str | None = None
    """Chat template (chatml, llama3, ...) that the model was trained with; by default the one of its tokenizer."""
    system: str | None = None
    """System message, which the model reads before the conversation."""
    max_tokens: int = 512
    """Maximum number of tokens in an answer."""
    temperature: float = 0.7
    """Divides the logits: 0 takes the likeliest token."""
    top_k: int | None = None
    """Choose among the k likeliest tokens only."""
    top_p: float | None = 0.95
    """Choose among the fewest tokens that together have this probability."""
    min_p: float | None = None
    """Choose among the tokens with at least this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that were there before become less likely."""
    seed: int = 0
    """Seed of the random choices; equal seeds and messages give equal answers."""


def chat(arguments: list[str]) -> None:
    """Read messages line by line, and print each answer as it comes."""
    from minillm.chat import Conversation, chat_template
    from minillm.nn import Decoder

    given = read(Chat, "chat", arguments)
    opened = open_model(given.model)
    tokenizer = opened.needed_tokenizer("chat")
    if not isinstance(opened.model, Decoder):
        raise InputError(f"chat: {given.model} is a {type(opened.model).__name__}, which cannot answer; give a decoder")
    if given.template is None and opened.template is None and opened.run is not None:
        raise InputError(
            f"chat: {given.model} is a run of `minillm train` that has learned no conversation; continue a text with "
            f"`minillm sample {given.model}`, or give the --template that it has learned"
        )
    template = (None if given.template else opened.template) or chat_template(given.template or tokenizer)
    conversation = Conversation(opened.model, tokenizer, template, given.system)
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    settings = {name: getattr(given, name) for name in names}
    with tuned_process():
        print(f"{type(conversation.model).__name__}, {template.name}; end with Ctrl-D")
        for number, message in enumerate(lines_of_input("> ")):
            tokens = len(conversation.ids_to_read(message))
            tell_of_a_cut("chat", "the conversation", tokens, opened.model.config.context)
            print_as_it_comes(conversation.say(message, seed=given.seed + number, **settings))
