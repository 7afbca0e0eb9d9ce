"""Every format becomes documents with the right text, id and notes, and what cannot be read is counted and named."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from minillm.corpus.config import Source
from minillm.corpus.document import read_documents
from minillm.corpus.readers import Extract, extract
from minillm.corpus.readers import pieces as pieces_module
from minillm.corpus.readers.skipped import KINDS
from minillm.errors import InputError
from tests.corpus.readers_inputs import GERMAN, PAGE, jsonl, reading, record, response, tarred, warc, zipped


def test_a_text_file_is_a_document(tmp_path: Path) -> None:
    found = reading(tmp_path, {"a.txt": GERMAN, "b/c.md": "# Title\n\nText"})
    assert [(d.id, d.source, d.text) for d in found.documents] == [
        ("raw/a.txt:1", "raw", GERMAN),
        ("raw/b/c.md:1", "raw", "# Title\n\nText"),
    ]
    assert found.counts == {"kept": 2}


def test_files_come_in_the_order_of_their_names_and_hidden_ones_do_not(tmp_path: Path) -> None:
    names = ["b.txt", "a/z.txt", "a.txt", "c/a.txt", ".hidden.txt", ".git/config.txt"]
    found = reading(tmp_path, {name: name for name in names})
    assert found.texts == ["a.txt", "a/z.txt", "b.txt", "c/a.txt"]


def test_a_long_text_is_cut_at_empty_lines_and_nothing_is_lost(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "LONGEST_TEXT", 4000)
    monkeypatch.setattr(pieces_module, "CUT", 1000)
    text = "\n\n".join(f"Absatz {number}: " + "schöne Wörter " * 8 for number in range(60))
    found = reading(tmp_path, {"a.txt": text, "b.txt.gz": gzip.compress(text.encode()), "c.txt": "ä" * 5000})
    plain = [d for d in found.documents if d.id.startswith("raw/a.txt:")]
    assert len(plain) > 4
    assert "".join(d.text for d in plain) == text
    assert all(d.text.endswith("\n\n") for d in plain[:-1])
    assert [d.text for d in plain] == [d.text for d in found.documents if d.id.startswith("raw/b.txt.gz:")]
    assert "".join(d.text for d in found.documents if d.id.startswith("raw/c.txt:")) == "ä" * 5000
    assert len({d.id for d in found.documents}) == len(found.documents)


def test_lines_of_json(tmp_path: Path) -> None:
    lines = [
        '{"text": "one", "url": "https://example.org", "title": "T", "license": "MIT", "lang": "en", "other": 1}',
        "broken",
        "",
        '{"text": 5}',
        '{"texts": "a"}',
        "[1]",
        '{"text": ""}',
        '{"text": "' + "[" * 10,
        "[" * 100_000,
        '{"text": "last"}',
    ]
    found = reading(tmp_path, {"a.jsonl": "\n".join(lines)})
    assert [(d.id, d.text) for d in found.documents] == [("raw/a.jsonl:1", "one"), ("raw/a.jsonl:10", "last")]
    notes = {"url": "https://example.org", "title": "T", "licence": "MIT", "declared_language": "en"}
    assert found.documents[0].info == notes
    assert [one["place"] for one in found.skipped] == [f"line {number}" for number in (2, 4, 5, 6, 7, 8, 9)]
    assert found.counts == {"kept": 2, "broken": 6, "empty": 1}
    assert "did you mean 'texts'" in found.skipped[2]["why"]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_a_line_of_noise_spoils_no_other(tmp_path: Path, encoding: str) -> None:
    noise = bytes(byte for byte in range(256) if byte not in b"\n\r") * 500
    line = '{"text": "schöne Größe"}\n'.encode(encoding)
    escaped = json.dumps({"text": "\0\1\2\3" * 500}).encode() + b"\n"
    found = reading(tmp_path, {"a.jsonl": line * 3 + noise + b"\n" + escaped + line})
    assert found.texts == ["schöne Größe"] * 4
    assert [(one["place"], one["kind"]) for one in found.skipped] == [("line 4", "broken"), ("line 5", "not_text")]


def test_line_ends_of_windows_and_old_macs_divide_lines(tmp_path: Path) -> None:
    for end in (b"\r\n", b"\r"):
        found = reading(tmp_path / end.hex(), {"a.jsonl": jsonl("x", "y").replace(b"\n", end)})
        assert [d.id for d in found.documents] == ["raw/a.jsonl:1", "raw/a.jsonl:2"]


def test_json_of_all_shapes(tmp_path: Path) -> None:
    records = [{"text": f"array {number}\nü", "title": "[,]"} for number in range(5)]
    files = {
        "array.json": json.dumps(records, indent=2, ensure_ascii=False),
        "lines.json": jsonl("first", "second"),
        "object.json": json.dumps({"text": "alone"}, indent=1),
        "mixed.json": '[{"text": "good"}, 5, "x", {"text": "also"}]',
        "empty.json": "[]",
    }
    found = reading(tmp_path, files)
    texts = {d.id: d.text for d in found.documents}
    assert [texts[f"raw/array.json:{number}"] for number in range(1, 6)] == [one["text"] for one in records]
    assert (texts["raw/lines.json:2"], texts["raw/object.json:1"]) == ("second", "alone")
    assert (texts["raw/mixed.json:1"], texts["raw/mixed.json:4"]) == ("good", "also")
    assert [(one["file"], one["place"]) for one in found.skipped] == [
        ("raw/empty.json", ""),
        ("raw/mixed.json", "record 2"),
        ("raw/mixed.json", "record 3"),
    ]


def test_a_file_without_a_record_is_named(tmp_path: Path) -> None:
    files = {"a.jsonl": b"", "b.json": b"[]", "c.csv": b"text\n", "d.zip": zipped({}), "e.jsonl.gz": gzip.compress(b"")}
    found = reading(tmp_path, {**files, "f.txt": "A text."})
    assert [(one["file"], one["kind"]) for one in found.skipped] == [(f"raw/{name}", "empty") for name in files]
    assert found.counts == {"kept": 1, "empty": len(files)}


def test_an_array_is_read_up_to_where_it_is_broken(tmp_path: Path) -> None:
    found = reading(
        tmp_path, {"a.json": '[{"text": "one"}, {"text": "two"} {"text": "three"}]', "b.json": '[{"text": "x"},'}
    )
    assert found.texts == ["one", "two", "x"]
    assert [(one["place"], one["kind"]) for one in found.skipped] == [
        ("after record 2", "damaged"),
        ("after record 1", "damaged"),
    ]


def test_a_large_array_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minillm.corpus.readers import streams

    monkeypatch.setattr(streams, "BLOCK", 64)
    texts = [f"{number} " + "ü" * (number % 200) for number in range(300)]
    found = reading(tmp_path, {"a.json": json.dumps([{"text": text} for text in texts], ensure_ascii=False)})
    assert found.texts == texts


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_tables(tmp_path: Path, delimiter: str) -> None:
    rows = [
        ["id", "text", "url"],
        ["1", f'"hello{delimiter} ""world""\nline 2"', "u"],
        ["2", "short"],
        ["3", "three", "v", "w"],
        ["4", "Größe", ""],
    ]
    content = "\r\n".join(delimiter.join(row) for row in rows)
    found = reading(tmp_path, {"a.csv": content.encode("cp1252")})
    assert found.texts == [f'hello{delimiter} "world"\nline 2', "Größe"]
    assert found.documents[0].info == {"url": "u"}
    assert [d.id for d in found.documents] == ["raw/a.csv:1", "raw/a.csv:4"]
    assert [one["place"] for one in found.skipped] == ["row 2", "row 3"]


def test_a_table_without_the_column_says_which_there_are(tmp_path: Path) -> None:
    found = reading(tmp_path, {"a.csv": "id,texts\n1,x\n"})
    assert "did you mean 'texts'" in found.skipped[0]["why"]
    assert reading(tmp_path / "b", {"a.csv": "id,content\n1,x\n"}, Extract(field="content")).texts == ["x"]


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "raw").mkdir()
    texts = [f"row {number} ü" for number in range(100)]
    pq.write_table(
        pa.table({"text": [*texts, None], "url": ["u"] * 101, "n": range(101)}),
        tmp_path / "raw" / "a.parquet",
        row_group_size=30,
    )
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "raw" / "b.parquet")
    found = reading(tmp_path, {"c.parquet": b"PAR1 nothing PAR1"})
    assert found.texts == texts
    assert found.documents[99].id == "raw/a.parquet:100"
    assert found.documents[0].info == {"url": "u"}
    assert [(one["file"], one["place"]) for one in found.skipped] == [
        ("raw/a.parquet", "row 101"),
        ("raw/b.parquet", ""),
        ("raw/c.parquet", ""),
    ]


def test_the_main_text_of_a_page_and_what_it_says_about_itself(tmp_path: Path) -> None:
    pytest.importorskip("resiliparse")
    found = reading(tmp_path, {"a.html": PAGE, "b.htm": PAGE.encode("utf-16"), "c.xhtml": "<p></p>"})
    assert found.texts == ["Dies ist der Haupttext der Seite; er ist schön und lang genug."] * 2
    assert found.documents[0].info == {
        "title": "Ein & alles",
        "url": "https://example.org/seite",
        "declared_language": "de",
        "licence": "https://creativecommons.org/licenses/by/4.0/",
    }
    assert [(one["file"], one["kind"]) for one in found.skipped] == [("raw/c.xhtml", "empty")]


@pytest.mark.parametrize("compressed", [True, False])
def test_pages_of_a_web_archive(tmp_path: Path, compressed: bool) -> None:
    pytest.importorskip("fastwarc")
    pytest.importorskip("resiliparse")
    content = warc(
        record("warcinfo", b"software: test", "", "application/warc-fields"),
        response(PAGE.encode("cp1252"), "text/html; charset=windows-1252", url="http://example.org/ä"),
        response(PAGE.replace("<head>", "<head><meta charset='iso-8859-15'>").encode("iso-8859-15")),
        response(b"not here", status="404 Not Found"),
        response(b"\x89PNG", "image/png"),
        response(GERMAN.encode(), "text/plain"),
        record("conversion", b"plain text of a .wet", "http://example.org/wet", "text/plain"),
        compressed=compressed,
    )
    found = reading(tmp_path, {"a.warc.gz" if compressed else "a.warc": content})
    assert [text[:20] for text in found.texts] == ["Dies ist der Haupttext der Seite;"[:20]] * 2 + [
        GERMAN[:20],
        "plain text of a .wet",
    ]
    assert all("schön" in text for text in found.texts[:3])
    assert found.documents[0].info["url"] == "http://example.org/ä"
    assert [one["kind"] for one in found.skipped] == ["status", "unsupported"]
    assert "404" in found.skipped[0]["why"]


def test_pages_that_were_sent_compressed_and_in_chunks(tmp_path: Path) -> None:
    pytest.importorskip("fastwarc")
    pytest.importorskip("resiliparse")
    body = gzip.compress(PAGE.encode())
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:50], body[50:])) + b"0\r\n\r\n"
    coded = "text/html; charset=utf-8\r\nContent-Encoding: gzip"
    content = warc(
        response(body, coded),
        response(chunks, f"{coded}\r\nTransfer-Encoding: chunked"),
        response(PAGE.encode(), f"{coded}\r\nTransfer-Encoding: chunked"),  # decoded by whoever wrote the archive
        response(b"\x1f\x8b\x08 this is no gzip", coded),
        response(b"no brotli", coded.replace("gzip", "br")),
        response(b"the last one", "text/plain"),
    )
    found = reading(tmp_path, {"a.warc.gz": content})
    page = "Dies ist der Haupttext der Seite; er ist schön und lang genug."
    assert found.texts == [page, page, page, "the last one"]
    assert [(one["place"], one["kind"]) for one in found.skipped] == [("record 4", "damaged"), ("record 5", "damaged")]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.pdf", "pdftotext"),
        ("a.docx", "pandoc"),
        ("a.7z", "unpack"),
        ("a.jpg", ".jpg is not read"),
        ("README", "without an ending"),
    ],
)
def test_formats_that_are_not_read_say_what_to_use(tmp_path: Path, name: str, advice: str) -> None:
    found = reading(tmp_path, {name: b"%PDF-1.4", "b.txt": "text"})
    assert found.texts == ["text"]
    assert found.kinds == ["unsupported"]
    assert advice in found.skipped[0]["why"]


def test_compressed_files_read_as_what_is_in_them(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    compressor = zstandard.ZstdCompressor()
    files = {
        "a.jsonl.gz": gzip.compress(jsonl("one")) + gzip.compress(jsonl("two")),
        "b.txt.zst": compressor.compress(GERMAN[:20].encode()) + compressor.compress(GERMAN[20:].encode()),
        "c.csv.gz": gzip.compress(b"text\nthree\n"),
    }
    assert reading(tmp_path, files).texts == ["one", "two", GERMAN, "three"]


def test_archives_and_what_lies_in_them(tmp_path: Path) -> None:
    inner = tarred({"deep/t.txt": b"in the tar", "twice.txt": b"1"}, "w:gz")
    files = {
        "a.zip": zipped({"x.txt": GERMAN, "d/y.jsonl": jsonl("line"), "in.tar.gz": inner, "__MACOSX/._x.txt": "no"}),
        "b.tgz": inner,
        "c.tar": tarred({"z.jsonl.gz": gzip.compress(jsonl("packed"))}),
        "d.zip": zipped({"e.zip": zipped({"f.zip": zipped({"g.txt": "too deep"}), "h.txt": "deep"})}),
    }
    found = reading(tmp_path, files)
    assert {d.id: d.text for d in found.documents} == {
        "raw/a.zip/x.txt:1": GERMAN,
        "raw/a.zip/d/y.jsonl:1": "line",
        "raw/a.zip/in.tar.gz/deep/t.txt:1": "in the tar",
        "raw/a.zip/in.tar.gz/twice.txt:1": "1",
        "raw/b.tgz/deep/t.txt:1": "in the tar",
        "raw/b.tgz/twice.txt:1": "1",
        "raw/c.tar/z.jsonl.gz:1": "packed",
        "raw/d.zip/e.zip/h.txt:1": "deep",
    }
    assert [one["file"] for one in found.skipped] == ["raw/d.zip/e.zip/f.zip"]


def test_sources_are_named_and_have_licences(tmp_path: Path) -> None:
    for name in ("books/a.txt", "web/a.txt", "web/b.md", "one.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jsonl(name))
    sources = [
        Source(str(tmp_path / "web" / "*.txt"), "pages", licence="CC0-1.0"),
        Source(str(tmp_path / "books"), "books"),
        Source(str(tmp_path / "one.jsonl"), "pages"),
    ]
    out = tmp_path / "out" / "extract.jsonl"
    extract(sources, out, progress=False)
    found = [(d.id, d.source, d.info) for d in read_documents(out)]
    assert found == [
        ("pages/a.txt:1", "pages", {"licence": "CC0-1.0"}),
        ("books/a.txt:1", "books", {}),
        ("pages/one.jsonl:1", "pages", {}),
    ]


def test_files_of_one_name_get_ids_of_their_own_and_one_file_is_read_once(tmp_path: Path) -> None:
    for name in ("x/a.txt", "y/a.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    os.symlink(tmp_path / "x" / "a.txt", tmp_path / "x" / "link.txt")
    out = tmp_path / "out" / "extract.jsonl"
    counts = extract([Source(str(tmp_path / name), "s") for name in ("x", "y")], out, progress=False)
    assert [(d.id, d.text) for d in read_documents(out)] == [("s/a.txt:1", "x/a.txt"), ("s/a.txt~2:1", "y/a.txt")]
    assert counts == {"kept": 2, "unsafe": 1}


def test_sentences_for_a_person(tmp_path: Path) -> None:
    out = tmp_path / "out" / "extract.jsonl"
    with pytest.raises(InputError, match=r"no file or folder .*nothing.*; check the name"):
        extract([Source(str(tmp_path / "nothing"))], out)
    with pytest.raises(InputError, match="has no file"):
        extract([Source(str(tmp_path / "*.txt"))], out)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.pdf").write_text("x")
    with pytest.raises(InputError, match=r"no document was found .*pdftotext"):
        extract([Source(str(tmp_path / "raw"))], out, progress=False)
    with pytest.raises(InputError, match="lies in the source"):
        extract([Source(str(tmp_path))], tmp_path / "a" / "b.jsonl")
    with pytest.raises(InputError, match="seconds is 0"):
        Extract(seconds=0)


def test_every_kind_of_skipped_thing_says_what_it_means() -> None:
    source = Path(pieces_module.__file__).parent
    used = set()
    for path in source.glob("*.py"):
        used |= {kind for kind in KINDS if f'"{kind}"' in path.read_text(encoding="utf-8").replace("KINDS", "")}
    assert used == KINDS.keys()
