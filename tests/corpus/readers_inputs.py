"""Raw files for the tests of the readers, and a short way to read them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from minillm.corpus.config import Source
from minillm.corpus.document import Document, read_documents
from minillm.corpus.readers import Extract, extract
from minillm.errors import InputError

GERMAN = "Die Straße ist schön, und die Bäume grünen.\nÜber Größe läßt sich streiten: „ja“ - nein, 5 €."
PAGE = (
    '<html lang="de"><head><title>Ein &amp; alles</title><link rel="canonical" href="https://example.org/seite">'
    '<link rel="license" href="https://creativecommons.org/licenses/by/4.0/"></head><body><nav><a href="/">Start</a>'
    "</nav><main><p>Dies ist der Haupttext der Seite; er ist schön und lang genug.</p></main></body></html>"
)


class Reading(NamedTuple):
    """What the stage made of the files of a folder."""

    documents: list[Document]
    skipped: list[dict[str, str]]
    counts: dict[str, int]

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]

    @property
    def kinds(self) -> list[str]:
        return [one["kind"] for one in self.skipped]


def reading(folder: Path, files: dict[str, bytes | str], options: Extract | None = None, processes: int = 1) -> Reading:
    """Write the files to folder/raw, read them, and return what came out."""
    raw = folder / "raw"
    for name, content in files.items():
        path = raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    out = folder / "out" / "extract.jsonl"
    try:
        counts = extract([Source(str(raw), "raw")], out, options, processes, progress=False)
    except InputError as error:
        if "no document was found" not in str(error):
            raise
        counts = json.loads((folder / "out" / "extract.json").read_bytes())["documents"]
    skipped = [json.loads(line) for line in (folder / "out" / "extract.skipped.jsonl").read_text("utf-8").splitlines()]
    return Reading(list(read_documents(out)), skipped, dict(counts))


def jsonl(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def zipped(members: dict[str, bytes | str], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return held.getvalue()


def tarred(members: dict[str, bytes], mode: str = "w") -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode=mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return held.getvalue()


def response(body: bytes, kind: str = "text/html", status: str = "200 OK", url: str = "http://example.org/1") -> bytes:
    """A record of a WARC."""
    http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n\r\n".encode() + body
    return record("response", http, url, "application/http; msgtype=response")


def record(word: str, content: bytes, url: str, kind: str) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {word}\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000001>\r\n"
        f"WARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Target-URI: {url}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content + b"\r\n\r\n"


def warc(*records: bytes, compressed: bool = True) -> bytes:
    return b"".join(gzip.compress(one) if compressed else one for one in records)
