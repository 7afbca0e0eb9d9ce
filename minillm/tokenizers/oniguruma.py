"""Translate the regular expressions of a tokenizer.json into those of Python's `regex`.

Hugging Face's `tokenizers` uses Oniguruma, whose patterns look like those of `regex` and differ in small things, none
of which raises an error: a pattern would silently cut text in other places. So each pattern is parsed by Oniguruma's
grammar, and written so that both read it alike:

    [a[b-d]]        [a-d]                classes within classes, and those that overlap (&&)
    [[:digit:]]     \\p{Nd}               POSIX classes, \\h, \\R, \\N, \\O, \\p{Word} and \\w by their definitions
    x{,}            x\\{,\\}               literal text in Oniguruma
    x{1,2}+         (?:x{1,2})+          repeats a repetition there, possessive here
    ^ $ \\Z          (?m:^) (?m:$) ...     every line begins and ends there
    (?i:ss)         (?:[sſS][sſS]|[ßẞ])  letters without regard to case, by Unicode's folding, "ß" as "ss" too

Features without an equivalent are refused by name: backreferences and calls of groups, absence (?~...), \\K, \\G, \\y,
and others.

Sources: doc/RE of Oniguruma 6.9; Unicode's CaseFolding.txt, as Python's `str.casefold` has it.
"""

from __future__ import annotations

import string
from typing import NoReturn

import regex

from minillm.errors import InputError
from minillm.tokenizers.letter_case import any_case, characters_of_long_fold, in_class
from minillm.tokenizers.oniguruma_class import ANY, SETS, WORD, ClassReader

