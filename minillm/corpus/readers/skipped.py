"""Whatever the readers leave out: each file, member, line, row or page with its place and the reason.

Nothing that lies in a file is an error of the run. A reader raises `Skip` where it cannot go on, and whoever knows the
place turns that into a `Skipped`, which is counted by its kind and written to extract.skipped.jsonl.
"""

from __future__ import annotations

import json
from typing import NamedTuple

KINDS = {  # what is counted, and what it means
    "unsupported": "a format that is not read here, such as .pdf or an image",
    "damaged": "a file or archive that is cut short, or is not what its name says",
    "broken": "a line, record or row that is not JSON, or has no text in the field",
    "not_text": "bytes that are no text in any encoding, such as a program or a picture",
    "empty": "a text without a letter or sign in it, a page without main text, or a file without a record",
    "too_large": "a line, page or record over the limit, or an archive that grows out of measure",
    "unsafe": "a link, a name with '..' or a device in an archive, or one file under two names",
    "encrypted": "a member of an archive that needs a password",
    "timeout": "a page whose main text was not found in the time that a page may take",
    "crashed": "a page or table on which the library that reads it ended its process",
    "status": "a page that the server sent with an error, such as 404",
}


class Skip(Exception):
    """The reason why something cannot be read, and its kind."""

    def __init__(self, kind: str, why: str):
        super().__init__(why)
        self.kind, self.why = kind, why


class Skipped(NamedTuple):
    """Something that was left out."""

    file: str  # as in the ids of documents; a member of an archive has its name behind that of the archive
    place: str  # such as "line 17" or "record 3"; empty for a whole file
    kind: str  # a key of KINDS
    why: str

    def to_line(self) -> bytes:
        """The line of JSON that is written to extract.skipped.jsonl."""
        return json.dumps(self._asdict(), ensure_ascii=False).encode("utf-8", "replace") + b"\n"

    def __str__(self) -> str:
        return f"{self.file}{self.place and ', ' + self.place}: {self.kind}: {self.why}"
