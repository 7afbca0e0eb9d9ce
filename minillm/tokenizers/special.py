"""Find special tokens in text, with the white space that each absorbs.

There may be ten thousand tokens, and a text may be white space for a million characters, or nothing but the character
that all tokens begin with. So the tokens are put into a *trie* once: a table from first characters to tables of next
characters, down to whole tokens. A regular expression of their first two characters finds the places to look at; from
each, the trie is followed as far as it matches the text. That takes one step per character for any number of tokens.

If several tokens match, the one that begins first wins, and of those the longest; the search continues after its end.
A token may match only as a *whole word*, with no word character on either side. And it may *strip* white space on its
left, on its right, or on both sides. These are the rules of Hugging Face's `tokenizers`, in this order.

Source: Fredkin, "Trie Memory" (1960), for the trie.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import regex

# Unicode's white space; Python's has four control characters more.
WHITE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
WORD = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")  # Unicode's word characters
SIDES = "left", "right", "both"


class Found(NamedTuple):
    """A special token in a text, from `start` to `end`, including the white space that it absorbs."""

    start: int
    end: int
    token: str


class SpecialTokens:
    """Finds special tokens in text.

    Args:
        tokens: their texts.
        strips: the tokens that absorb white space, each with its side: "left", "right" or "both".
        whole_words: the tokens that match only where no word character is on either side.
    """

    def __init__(
        self, tokens: Collection[str], strips: Mapping[str, str] | None = None, whole_words: Collection[str] = ()
    ):
        strips = strips or {}
        self.left = {token for token in tokens if strips.get(token) in ("left", "both")}
        self.right = {token for token in tokens if strips.get(token) in ("right", "both")}
        self.whole_words = {token for token in tokens if token in whole_words}
        # True if a token reaches over a place where words may be cut: before a space, or on a side of a line end.
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
        """A pattern for the first two characters of tokens with this first one; for one if that is a token."""
        seconds = self.trie[first]
        return re.escape(first) + ("" if "" in seconds else f"[{''.join(map(re.escape, seconds))}]")

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Yield start, end and text of each token, the longest of those that begin first; flags are ignored."""
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
        """The tokens in the settled start of `text`, which no following text can change, and where that start ends.

        If `more` is false, no text follows, and all of it is settled. `before`: the character before `text`, if any.
        """
        found: list[Found] = []
        taken = 0  # end of the previous token with its white space
        passed = (0, 0)  # the last place of a token that its flags reject: no token begins within it
        # A token that begins before here is complete, as is any longer one, and the character after it is known.
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
                if more and (end > settled or end == len(text)):  # it may continue, and hold other tokens
                    settled = start
                    break
            if start < end:  # otherwise the previous token has absorbed all of it
                found.append(Found(start, end, token))
            taken = end
        settled = max(settled, taken)
        if more and self.left:  # a following token may absorb the white space before it
            settled = taken + len(text[taken:settled].rstrip(WHITE))
        return found, passed[0] if passed[0] < settled < passed[1] else settled


NOT_WHITE = re.compile(f"[^{WHITE}]")


def white_end(text: str, start: int) -> int:
    """The end of the white space that begins at `start`."""
    match = NOT_WHITE.search(text, start)
    return match.start() if match else len(text)