LETTERS = {"a": "\a", "e": "\x1b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
# Letters in a group of their own, or repeated once, without more repetitions.
LETTERS_APART = regex.compile(r"\(\?:([\w' ]+)\)(?![*+?{])|([\w' ])\{1\}(?![*+?{])")
LINE_END = r"(?>\r\n|[\n-\r\x85\u2028\u2029])"


def translate(where: str, pattern: str) -> tuple[str, bool]:
    """Translate a pattern of Oniguruma; returns the pattern for `regex`, and True if it may match an empty text.

    Raises: InputError for a pattern that cannot be read, or has a feature that is not supported.
    """
    if not isinstance(pattern, str):
        raise InputError(f"{where}: {pattern!r} is not a regular expression; give a text")
    reader = Reader(where, pattern)
    made, least = reader.alternatives("")
    if reader.place < len(pattern):
        reader.refuse("a ')' too many")
    try:
        regex.compile(made)
    except regex.error as error:
        raise InputError(f"{where}: the pattern {pattern!r} cannot be read ({error}); correct it") from error
    return made, least == 0


class Reader:
    """Reads a pattern from left to right; every method returns what it has read, in the new spelling.

    Most methods also return the length of the shortest text that may match. `flags` are the current ones: "i" ignores
    case, "m" lets "." match any character, "x" skips white space.
    """

    def __init__(self, where: str, pattern: str):
        self.where, self.pattern, self.place = where, pattern, 0
        self.behind = 0  # number of open lookbehinds

    def refuse(self, what: str) -> NoReturn:
        raise InputError(
            f"{self.where}: the pattern {self.pattern!r} has {what}, which is not supported; write it without"
        )

    def taken(self, text: str) -> bool:
        """True if `text` comes next; it is then consumed."""
        if self.pattern.startswith(text, self.place):
            self.place += len(text)
            return True
        return False

    def next(self) -> str:
        if self.place >= len(self.pattern):
            self.refuse("an end that comes too early")
        self.place += 1
        return self.pattern[self.place - 1]

    # Groups

    def alternatives(self, flags: str) -> tuple[str, int]:
        """Read the content of a group, or the whole pattern."""
        made, least = self.sequence(flags)
        shortest = [least]
        parts = [made]
        while self.taken("|"):
            made, least = self.sequence(flags)
            parts.append(made)
            shortest.append(least)
        return "|".join(parts), min(shortest)

    def sequence(self, flags: str) -> tuple[str, int]:
        """Read one alternative, up to the next "|"."""
        parts: list[str] = []
        least, letters = 0, ""  # letters: the case-insensitive ones read last
        while self.place < len(self.pattern) and self.pattern[self.place] not in "|)":
            if "x" in flags and self.skipped():
                continue
            if self.taken("(?#"):
                while self.next() != ")":
                    pass
                continue
            if "i" in flags and (inner := LETTERS_APART.match(self.pattern, self.place)):
                letters += inner.group(1) or inner.group(2)  # Oniguruma matches them as one text
                self.place = inner.end()
                continue
            character = self.literal() if "i" in flags else None
            if character is not None and not self.repeats():
                letters += character
                continue
            if letters:
                parts.append(folded(letters, self))
                least, letters = least + 1, ""
            if character is not None:
                made, length = self.repeated(folded(character, self), 1)
            elif opened := self.option_for_the_rest():
                made, length = self.alternatives(changed(flags, opened))
                made = f"(?:{made})"
            else:
                made, length = self.repeated(*self.one(flags))
            parts.append(made)
            least += length
        if letters:
            parts.append(folded(letters, self))
            least += 1
        return "".join(parts), least

    def skipped(self) -> bool:
        if self.pattern[self.place] == "#":
            end = self.pattern.find("\n", self.place)
            self.place = len(self.pattern) if end < 0 else end + 1
            return True
        if self.pattern[self.place] in " \t\n\r\v\f":
            self.place += 1
            return True
        return False

    def literal(self) -> str | None:
        """Consume and return a character that stands for itself; or return None and consume nothing."""
        character = self.pattern[self.place]
        if character in ".^$[(*+?\\":
            start = self.place
            if character == "\\" and (found := self.escaped_character()) is not None:
                return found
            self.place = start
            return None
        if character == "{" and self.bounds(passing=False) is not None:
            return None
        self.place += 1
        return character

    def option_for_the_rest(self) -> str:
        """The "i-m" of a "(?i-m)", which holds to the end of the group; an empty text if none comes next."""
        match = regex.compile(r"\(\?([imx]*(?:-[imx]*)?)\)").match(self.pattern, self.place)
        if match is None or match.end() == self.place + 3:
            return ""
        self.place = match.end()
        return str(match.group(1))

    def one(self, flags: str) -> tuple[str, int]:
        """Read one item that can be repeated."""
        character = self.next()
        if character == "(":
            return self.group(flags)
        if character == "[":
            return self.character_class(flags), 1
        if character == ".":
            return (ANY if "m" in flags else r"[^\n]"), 1
        if character == "^":
            return r"(?m:^)", 0
        if character == "$":
            return r"(?=\n|\Z)", 0
        if character == "\\":
            return self.escape(flags)
        if character in "*+?":
            self.refuse(f"{character!r} with nothing to repeat")
        return regex.escape(character, special_only=True), 1

    def group(self, flags: str) -> tuple[str, int]:
        """Read a group, after its "("."""
        opening, looks = "(?:", False
        if self.taken("?"):
            for sign in (":", "=", "!", ">", "<=", "<!"):
                if self.taken(sign):
                    opening, looks = f"(?{sign}", sign not in ":>"
                    break
            else:
                match = regex.compile(r"([imx]*(?:-[imx]*)?):").match(self.pattern, self.place)
                named = regex.compile(r"<[\p{L}_]\w*>|'[\p{L}_]\w*'").match(self.pattern, self.place)
                if match:
                    self.place, flags = match.end(), changed(flags, match.group(1))
                elif named:
                    self.place = named.end()
                else:
                    self.refuse(f"'(?{self.pattern[self.place : self.place + 2]}'")
        self.behind += opening in ("(?<=", "(?<!")
        made, least = self.alternatives(flags)
        self.behind -= opening in ("(?<=", "(?<!")
        if not self.taken(")"):
            self.refuse("a '(' without its ')'")
        return f"{opening}{made})", 0 if looks else least

    # Repetitions

    def repeats(self) -> bool:
        """True if a repetition of the last item comes next."""
        return self.pattern[self.place : self.place + 1] in {"*", "+", "?"} or self.bounds(passing=False) is not None

    def bounds(self, passing: bool = True) -> tuple[str, bool] | None:
        """A repetition "{n,m}" as `regex` writes it, and True if it has the form "{n}"."""
        match = regex.compile(r"\{(\d*)(,?)(\d*)\}").match(self.pattern, self.place)
        if match is None or not (match.group(1) or match.group(3)):
            return None
        if passing:
            self.place = match.end()
        low, comma, high = match.groups()
        if comma and low and high and int(low) > int(high):
            self.refuse(f"{match.group()!r}")
        return f"{{{low or 0}{comma}{high}}}", not comma

    def repeated(self, made: str, least: int) -> tuple[str, int]:
        """Append all repetitions that follow to `made`; a repetition of a repetition becomes that of a group."""
        again = False
        while self.repeats():
            made = f"(?:{made})" if again else made
            again = True
            if self.pattern[self.place] in "*+?":
                sign = self.next()
                low = 1 if sign == "+" else 0
                sign += next((more for more in "?+" if self.taken(more)), "")
            else:
                found = self.bounds()
                assert found is not None
                sign, exact = found
                low = int(sign[1:].split(",")[0].rstrip("}"))
                if self.taken("?"):
                    # After "{n}" a "?" makes the item optional, after "{n,m}" it makes the repetition lazy.
                    made, sign, low = (f"(?:{made}{sign})", "?", 0) if exact else (made, f"{sign}?", low)
            made, least = made + sign, least * low
        return made, least

    # Escapes

    def escaped_character(self) -> str | None:
        r"""The character that an escape such as "\n" or "\x41" stands for, or None for another escape."""
        if not self.taken("\\"):
            return None
        character = self.next()
        if character in LETTERS:
            return LETTERS[character]
        if character in "xu" and (
            match := regex.compile(r"\{([0-9a-fA-F]{1,8})\}|([0-9a-fA-F]{4}|)").match(self.pattern, self.place)
        ):
            if character == "x" and not match.group(1):
                match = regex.compile("()([0-9a-fA-F]{1,2})").match(self.pattern, self.place)
            if match is None or not match.group() or (character == "u" and match.group(1)):
                self.refuse(f"'\\{character}' without a number")
            assert match is not None
            self.place = match.end()
            code = int(match.group(1) or match.group(2), 16)
            if code > 0x10FFFF or 0xD800 <= code < 0xE000 or (match.group(2) and character == "x" and code > 0x7F):
                self.refuse(f"the character {match.group()!r}")
            return chr(code)
        if character == "0":
            match = regex.compile("[0-7]{0,2}").match(self.pattern, self.place)
            assert match is not None
            self.place = match.end()
            return chr(int("0" + match.group(), 8))
        if character in string.ascii_letters + string.digits:
            return None
        return character

    def escape(self, flags: str) -> tuple[str, int]:
        r"""Read an escape, after its "\"."""
        self.place -= 1
        start = self.place
        character = self.escaped_character()
        if character is not None:
            return regex.escape(character, special_only=True), 1
        self.place = start + 1
        character = self.next()
        if character.lower() in SETS or character in "pP":
            self.place = start
            return ClassReader(self, flags).single(), 1
        fixed = {
            "A": (r"\A", 0),
            "z": (r"\Z", 0),
            "Z": (r"(?=\n?\Z)", 0),
            "N": (r"[^\n]", 1),
            "O": (ANY, 1),
            "R": (LINE_END, 1),
            "X": (r"\X", 1),
            "b": (f"(?:(?<=[{WORD}])(?![{WORD}])|(?<![{WORD}])(?=[{WORD}]))", 0),
            "B": (f"(?:(?<=[{WORD}])(?=[{WORD}])|(?<![{WORD}])(?![{WORD}]))", 0),
        }
        if character not in fixed:
            if character in "GKyYkgcCMQE" or character.isdigit():
                self.refuse(f"'\\{character}'")
            return regex.escape(character), 1
        return fixed[character]

    def character_class(self, flags: str) -> str:
        """Read a class, after its "["."""
        return ClassReader(self, flags).read()


def changed(flags: str, option: str) -> str:
    """The flags after "i-m"."""
    on, _, off = option.partition("-")
    return "".join(sorted({*flags, *on} - {*off}))


def folded(letters: str, reader: Reader) -> str:
    """An expression that matches `letters` in any case: "ss" also matches "Ss" and "ß".

    From the left, the longest run of letters that together is the case folding of one letter may be that letter.
    """
    parts, place = [], 0
    while place < len(letters):
        for size in (3, 2, 1):
            piece = letters[place : place + size]
            fold = piece.casefold()
            if fold in characters_of_long_fold() and (size == 1 or len(fold) == len(piece) == size):
                if reader.behind:
                    reader.refuse(f"{piece!r} without regard to case in a lookbehind")
                one = "".join(map(in_class, characters_of_long_fold()[fold]))
                parts.append(f"(?:{''.join(map(any_case, fold))}|[{one}])")
                break
        else:
            parts.append(any_case(piece))
        place += len(piece)
    return "".join(parts)
