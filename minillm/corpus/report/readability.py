"""Reading ease of a text, by Flesch's formula for English and Amstad's for German. Both are rough.

    English   206.835 - 1.015 · words a sentence - 84.6 · syllables a word
    German    180     -         words a sentence - 58.5 · syllables a word

Each gives about 0 for the hardest text and 100 for the easiest; a comic has 90, a newspaper 50, a law 20 or less. They
were fitted to running prose of 100 words and more, so a shorter text has no score. Lists, tables, code, verse and
abbreviations ("z. B.") mislead them, since a full stop is taken for the end of a sentence. Syllables are counted from
letters: in English, groups of vowels without a silent e; in German, single vowels and diphthongs. A score says nothing
about whether a text is true, good or clear, and texts of two languages cannot be compared by it.

Sources: R. Flesch, "A new readability yardstick", Journal of Applied Psychology 32 (1948), 221-233. T. Amstad, "Wie
verständlich sind unsere Zeitungen?", dissertation, Universität Zürich, 1978.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

LANGUAGES = ("de", "en")
READ = 4000  # characters at the beginning of a text that are looked at
FEWEST_WORDS = 100
LONGEST_WORD = 60  # letters; a longer one is no word of running prose, and would make a search slow

WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
# The end of a sentence, or an empty line; white space behind it belongs to it, so that both together count once.
SENTENCE = re.compile(r"(?:[.!?…]+[\"'\u201d\u2019\u201c»)\]]*(?=\s|$)|\n\s*\n)\s*")
ENGLISH_VOWELS = re.compile(r"[aeiouy]+")
# A silent e at the end ("make"; not "table", "the"), and in the endings -ed and -es ("walked", "makes"; not "wanted").
ENGLISH_SILENT = re.compile(r"[aeiouy][a-z]*?(?:[^aeiouyl\W]e|(?<=[aeiouy])le|[^aeiouytd\W]ed|[^aeiouysxzcgh\W]es)$")
GERMAN_VOWELS = re.compile(r"aa|ai|au|äu|ee|ei|eu|ie|oo|oi|ui|[aeiouyäöü]")


@lru_cache(100_000)
def syllables(word: str, language: str) -> int:
    """The number of syllables of a word, as the letters show it: at least 1."""
    word = word.lower()
    if language == "de":
        return max(1, len(GERMAN_VOWELS.findall(word)))
    return max(1, len(ENGLISH_VOWELS.findall(word)) - (ENGLISH_SILENT.search(word) is not None))


def reading_ease(text: str, language: str | None) -> float | None:
    """The score of a text by the formula of its language.

    Returns: None for another language than English and German, and for a text of fewer than 100 words.
    """
    if language not in LANGUAGES:
        return None
    text = text[:READ].strip()
    words = {word: times for word, times in Counter(WORD.findall(text)).items() if len(word) <= LONGEST_WORD}
    number = sum(words.values())
    if number < FEWEST_WORDS:
        return None
    ends = [found.end() for found in SENTENCE.finditer(text)]
    sentences = len(ends) + (not ends or ends[-1] < len(text))
    sentence_length = number / sentences
    word_length = sum(times * syllables(word, language) for word, times in words.items()) / number
    if language == "de":
        return 180 - sentence_length - 58.5 * word_length
    return 206.835 - 1.015 * sentence_length - 84.6 * word_length
