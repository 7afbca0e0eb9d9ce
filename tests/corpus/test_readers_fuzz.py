"""Mutations of good files of every format: counted skips, no exception, no hang, and good files stay good."""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from minillm.corpus.config import Source
from minillm.corpus.readers.extract import Extract, Read, units
from minillm.corpus.readers.guard import shared_guard
from minillm.corpus.readers.skipped import KINDS, Skipped
from minillm.corpus.readers.sources import find_files
from tests.corpus.readers_inputs import GERMAN, PAGE, jsonl, response, tarred, warc, zipped

CASES = 300  # of each format
LINES = jsonl(GERMAN, "two", "three \ud83d\ude00")


def parquet() -> bytes:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    held = io.BytesIO()
    pq.write_table(pa.table({"text": [GERMAN, "two"], "url": ["u", "v"]}), held)
    return held.getvalue()


def zstandard(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").compress(content)


FORMATS: dict[str, Callable[[], bytes]] = {
    "txt": GERMAN.encode,
    "utf16.txt": lambda: GERMAN.encode("utf-16"),
    "jsonl": lambda: LINES,
    "json": lambda: b'[{"text": "one", "url": "u"}, {"text": "two \\u00e4 \\ud83d"}]',
    "csv": lambda: b'id,text,url\n1,"a ""b""\nc",u\n2,two,v\n',
    "html": PAGE.encode,
    "warc": lambda: warc(response(PAGE.encode()), response(b"text", "text/plain"), compressed=False),
    "warc.gz": lambda: warc(response(PAGE.encode()), response(b"text", "text/plain")),
    "jsonl.gz": lambda: gzip.compress(LINES),
    "jsonl.zst": lambda: zstandard(LINES),
    "zip": lambda: zipped({"a.txt": GERMAN, "b.jsonl": LINES}),
    "tar": lambda: tarred({"a.txt": GERMAN.encode(), "b.jsonl": LINES}),
    "tgz": lambda: tarred({"a.txt": GERMAN.encode(), "b.jsonl": LINES}, "w:gz"),
    "parquet": parquet,
}


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with a few bytes changed, cut out, doubled or put in."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(found) + 1)
        end = min(len(found), at + rng.choice((1, 1, 4, 16, 200)))
        match rng.randrange(6):
            case 0:
                found[at:end] = rng.randbytes(end - at)
            case 1:
                del found[at:end]
            case 2:
                found[at:at] = found[at:end]
            case 3:
                found[at:at] = rng.choice(
                    (b"\0" * 8, b"\xff" * 8, b'"', b"\\", b"{", b"[" * 50, b"\r", b"\x80", b"9" * 30)
                )
            case 4 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case _:
                del found[at + rng.randrange(1 + len(found) - at) :]
    return bytes(found)


def texts_of(folder: Path, read: Read) -> tuple[list[str], list[Skipped]]:
    """The texts of the files in a folder, and what was left out."""
    found: list[str] = []
    skipped: list[Skipped] = []
    for unit in units(find_files([Source(str(folder), "s")]), "text"):
        for piece in unit.found:
            for document in read.documents(piece):
                if isinstance(document, Skipped):
                    skipped.append(document)
                else:
                    assert document.to_line().decode()
                    found.append(document.text)
    return found, skipped


@pytest.mark.parametrize("name", FORMATS)
def test_no_mutation_is_fatal(tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    for package in ("resiliparse", "fastwarc", "zstandard", "ftfy"):
        pytest.importorskip(package)
    rng = random.Random(name)
    good = FORMATS[name]()
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(CASES):
        (raw / f"{number:03}.{name}").write_bytes(mutated(good, rng))
    (raw / f"good.{name}").write_bytes(good)
    read = Read(Extract(seconds=2), tmp_path / "out.jsonl")
    request.addfinalizer(shared_guard().close)
    texts, skipped = texts_of(raw, read)
    assert {one.kind for one in skipped} <= KINDS.keys()
    assert all(one.file and one.why for one in skipped)
    assert len(texts) >= 2
    if name != "txt":
        assert skipped
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / f"good.{name}").write_bytes(good)
    expected, none = texts_of(alone, read)
    assert none == []
    assert texts[-len(expected) :] == expected
