"""Text from tokens as they come: a piece is shown as soon as no later token can change it.

A character may span several tokens, and so may a stop string; text that may yet become one is held back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from minillm.errors import InputError


class TextCoder(Protocol):
    """The methods of a tokenizer that TextStream needs. `decode_settled` is optional: the text that cannot change."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class TextStream:
    """Turns tokens into text as they come, and holds back text that may yet change.

    `ended` is true after a stop string, no part of which is returned.
    """

    def __init__(self, tokenizer: TextCoder, ids: Sequence[int], stop_strings: Sequence[str] = ()):
        if isinstance(stop_strings, str) or not all(isinstance(string, str) for string in stop_strings):
            raise InputError(f"generate_text: stop_strings is {stop_strings!r}; give a list of texts, such as ['END']")
        if not all(stop_strings):
            raise InputError("generate_text: a stop string is empty; give at least one character")
        self.tokenizer, self.ids, self.stop_strings = tokenizer, list(ids), stop_strings
        text = tokenizer.decode(self.ids)
        # Start of the new text: before a character that the prompt has begun, since all of it is to be shown.
        self.start = max(len(self._settled()), len(text.rstrip("\ufffd")))
        self.text, self.shown, self.ended = text[self.start :], 0, False

    def add(self, token: int) -> str:
        """Add a token; returns the text that became certain."""
        self.ids.append(token)
        self.text = self.tokenizer.decode(self.ids)[self.start :]
        if (end := _first_of(self.stop_strings, self.text, self.shown)) is not None:
            self.text, self.ended = self.text[:end], True
            return self.rest()
        complete = self._settled()[self.start :]
        return self._show(len(complete) - _possible_beginning(self.stop_strings, complete))

    def _settled(self) -> str:
        """The text of all tokens without the part that later tokens may change, such as an incomplete character."""
        settled = getattr(self.tokenizer, "decode_settled", None)
        return settled(self.ids) if settled else self.tokenizer.decode(self.ids).rstrip("\ufffd")

    def rest(self) -> str:
        """The text that was held back, after the last token."""
        return self._show(len(self.text))

    def _show(self, end: int) -> str:
        piece = self.text[self.shown : end]
        self.shown = max(self.shown, end)
        return piece


def _first_of(strings: Sequence[str], text: str, start: int) -> int | None:
    """The position of the first of the strings, at `start` or after it."""
    return min((place for string in strings if (place := text.find(string, start)) >= 0), default=None)


def _possible_beginning(strings: Sequence[str], text: str) -> int:
    """The length of the longest suffix of the text that is a prefix of one of the strings."""
    lengths = (n for string in strings for n in range(min(len(string) - 1, len(text)), 0, -1))
    return max((n for n in lengths if any(text.endswith(string[:n]) for string in strings)), default=0)
