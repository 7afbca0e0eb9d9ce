"""Special tokens found in text: where each stands, and the white space that it takes with it.

There may be ten thousand of them, and a text may be white space for a million characters, or nothing but the sign that
they all begin with. So they are put into a *trie* once: a table from their first characters to tables of what follows,
down to whole tokens. A regular expression of their first two characters names the places to look at, and from each the
trie is followed as far as the text goes with it. That takes a step a character, however many tokens there are.

Where several tokens fit, the one that begins first counts, and of those the longest; it is sought on behind its end.
A token may be found as a *whole word* alone, between characters that belong to no word. And it may *strip* white space
on its left, on its right, or on both sides. These are the rules of Hugging Face's `tokenizers`, in this order.

Source: Fredkin, "Trie Memory" (1960), for the trie.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import regex

# Unicode's white space; Python's has four control characters more.
WHITE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
WORD = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")  # what a word consists of, to Unicode
SIDES = "left", "right", "both"


class Found(NamedTuple):
    """A special token in a text, from `start` to `end`, with the white space that it takes."""

    start: int
    end: int
    token: str


class SpecialTokens:
    """Finds special tokens in text.

    Args:
        tokens: their texts.
        strips: those that take white space with them, with the side: "left", "right" or "both".
        whole_words: those that are found only where no word goes on on either side.
    """

    def __init__(
        self, tokens: Collection[str], strips: Mapping[str, str] | None = None, whole_words: Collection[str] = ()
    ):
        strips = strips or {}
        self.left = {token for token in tokens if strips.get(token) in ("left", "both")}
        self.right = {token for token in tokens if strips.get(token) in ("right", "both")}
        self.whole_words = {token for token in tokens if token in whole_words}
        # Whether one reaches over a place where words may be cut: before a space, and on both sides of a line end.
        self.spaced = any("▁" in token[1:] or "\n" in token for token in tokens)
        self.longest = max(map(len, tokens), default=1)
        self.trie: dict[str, Any] = {}
        for token in tokens:
            node = self.trie
            for character in token:
                node = node.setdefault(character, {})
            node[""] = token
        self.beginnings = re.compile("|".join(map(self._beginning, self.trie))) if tokens else None

    def _beginning(self, first: str) -> str:
        """A pattern of the first two characters of the tokens with a given first one, or of that where it is one."""
        seconds = self.trie[first]
        return re.escape(first) + ("" if "" in seconds else f"[{''.join(map(re.escape, seconds))}]")

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Start, end and text of each token, the longest of those that begin first, without regard to its flags."""
        place = 0
        while self.beginnings and (match := self.beginnings.search(text, place)):
            start = end = match.start()
            node, token = self.trie, None
            while end < len(text) and (node := node.get(text[end], {})):
                end += 1
                token = node.get("", token)
            if token is None:
                place = start + 1
            else:
                place = start + len(token)
                yield start, place, token

    def cut(self, text: str, before: str = "", more: bool = False) -> tuple[list[Found], int]:
        """The tokens in the start of `text` that nothing can change that may follow it, and where that start ends.

        Where `more` is false, nothing follows, and it is all of `text`. `before`: the character before `text`, if any.
        """
        found: list[Found] = []
        taken = 0  # where the token before has ended, with its white space
        passed = (0, 0)  # the last place where a token stands that counts for none: nothing begins within it
        # What begins before here is whole, as is any longer token that it begins, and the character behind it is known.
        settled = max(0, len(text) - self.longest + (not self.whole_words)) if more else len(text)
        for start, end, token in self.find(text):
            if start >= settled:
                break
            if token in self.whole_words:
                previous, following = text[start - 1 : start] or before, text[end : end + 1]
                if (previous and WORD.match(previous)) or (following and WORD.match(following)):
                    passed = start, end
                    continue
            if token in self.left:
                start = taken + len(text[taken:start].rstrip(WHITE))
            if token in self.right:
                end = white_end(text, end)
                if more and (end > settled or end == len(text)):  # it may go on, and tokens may be found in it
                    settled = start
                    break
            if start < end:  # else all of it is white space that the token before has taken
                found.append(Found(start, end, token))
            taken = end
        settled = max(settled, taken)
        if more and self.left:  # a token may follow that takes the white space before it
            settled = taken + len(text[taken:settled].rstrip(WHITE))
        return found, passed[0] if passed[0] < settled < passed[1] else settled


NOT_WHITE = re.compile(f"[^{WHITE}]")


def white_end(text: str, start: int) -> int:
    """Where the white space ends that begins at `start`."""
    match = NOT_WHITE.search(text, start)
    return match.start() if match else len(text)
