"""Words by group: names of groups of people, counted so that bias can be seen, and vulgar or insulting words.

The lists are the files in words/. **Their weaknesses**, which a count of words cannot mend:

- A word has no context. "Don't call her an idiot" counts like the insult, a quotation like the speaker's own words, and
  texts about hatred, violence or sexual health count like those that are full of it.
- Groups take insulting names for themselves; dialects, African American English above all, use words among friends that
  the list takes for vulgar. So a rule that drops documents by such a list removes texts by and about minorities more
  often than others: Dodge et al. 2021, "Documenting Large Webtext Corpora", arXiv:2104.08758, found this in C4; see
  also Xu et al. 2021, "Detoxifying Language Models Risks Marginalizing Minority Voices", arXiv:2104.06390.
- Hatred needs none of these words, and other spellings ("sh1t") or languages than English and German are not found.
- Words mean several things: "white" and "black" are colours, "gay" a name, "catholic" a taste.

Therefore the names of groups never drop a document, vulgar words do so only above a rate, and the rule is off unless
the configuration names it. The list has no insults against peoples, religions or orientations: they are the words whose
removal would take most of the texts about these groups along.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from minillm.corpus.rules.page import Check, Limits, Page, at_most

TOXIC = "vulgar or insulting"  # the one group that can drop a document
WORD = re.compile(r"\w+(?:-\w+)*")


@dataclass(frozen=True)
class WordLists(Limits):
    """The thresholds of word_lists."""

    max_toxic_words: float = 0.02
    """Ours: largest share of vulgar or insulting words; a text of under 100 words is taken to have 100."""


@cache
def groups() -> dict[str, str]:
    """The group of every word in the lists of words/."""
    found: dict[str, str] = {}
    for name in ("identity.txt", "toxic.txt"):
        group = ""
        for line in resources.files(__package__).joinpath("words", name).read_text(encoding="utf-8").splitlines():
            if line.startswith("["):
                group = line.strip("[]")
            elif not line.startswith("#"):
                found |= dict.fromkeys(line.split(), group)
    return found


def count_groups(text: str) -> Counter[str]:
    """The number of words of the text that each group of the lists has; groups without one are left out."""
    counts = Counter(map(groups().get, WORD.findall(text.lower())))
    counts.pop(None, None)
    return counts  # type: ignore[return-value]


def note_groups(page: Page, limits: WordLists) -> Page:
    """Write down how many words of each group the page has, for the data card."""
    counts = count_groups(page.measured)
    return page.with_facts(words_by_group=dict(sorted(counts.items()))) if counts else page


def word_lists(page: Page, limits: WordLists) -> Iterator[Check]:
    """Drop what consists of vulgar or insulting words to a large part; see above for what such a rule does wrong.

    SOURCE: ours; C4 drops every page with one word of a longer list. THRESHOLD: 0.02 of the words, or of 100 if there
    are fewer.
    """
    share = page.facts.get("words_by_group", {}).get(TOXIC, 0) / max(len(page.words), 100)
    yield at_most("of the words are vulgar or insulting", share, limits.max_toxic_words)
