"""Words for groups of people in a text, by the lists of the rule word_lists, whose weaknesses its file states.

They are counted in every document, whether that rule is on or not, and never drop one here. So the card can show how
often a corpus speaks of whom, and whether the rules drop documents about some groups more than others.
"""

from __future__ import annotations

from collections import Counter

from minillm.corpus.rules.word_lists import WORD, groups


def names_of_groups() -> list[str]:
    """The names of the lists, in their order."""
    return list(dict.fromkeys(groups().values()))


def groups_named_in(text: str) -> Counter[tuple[str, str]]:
    """The number of times that each word of the lists occurs in a text, by (group, word)."""
    words = Counter(WORD.findall(text.lower()))
    return Counter({(groups()[word], word): words[word] for word in words.keys() & groups().keys()})
