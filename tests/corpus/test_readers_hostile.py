"""Hostile files: bombs, endless lines, traps in archives, pages that hang or crash; all counted, none fatal."""

from __future__ import annotations

import gzip
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from minillm.corpus.config import Source
from minillm.corpus.readers import Extract, extract, pages
from minillm.corpus.readers import archives as archives_module
from minillm.corpus.readers import pieces as pieces_module
from minillm.corpus.readers import streams as streams_module
from minillm.corpus.readers.extract import Read
from minillm.corpus.readers.guard import Guard
from minillm.corpus.readers.skipped import Skip
from minillm.errors import InputError
from tests.corpus.readers_inputs import GERMAN, PAGE, jsonl, reading, response, tarred, warc, zipped

HELPERS = "tests.corpus.test_readers_hostile"


# --- functions that the guard runs ---------------------------------------------------------------------------------


def busy() -> None:
    while True:
        pass


def waits() -> None:
    time.sleep(1000)


def dies() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def greedy() -> int:
    return len(bytearray(8 << 30))


def good(number: int) -> dict[str, int]:
    return {"number": number}


@pytest.mark.parametrize(("name", "kind"), [("busy", "timeout"), ("dies", "crashed"), ("greedy", "damaged")])
def test_a_call_that_goes_wrong_is_skipped_and_the_next_works(name: str, kind: str) -> None:
    guard = Guard()
    try:
        assert guard.call(f"{HELPERS}:good", 1, seconds=5) == {"number": 1}
        with pytest.raises(Skip) as skip:
            guard.call(f"{HELPERS}:{name}", seconds=0.2)
        assert skip.value.kind == kind
        assert guard.call(f"{HELPERS}:good", 2, seconds=5) == {"number": 2}
    finally:
        guard.close()


def test_a_call_that_waits_for_ever_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    from minillm.corpus.readers import guard as guard_module

    monkeypatch.setattr(guard_module, "WAITING", 0.5)
    guard = Guard()
    try:
        guard.call(f"{HELPERS}:good", 1, seconds=5)  # the helper has imported the functions then, which is computing
        with pytest.raises(Skip, match="waiting"):
            guard.call(f"{HELPERS}:waits", seconds=0.01)
    finally:
        guard.close()


def test_pages_that_take_too_long_are_counted_and_the_others_read(tmp_path: Path) -> None:
    pytest.importorskip("resiliparse")
    nested = "<div>" * 50_000 + "hello"  # the time of the main text grows with the square
    found = reading(tmp_path, {"a.html": PAGE, "b.html": nested, "c.html": PAGE}, Extract(seconds=0.3))
    assert len(found.texts) == 2
    assert [(one["file"], one["kind"]) for one in found.skipped] == [("raw/b.html", "timeout")]


# --- size ----------------------------------------------------------------------------------------------------------


def test_a_line_that_is_too_long_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "LONGEST_LINE", 3 << 20)
    long = b'{"text": "' + b"a" * (5 << 20) + b'"}\n'
    found = reading(tmp_path, {"a.jsonl": jsonl("one") + long + jsonl("three") + long[:-1], "b.jsonl": jsonl("x")})
    assert [d.id for d in found.documents] == ["raw/a.jsonl:1", "raw/a.jsonl:3", "raw/b.jsonl:1"]
    assert [(one["place"], one["kind"]) for one in found.skipped] == [("line 2", "too_large"), ("line 4", "too_large")]


def test_bombs_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zstandard = pytest.importorskip("zstandard")
    monkeypatch.setattr(streams_module, "FREE", 1 << 20)
    zeros = b"\0" * (20 << 20)
    letters = b"a" * (20 << 20)
    files = {
        "a.jsonl.gz": gzip.compress(zeros),
        "b.zip": zipped({"x.jsonl": zeros, "y.jsonl": letters}),
        "c.jsonl.zst": zstandard.ZstdCompressor().compress(zeros),
        "d.tar.gz": gzip.compress(tarred({"x.jsonl": zeros})),
        "e.jsonl.gz": gzip.compress(jsonl(*(f"{number} is fine" for number in range(1000)))),
        "f.gz.gz": gzip.compress(gzip.compress(zeros)),
    }
    found = reading(tmp_path, files)
    assert len(found.documents) == 1000
    skipped = {one["file"]: one["kind"] for one in found.skipped}
    assert {"raw/a.jsonl.gz", "raw/b.zip/x.jsonl", "raw/c.jsonl.zst", "raw/d.tar.gz/x.jsonl"} <= skipped.keys()
    assert set(skipped.values()) <= {"too_large", "unsupported"}


