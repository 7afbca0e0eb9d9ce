"""Translate Oniguruma's character classes, such as "[a-z&&[^aeiou]]", into those of Python's `regex`.

See oniguruma.py, which reads the rest of a pattern.

Sources: doc/RE of Oniguruma 6.9; the members of its sets were compared with `regex`, character by character.
"""

from __future__ import annotations

from functools import cache
from typing import NoReturn, Protocol

import regex

from minillm.tokenizers.letter_case import in_class, long_folds, same_but_for_case

# \w of Oniguruma: outside of classes it has "²", "³", "¹", "¼", "½" and "¾" too.
WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\xb2\xb3\xb9\xbc-\xbe"
SETS = {"d": r"\p{Nd}", "s": r"\p{White_Space}", "w": WORD, "h": "0-9a-fA-F"}
POSIX = {
    "alnum": r"\p{Alphabetic}\p{Nd}",
    "alpha": r"\p{Alphabetic}",
    "ascii": r"\x00-\x7f",
    "blank": r"\p{Zs}\t",
    "cntrl": r"\p{Cc}",
    "digit": r"\p{Nd}",
    "lower": r"\p{Lowercase}",
    "space": r"\p{White_Space}",
    "upper": r"\p{Uppercase}",
    "xdigit": "0-9a-fA-F",
    "word": r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}",
    "punct": r"\p{P}\p{S}",
}
PROPERTIES = {**POSIX, "word": WORD, "punct": r"\p{P}", "any": r"\x00-\U0010ffff"}
SEEN = {
    "graph": r"\p{White_Space}\p{Cc}\p{Cs}\p{Cn}",  # the complement
    "print": r"\p{Cc}\p{Cs}\p{Cn}\u2028\u2029",
}
# Sets without letters, or with both cases of each.
CASELESS = {"d", "s", "cntrl", "digit", "blank", "space", *"NPZS", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf"}

ANY = "(?s:.)"


class Pattern(Protocol):
    """The methods that a ClassReader needs of the reader of the whole pattern."""

    pattern: str
    place: int

    def refuse(self, what: str) -> NoReturn: ...

    def taken(self, text: str) -> bool: ...

    def next(self) -> str: ...

    def escaped_character(self) -> str | None: ...


class ClassReader:
    """Reads a class of characters: a union of characters, ranges, sets and classes, or several that overlap.

    Each is a text for use within "[...]", or, where that is impossible, an expression that matches one character.
    """

    def __init__(self, reader: Pattern, flags: str):
        self.reader, self.fold, self.within = reader, "i" in flags, False

    def read(self) -> str:
        reader, self.within = self.reader, True
        negated = reader.taken("^")
        unions: list[list[str]] = [[]]  # expressions, each of one character
        items, first = "", True
        while first or not reader.taken("]"):
            if first and reader.taken("]"):
                items += r"\]"
            elif reader.taken("&&"):
                unions[-1] += [f"[{items}]"] if items else []
                items = ""
                unions.append([])
            elif reader.pattern.startswith("[:", reader.place) and (found := self.posix()):
                items, expression = (items + found, "") if found[0] != "[" else (items, found)
                unions[-1] += [expression] if expression else []
            elif reader.taken("["):
                unions[-1].append(ClassReader(reader, "i" if self.fold else "").read())
            elif reader.place == len(reader.pattern):
                reader.refuse("an end that comes too early")
            else:
                items, expression = self.add(items)
                unions[-1] += [expression] if expression else []
            first = False
        unions[-1] += [f"[{items}]"] if items else []
        if not all(unions):
            reader.refuse("a class with nothing on one side of '&&'")
        joined = ["|".join(union) for union in unions]
        if len(joined) == 1 and len(unions[0]) == 1:
            only = joined[0]
            if not negated:
                return only
            if only.startswith("[") and not only.startswith("[^") and only == f"[{items}]":
                return f"[^{items}]"
        if not negated and len(joined) == 1:
            return f"(?:{joined[0]})"
        together = "".join([f"(?={one})" for one in joined[:-1]]) + f"(?:{joined[-1]})"
        return f"(?:(?!{together}){ANY})" if negated else f"(?:{together})"

    def posix(self) -> str:
        """A POSIX class such as "[:digit:]"; an empty text if none comes next."""
        reader = self.reader
        match = regex.compile(r"\[:(\^?)(\w+):\]").match(reader.pattern, reader.place)
        if match is None:
            return ""
        negated, name = match.groups()
        reader.place = match.end()
        if name in ("graph", "print"):
            return f"[{SEEN[name]}]" if negated else f"[^{SEEN[name]}]"
        if name not in POSIX:
            reader.refuse(f"{match.group()!r}")
        self.expect_caseless(name)
        return f"[^{POSIX[name]}]" if negated else POSIX[name]

    def expect_caseless(self, name: str) -> None:
        """Refuse a set of letters within a case-insensitive class: it has "ß" there, and so "ss"."""
        if self.fold and self.within and name not in CASELESS:
            self.reader.refuse(f"the set {name!r} in a class without regard to case")

    def single(self) -> str:
        r"""A set outside of classes, such as "\d" or "\p{L}"."""
        items, expression = self.escape()
        return expression or f"[{items}]"

    def escape(self) -> tuple[str, str]:
        r"""A set, at its "\": a text for use within a class, or an expression of its own."""
        reader = self.reader
        reader.place += 1
        letter = reader.next()
        if letter.lower() in SETS:
            self.expect_caseless(letter.lower())
            inside = POSIX["word"] if self.within and letter in "wW" else SETS[letter.lower()]
            return ("", f"[^{inside}]") if letter.isupper() else (inside, "")
        match = regex.compile(r"\{(\^?)([\w ]+(?:-\w+)*)\}").match(reader.pattern, reader.place)
        if match is None:
            reader.refuse(f"'\\{letter}' without a name in braces")
        assert match is not None
        reader.place = match.end()
        negated = (letter == "P") != bool(match.group(1))
        self.expect_caseless(match.group(2))
        inside = property_set(match.group(2))
        if self.within and inside == WORD:
            inside = POSIX["word"]
        if not inside:
            reader.refuse(f"the property {match.group(2)!r}")
        return ("", f"[^{inside}]") if negated else (inside, "")

    def add(self, items: str) -> tuple[str, str]:
        """Add one more character or range to `items`; or return it as an expression of its own."""
        reader = self.reader
        start = reader.place
        if reader.pattern[start] == "\\":
            low = "\b" if reader.taken("\\b") else reader.escaped_character()
            if low is None:
                reader.place = start
                letter = reader.pattern[start + 1 : start + 2]
                if letter.lower() not in SETS and letter not in "pP":
                    reader.refuse(f"'\\{letter}' in a class")
                inside, expression = self.escape()
                return items + inside, expression
        else:
            low = reader.next()
        high = low
        rest = reader.pattern[reader.place : reader.place + 2]
        if rest.startswith("-") and rest not in ("-]", "-") and not reader.pattern.startswith("-&&", reader.place):
            reader.place += 1
            if reader.pattern[reader.place] == "[":
                reader.refuse("a range that ends in a class")
            found = reader.escaped_character() if reader.pattern[reader.place] == "\\" else reader.next()
            if found is None or found < low:
                reader.refuse("a range that has no end")
            high = str(found)
        return items + self.spelled(low, high), ""

    def spelled(self, low: str, high: str) -> str:
        """The range from `low` to `high`, with the characters that differ from its members by case alone."""
        made = in_class(low) if low == high else f"{in_class(low)}-{in_class(high)}"
        if not self.fold:
            return made
        more: set[str] = set()
        for group in same_but_for_case():
            inside = [character for character in group if low <= character <= high]
            more.update(group if inside else ())
        if letter := next((letter for letter in long_folds() if low <= letter <= high), None):
            self.reader.refuse(f"the letter {letter!r} in a class without regard to case")
        return made + "".join(map(in_class, sorted(more)))


@cache
def property_set(name: str) -> str:
    """A property of Unicode for use within "[...]"; an empty text where it is unknown.

    Names of general categories and scripts are common to both; Oniguruma's own are those of POSIX classes.
    """
    plain = name.lower().replace("_", "").replace(" ", "").replace("-", "")
    if plain in PROPERTIES:
        return PROPERTIES[plain]
    if plain in ("graph", "print", "assigned") or plain.startswith(("in", "is")):
        return ""
    try:
        regex.compile(rf"\p{{{plain}}}")
    except regex.error:
        return ""
    return rf"\p{{{plain}}}"
