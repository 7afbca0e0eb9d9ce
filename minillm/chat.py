"""Talking with a model that was trained to answer; the templates of a conversation are in chat_templates.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minillm.chat_templates import TEMPLATES as TEMPLATES
from minillm.chat_templates import ChatTemplate, Message
from minillm.chat_templates import chat_template as chat_template
from minillm.generate import end_tokens, generate
from minillm.nn import Decoder
from minillm.text_stream import TextStream
from minillm.tokenizers.base import Tokenizer


class Conversation:
    """A conversation with a model: its messages, and the model's cache of keys and values."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, template: ChatTemplate, system: str | None = None):
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.messages = [] if system is None else [Message("system", system)]
        self.cache = model.new_cache()
        self.cached_ids: list[int] = []  # the ids that the cache holds

    def asked(self, text: str) -> list[Message]:
        """The conversation so far, and a message of the user."""
        return [*self.messages, Message("user", text)]

    def ids_to_read(self, text: str) -> list[int]:
        """The ids that the model is given for an answer to `text`; of more than its context it reads the last."""
        return self.template.encode(self.tokenizer, self.asked(text))

    def say(self, text: str, max_tokens: int = 512, **settings: Any) -> Iterator[str]:
        """Yield the answer to `text`, piece by piece; both then belong to the conversation.

        The settings are those of `generate`. Only new tokens are computed, while all fits into the model's context.
        """
        ids = self.ids_to_read(text)
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
        self.messages = [*self.asked(text), Message("assistant", answer)]
        # When the window has moved, the cached positions no longer match the text, so the cache is useless.
        fits = len(stream.ids) < self.model.config.context
        self.cached_ids = stream.ids[: self.cache[0].length] if fits else []