def test_a_bomb_is_read_in_little_memory(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    program = f"""
import gzip, resource, zstandard
from pathlib import Path
from minillm.corpus.config import Source
from minillm.corpus.readers import extract
raw = Path({str(tmp_path)!r}) / "raw"
raw.mkdir()
(raw / "a.txt").write_text("text")
compressor = zstandard.ZstdCompressor().compressobj()
with open(raw / "b.txt.zst", "wb") as file:
    for _ in range(200):
        file.write(compressor.compress(bytes(1 << 20)))
    file.write(compressor.flush())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(extract([Source(str(raw))], raw.parent / "out.jsonl", progress=False))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "'kept': 1" in shown
    assert int(shown.split()[-1]) < 120  # megabytes, for 200 that came out


# --- archives ------------------------------------------------------------------------------------------------------


def test_members_that_are_traps_are_named(tmp_path: Path) -> None:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name, kind in (
            ("link.txt", tarfile.SYMTYPE),
            ("hard.txt", tarfile.LNKTYPE),
            ("pipe.txt", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name in ("../up.txt", "/etc/x.txt", "good.txt", "C:/x.txt"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"text"))
    before = set(tmp_path.rglob("*"))
    zip_link = zipfile.ZipInfo("link.txt")
    zip_link.external_attr = 0o120777 << 16
    traps = io.BytesIO()
    with zipfile.ZipFile(traps, "w") as zipped_traps:
        zipped_traps.writestr(zip_link, "/etc/passwd")
        zipped_traps.writestr("a/../../up.txt", "text")
        zipped_traps.writestr("good.txt", "zipped")
    found = reading(tmp_path, {"a.tar": held.getvalue(), "b.zip": traps.getvalue()})
    assert found.texts == ["text", "zipped"]
    assert found.kinds == ["unsafe"] * 8
    written = {path.name for path in tmp_path.rglob("*") if path not in before and path.is_file()}
    assert written == {"a.tar", "b.zip", "extract.jsonl", "extract.json", "extract.skipped.jsonl"}


def test_a_member_with_a_password_is_named(tmp_path: Path) -> None:
    content = bytearray(zipped({"a.txt": "secret", "b.txt": "open"}, zipfile.ZIP_STORED))
    for mark, at in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        content[content.find(mark) + at] |= 1
    found = reading(tmp_path, {"a.zip": bytes(content)})
    assert found.texts == ["open"]
    assert found.kinds == ["encrypted"]


def test_two_members_of_one_name_have_two_ids(tmp_path: Path) -> None:
    content = tarred({"a.txt": b"one"})[:1024] + tarred({"a.txt": b"two"})
    assert [d.id for d in reading(tmp_path, {"a.tar": content}).documents] == [
        "raw/a.tar/a.txt:1",
        "raw/a.tar/a.txt~2:1",
    ]


def test_headers_that_ask_for_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 7 << 30
    found = reading(tmp_path, {"a.tar": member.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20), "b.txt": "text"})
    assert found.texts == ["text"]
    assert found.kinds == ["damaged"]
    monkeypatch.setattr(archives_module, "DIRECTORY", 100)
    found = reading(tmp_path / "zip", {"a.zip": zipped({f"{number}.txt": "x" for number in range(9)})})
    assert found.kinds == ["too_large"]


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst", "txt.gz", "txt.zst", "zip", "tar", "tgz", "warc.gz"])
def test_a_file_that_is_cut_short_keeps_what_came_before(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("fastwarc")
    zstandard = pytest.importorskip("zstandard")
    rng = random.Random(5)
    texts = [f"{number} {rng.getrandbits(400):x}" for number in range(4000)]
    lines = jsonl(*texts)
    content = {
        "jsonl.gz": gzip.compress(lines),
        "jsonl.zst": zstandard.compress(lines),
        "txt.gz": gzip.compress("\n".join(texts).encode()),
        "txt.zst": zstandard.compress("\n".join(texts).encode()),
        "zip": zipped({"a.jsonl": lines, "b.jsonl": lines}),
        "tar": tarred({"a.jsonl": lines, "b.jsonl": lines}),
        "tgz": tarred({"a.jsonl": lines, "b.jsonl": lines}, "w:gz"),
        "warc.gz": warc(*(response(text.encode(), "text/plain") for text in texts[:200])),
    }[ending]
    found = reading(tmp_path, {f"a.{ending}": content[: len(content) * 2 // 3]})
    assert found.kinds[-1] == "damaged"
    if ending != "zip":  # whose directory stands at its end
        read = "\n".join(found.texts)
        assert texts[50] in read


def test_pipes_and_broken_links_do_not_hang(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    os.mkfifo(tmp_path / "raw" / "pipe.txt")
    os.symlink(tmp_path / "nowhere", tmp_path / "raw" / "broken.txt")
    os.symlink(tmp_path / "raw", tmp_path / "raw" / "circle")
    (tmp_path / "raw" / os.fsdecode(b"gr\xfcn.txt")).write_text("text")
    found = reading(tmp_path, {})
    assert [d.id for d in found.documents] == ["raw/gr\\xfcn.txt:1"]
    assert sorted(found.kinds) == ["damaged", "unsupported"]


def test_millions_of_broken_lines_are_counted_and_a_few_are_named(tmp_path: Path) -> None:
    found = reading(tmp_path, {"a.jsonl": "x\n" * 50_000, "b.txt": "text"})
    assert found.counts == {"kept": 1, "broken": 50_000}
    assert len(found.skipped) <= 202
    assert "49,900 more up to here" in found.skipped[-1]["why"]


# --- the run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several units of little work."""
    monkeypatch.setattr(sys.modules[Read.__module__], "CHUNK_BYTES", 500_000)


def files_of_all_kinds() -> dict[str, bytes]:
    rng = random.Random(3)
    texts = [f"Satz {number}: {GERMAN} {rng.getrandbits(600):x}" for number in range(4500)]
    return {
        "a.jsonl": jsonl(*texts[:3000]),
        "b.jsonl.gz": gzip.compress(jsonl(*texts[3000:])),
        "c.zip": zipped({"x.txt": "\n".join(texts[:1000]), "broken.jsonl": "x\ny"}),
        "d.csv": b"text,url\n" + b"".join(b'"%d rows",u\n' % number for number in range(500)),
        "e.html": PAGE.encode(),
        "f.pdf": b"%PDF",
    }


def test_the_output_is_the_same_bytes_for_any_number_of_processes(tmp_path: Path, small_units: None) -> None:
    pytest.importorskip("resiliparse")
    outputs = []
    for processes in (1, 2):
        found = reading(tmp_path / str(processes), files_of_all_kinds(), processes=processes)
        assert len(found.documents) == 5_002
        out = tmp_path / str(processes) / "out"
        outputs.append([(out / name).read_bytes() for name in ("extract.jsonl", "extract.skipped.jsonl")])
    assert outputs[0] == outputs[1]


def test_a_run_that_was_killed_ends_with_the_same_bytes(tmp_path: Path, small_units: None) -> None:
    whole = reading(tmp_path, files_of_all_kinds())
    program = f"""
import os, signal
from pathlib import Path
import sys
from minillm.corpus import journal
from minillm.corpus.config import Source
from minillm.corpus.readers import extract
sys.modules["minillm.corpus.readers.extract"].CHUNK_BYTES = 500_000
save = journal.Journal.append
def append(self, done):
    save(self, done)
    os.kill(os.getpid(), signal.SIGKILL)
journal.Journal.append = append
extract([Source({str(tmp_path / "raw")!r}, "raw")], Path({str(tmp_path / "again" / "extract.jsonl")!r}), progress=False)
"""
    kills = 0
    while subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL:
        kills += 1
        assert kills < 20
    assert kills >= 2
    for name in ("extract.jsonl", "extract.skipped.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    counts = extract([Source(str(tmp_path / "raw"), "raw")], tmp_path / "again" / "extract.jsonl", progress=False)
    assert dict(counts) == whole.counts


def test_a_missing_package_is_an_error_that_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from minillm.corpus.readers.packages import check_package

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "resiliparse" else find(name))
    check_package.cache_clear()
    try:
        with pytest.raises(InputError, match=r'a page of HTML needs resiliparse; pip install ".\[data\]"'):
            reading(tmp_path, {"a.html": PAGE})
    finally:
        check_package.cache_clear()


def test_the_declared_encoding_of_a_page() -> None:
    assert pages.declared_encoding(b"<html><meta charset='ISO-8859-1'>") == "ISO-8859-1"
    assert pages.declared_encoding(b'<?xml version="1.0" encoding="koi8-r"?>') == "koi8-r"
    assert pages.declared_encoding(b'<meta http-equiv="x" content="text/html; charset=cp1251">') == "cp1251"
    assert pages.declared_encoding(b"<p>charset=utf-8 is a word") is None
