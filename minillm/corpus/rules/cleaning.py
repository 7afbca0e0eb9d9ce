"""The stage `clean`: the rules by name, in order; the first that a document does not pass drops it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from minillm.corpus.document import Document
from minillm.corpus.rules.c4 import C4, c4, c4_lines
from minillm.corpus.rules.fineweb import FineWeb, fineweb
from minillm.corpus.rules.gopher import GopherQuality, GopherRepetition, gopher_quality, gopher_repetition
from minillm.corpus.rules.language import Language, check_languages, find_language, find_languages, language, names_in
from minillm.corpus.rules.page import Check, Page, count_ngrams, number
from minillm.corpus.rules.pii import PII, mask_pii, masked_text
from minillm.corpus.rules.word_lists import WordLists, groups, note_groups, word_lists
from minillm.corpus.stage import Stage
from minillm.errors import InputError, did_you_mean

CHANGE_TEXT = ("c4", "pii")  # rules behind which nothing can be computed before they have been there
SHOWN = 100  # characters of a removed line


class Rule(NamedTuple):
    """A rule: what it does to the page first, and the checks that it then makes; either may be absent.

    together: computes in less time for many pages what the rule needs to know of each.
    """

    edit: Callable[[Page, Any], Page] | None = None
    checks: Callable[[Page, Any], Iterator[Check]] | None = None
    together: Callable[[list[Page]], None] | None = None


RULES = {
    "language": Rule(find_language, language, find_languages),
    "gopher_repetition": Rule(None, gopher_repetition, count_ngrams),
    "gopher_quality": Rule(None, gopher_quality),
    "c4": Rule(c4_lines, c4),
    "fineweb": Rule(None, fineweb),
    "word_lists": Rule(note_groups, word_lists),
    "pii": Rule(mask_pii, None),
}


@dataclass(frozen=True)
class Clean:
    """Drop documents that are no prose or repeat themselves, and remove lines that are none, by rules with names."""

    rules: str = "language, gopher_repetition, gopher_quality, c4, fineweb"
    """Rules in their order, which is FineWeb's; there are also word_lists and pii, which are off unless named here."""
    language: Language = field(default_factory=Language)
    gopher_repetition: GopherRepetition = field(default_factory=GopherRepetition)
    gopher_quality: GopherQuality = field(default_factory=GopherQuality)
    c4: C4 = field(default_factory=C4)
    fineweb: FineWeb = field(default_factory=FineWeb)
    word_lists: WordLists = field(default_factory=WordLists)
    pii: PII = field(default_factory=PII)

    headings: ClassVar[dict[str, str]] = {f"rule {name}": name for name in RULES}  # of the help

    def __post_init__(self) -> None:
        names = names_in(self.rules)
        for name in names:
            if name not in RULES:
                raise InputError(f"clean: there is no rule {name!r}{did_you_mean(name, RULES)}")
            if names.count(name) > 1:
                raise InputError(f"clean: the rule {name} stands twice in rules; name it once")
        if not names:
            raise InputError("clean: rules is empty; name one, or leave out the stage")
        object.__setattr__(self, "rules", ", ".join(names))


class CleanStage(Stage):
    """Every document through the rules."""

    name = "clean"

    def __init__(self, options: Clean):
        self.options = options

    def settings(self) -> dict[str, Any]:
        """The rules with their thresholds, and a checksum of the word lists where these are used."""
        names = names_in(self.options.rules)
        found: dict[str, Any] = {name: dataclasses.asdict(getattr(self.options, name)) for name in names}
        if "word_lists" in names:
            found["word_lists"]["lists"] = hashlib.sha256(json.dumps(groups()).encode()).hexdigest()
        return {"rules": names, **found}

    def prepare(self, inputs: Sequence[Path], folder: Path, processes: int) -> None:
        """Refuse languages that nobody can find."""
        if "language" in names_in(self.options.rules):
            check_languages(self.options.language)

    def apply(self, documents: list[Document]) -> Iterable[Document]:
        """The documents of a chunk, cleaned; those that were dropped before as they are."""
        pages = [Page(document.text, document.language) for document in documents if not document.dropped]
        for name in itertools.takewhile(lambda name: name not in CHANGE_TEXT, names_in(self.options.rules)):
            if together := RULES[name].together:
                together(pages)
        waiting = iter(pages)
        for document in documents:
            yield document if document.dropped else clean_document(document, self.options, next(waiting))


def clean_document(document: Document, options: Clean, page: Page | None = None) -> Document:
    """The document with its language, without the lines that the rules remove, and the reason if one drops it.

    A dropped document keeps the text that it came with, so that the report can show it; where the rule pii is among the
    rules, that text is masked too. page: that of the document, of which something may be known before.
    """
    page = page or Page(document.text, document.language)
    rules = names_in(options.rules)
    dropped = None
    for name in rules:
        page, checks = _run(name, page, options)
        if failed := next((check for check in checks if not check.passed), None):
            dropped = f"{name}: {failed.reason}"
            break
    text = page.text if dropped is None else document.text
    if dropped and "pii" in rules:
        text, _ = masked_text(text, names_in(options.pii.mask))
    info = {**document.info, **page.facts}
    return dataclasses.replace(document, text=text, language=page.language, dropped=dropped, info=info)


def _run(name: str, page: Page, options: Clean) -> tuple[Page, Iterator[Check]]:
    """The page after the rule's edit, and the checks of the rule, not yet made."""
    rule, limits = RULES[name], getattr(options, name)
    if rule.edit:
        page = rule.edit(page, limits)
    return page, rule.checks(page, limits) if rule.checks else iter(())


class Explanation(NamedTuple):
    """Every check of every rule on one text, and what came of it."""

    checks: list[tuple[str, Check]]  # the rule's name, and the check
    removed: list[tuple[str, str]]  # lines that were removed, and why
    masked: dict[str, int]  # what was masked, and how often
    dropped: str | None  # as in a document
    text: str  # what is left

    def table(self, title: str = "") -> tuple[str, list[str], list[list[str]]]:
        """Title, columns and rows, as `print_tables` takes them."""
        rows = []
        first = next((row for row, (_, check) in enumerate(self.checks) if not check.passed), None)
        for row, (name, check) in enumerate(self.checks):
            verdict = "passed" if check.passed else "dropped here" if row == first else "not passed"
            rows.append([name, check.what, number(check.value), check.allowed, verdict])
        return title, ["rule", "measured", "value", "allowed", ""], rows

    def sentences(self) -> Iterator[str]:
        """Sentences that say what was removed and masked, and why the document is kept or dropped."""
        for line, why in self.removed:
            shown = "".join(sign if sign.isprintable() else "\ufffd" for sign in line[:SHOWN])
            yield f"removed ({why}): {shown}{'…' * (len(line) > SHOWN)}"
        for name, times in self.masked.items():
            yield f"masked: {name}, {times} times"
        yield f"dropped by {self.dropped}" if self.dropped else "kept: every rule is passed"


def explain(text: str, options: Clean) -> Explanation:
    """Every check of the rules on a text, also of those behind the one that drops it."""
    page = Page(text)
    found: list[tuple[str, Check]] = []
    for name in names_in(options.rules):
        page, checks = _run(name, page, options)
        found += ((name, check) for check in checks)
    dropped = next((f"{name}: {check.reason}" for name, check in found if not check.passed), None)
    return Explanation(found, page.removed, page.facts.get("masked", {}), dropped, page.text)
