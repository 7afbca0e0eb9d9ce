"""Case-insensitive letters, by Unicode's case folding, for regular expressions that spell out every variant.

Most letters fold to one letter: "K", "k" and the Kelvin sign all fold to "k". Some fold to several: "ß" to "ss".

Source: Unicode's CaseFolding.txt, as Python's `str.casefold` and `str.lower` have it.
"""

from __future__ import annotations

from functools import cache

import regex


def in_class(character: str) -> str:
    """Escape a character for use within "[...]"."""
    return regex.escape(character) if character in "[]\\^-&|~" or character.isspace() else character


@cache
def same_but_for_case() -> tuple[frozenset[str], ...]:
    """Groups of characters that differ by case alone, by Unicode's simple folding: {"k", "K", "K"}, ..."""
    groups: dict[str, set[str]] = {}
    for code in (*range(0xD800), *range(0xE000, 0x20000)):
        character = chr(code)
        simple = simple_fold(character)
        if simple != character:
            groups.setdefault(simple, {simple}).add(character)
    return tuple(map(frozenset, groups.values()))


def simple_fold(character: str) -> str:
    """The one letter that a letter folds to; itself where there is none."""
    folded_once = character.casefold()
    if len(folded_once) == 1:
        return folded_once
    lower = character.lower()
    return lower if len(lower) == 1 else character


@cache
def group_of() -> dict[str, frozenset[str]]:
    """Map each letter to the group of those that differ from it by case alone."""
    return {character: group for group in same_but_for_case() for character in group}


@cache
def long_folds() -> dict[str, str]:
    """Map each character that folds to several to these: "ß" to "ss"."""
    everything = (chr(code) for code in (*range(0xD800), *range(0xE000, 0x20000)))
    return {character: fold for character in everything if len(fold := character.casefold()) > 1}


@cache
def characters_of_long_fold() -> dict[str, str]:
    """Map each folding of several characters to the characters that fold to it: "ss" to "ßẞ"."""
    found: dict[str, str] = {}
    for character, fold in long_folds().items():
        found[fold] = found.get(fold, "") + character
    return found


def any_case(character: str) -> str:
    """A regular expression for a letter in either case: "[Aa]" for "a"."""
    group = sorted(group_of().get(character, {character}))
    return regex.escape(group[0]) if len(group) == 1 else f"[{''.join(map(in_class, group))}]"
