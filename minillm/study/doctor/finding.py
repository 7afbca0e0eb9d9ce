"""Finding: the one thing that every check of the doctor returns, and the text that shows findings."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from minillm.counted import counted

Severity = Literal["error", "warning", "note"]
ORDER = ("error", "warning", "note")


class Finding(NamedTuple):
    """A thing that is wrong, or worth knowing.

    severity: an error makes a training useless or its numbers wrong; a warning costs quality or time; a note explains
    what looks wrong and is not, or how things stand.
    name: the check's, such as future-leak. cause: one sentence with the figure. remedy: one sentence. see: how a person
    sees it with their own eyes.
    """

    severity: Severity
    name: str
    cause: str
    remedy: str
    see: str = ""

    @property
    def is_alarm(self) -> bool:
        """True for an error and a warning."""
        return self.severity != "note"


def sorted_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes, each in the order in which they were found."""
    return sorted(findings, key=lambda one: ORDER.index(one.severity))


def lines_of(findings: Iterable[Finding], width: int = 100) -> Iterator[str]:
    """The lines that show findings to a person."""
    for one in sorted_findings(findings):
        for name, text in ((f"{one.severity} {one.name}", one.cause), ("  do", one.remedy), ("  see", one.see)):
            if text:
                yield from textwrap.wrap(
                    f"{name}: {text}",
                    width,
                    subsequent_indent=" " * 7,
                    break_on_hyphens=False,
                    break_long_words=False,
                )
        yield ""


def summary(findings: Iterable[Finding]) -> str:
    """The number of errors, warnings and notes, in one sentence."""
    found = list(findings)
    parts = []
    for severity in ORDER:
        number = sum(one.severity == severity for one in found)
        parts.append(counted(number, severity))
    return ", ".join(parts)
