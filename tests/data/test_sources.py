"""Sources: every kind of source, what is dropped on the way, and each error's sentence."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minillm.data import Tokens, read_text, read_texts, split_text, split_tokens
from minillm.errors import InputError

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def jsonl(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def message(source: str | Path, field: str | None = None) -> str:
    """The error's text, which must be one sentence that begins with the function's name."""
    with pytest.raises(InputError) as raised:
        list(read_texts(source, field))
    text = str(raised.value)
    assert text.startswith("read_texts: ")
    assert "\n" not in text
    return text


# What is read


def test_builtin_is_the_language_reference() -> None:
    [text] = read_texts("builtin")
    assert len(text) > 400_000
    assert text.startswith('The "assert" statement')
    assert -1 < text.find('\n\nThe "break" statement\n***') < text.find('\n\nThe "while" statement\n***')
    assert "\r" not in text
    assert read_text("builtin") == text


def test_builtin_without_pydoc_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert "pydoc_data" in message("builtin")


def test_a_path_called_builtin_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("builtin").write_text("mine")
    assert read_text("./builtin") == read_text(Path("builtin")) == "mine"


@given(TEXTS.filter(str.strip), st.booleans(), st.booleans())
@example("\ufeffa", False, False)
@example("a\r\nb\rc\n\r\n", True, True)
def test_a_file_gives_its_text(
    tmp_path_factory: pytest.TempPathFactory, text: str, bom: bool, compressed: bool
) -> None:
    path = tmp_path_factory.mktemp("file") / ("a.txt.gz" if compressed else "a.txt")
    data = text.encode("utf-8-sig" if bom else "utf-8")
    path.write_bytes(gzip.compress(data) if compressed else data)
    expected = text if bom else text.removeprefix("\ufeff")
    assert read_text(path) == expected.replace("\r\n", "\n")
    assert list(read_texts(str(path))) == [read_text(path)]


@given(st.lists(TEXTS, min_size=1).filter(lambda texts: any(map(str.strip, texts))), st.booleans())
def test_jsonl_gives_its_documents(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    lines = [json.dumps({"id": 7, "body": text}, ensure_ascii=ascii_only) for text in texts]
    path.write_bytes("\r\n\n".join(lines).encode())  # line ends of Windows, empty lines, none at the end
    assert list(read_texts(path, "body")) == [text for text in texts if text.strip()]


def test_jsonl_files_that_were_joined_keep_their_marks_out_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + jsonl({"text": "one"}) + b"\xef\xbb\xbf" + jsonl({"text": "two"}))
    assert list(read_texts(path)) == ["one", "two"]


def test_jsonl_field_is_text_unless_named(tmp_path: Path) -> None:
    path = tmp_path / "a.JSONL.gz"
    path.write_bytes(gzip.compress(jsonl({"text": "one", "title": "1"}, {"text": "two", "title": "2"})))
    assert list(read_texts(path)) == ["one", "two"]
    assert list(read_texts(path, "title")) == ["1", "2"]
    assert read_text(path) == "one\n\ntwo"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "z.txt").write_text("z")
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "b" / "deep" / "c.TXT").write_text("c")
    (tmp_path / "b" / "d.jsonl").write_bytes(jsonl({"text": "d1"}, {"text": ""}, {"text": "d2"}))
    (tmp_path / "b" / "e.txt.gz").write_bytes(gzip.compress(b"e"))
    (tmp_path / "b" / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "b" / "notes.rst").write_text("not read")
    return tmp_path


def test_a_folder_gives_its_text_files_in_order(folder: Path) -> None:
    assert list(read_texts(folder)) == ["a", "d1", "d2", "c", "e", "z"]
    assert read_text(str(folder)) == "a\n\nd1\n\nd2\n\nc\n\ne\n\nz"


def test_a_glob_gives_every_file_that_matches(folder: Path) -> None:
    assert list(read_texts(f"{folder}/*.txt")) == ["z"]
    assert list(read_texts(folder / "**" / "[c-e]*")) == ["d1", "d2", "c", "e"]
    assert list(read_texts(f"{folder}/b/*.rst")) == ["not read"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("brackets")
    (tmp_path / "a1.txt").write_text("no brackets")
    assert read_text(tmp_path / "a[1].txt") == "brackets"


def test_files_are_looked_up_at_the_call_and_read_later(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": "good"}) + b"bad\n")
    texts = read_texts(path)
    assert next(texts) == "good"
    with pytest.raises(InputError, match="line 2"):
        next(texts)
    with pytest.raises(InputError, match="there is no file"):
        read_texts(tmp_path / "missing.txt")  # not drawn from


# Errors


@pytest.mark.parametrize("name", ["missing.txt", "x" * 5000, "To be, or not to be"])
def test_missing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = message(name)
    assert f"no file or folder {name}" in text
    assert str(tmp_path) in text
    assert "'builtin'" in text


def test_the_empty_string_is_not_this_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert "empty string" in message("")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
@pytest.mark.parametrize("content", [b"", b" \n\t\r\n \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_no_text(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert f"{path} is empty or has nothing but whitespace ({path.stat().st_size} bytes in 1 file(s))" in message(path)


def test_no_text_in_any_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n")
    (tmp_path / "b.jsonl").write_bytes(jsonl({"text": " "}))
    assert "(16 bytes in 2 file(s))" in message(tmp_path)
    assert "(16 bytes in 2 file(s))" in message(f"{tmp_path}/*")


def test_a_folder_without_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b")
    assert f"the folder {tmp_path} has no .txt, .md, .jsonl file" in message(tmp_path)


def test_a_glob_that_matches_nothing(folder: Path) -> None:
    assert f"no file matches {folder}/*.tex" in message(f"{folder}/*.tex")
    assert "no file matches" in message(f"{folder}/b/de*")  # only a folder does


@given(TEXTS, st.sampled_from([b"\0", b"\xff", b"\x80", b"\xed\xa0\x80"]), TEXTS)
def test_binary(tmp_path_factory: pytest.TempPathFactory, before: str, bad: bytes, after: str) -> None:
    path = tmp_path_factory.mktemp("binary") / "a.txt"
    path.write_bytes(before.encode() + bad + after.encode())
    offset = len(before.encode())
    assert f"byte 0x{bad[0]:02x} at offset {offset}; text must be UTF-8" in message(path)


def test_binary_in_jsonl_counts_from_the_start_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = '{"text": "äöü"}\n'.encode()
    path.write_bytes(first + b'{"text": "\xff"}\n')
    assert f"byte 0xff at offset {len(first) + 10};" in message(path)


def test_utf16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "marked.txt").write_bytes("plain".encode("utf-16"))
    (tmp_path / "bare.txt").write_bytes("plain".encode("utf-16-le"))
    assert "at offset 0" in message(tmp_path / "marked.txt")
    assert "byte 0x00 at offset 1" in message(tmp_path / "bare.txt")


def test_a_damaged_gzip_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    whole = gzip.compress(bytes(range(32, 127)) * 100)
    flipped = bytearray(whole)
    flipped[20] ^= 0xFF
    for data in (b"no gzip at all", whole[:-20], bytes(flipped)):
        path.write_bytes(data)
        assert f"cannot read {path} (" in message(path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "a" "b"}', "line 3 of {path} is not JSON (Expecting ',' delimiter: column 14 (char 13))"),
        (b"[" * 100_000, "line 3 of {path} is not JSON ("),
        (b'{"text": ' + b"9" * 5000 + b"}", "line 3 of {path} is not JSON ("),
        (b'["a"]', "line 3 of {path} is a JSON list, expected an object"),
        (b'{"txet": "a", "id": 1}', "line 3 of {path} has the fields txet, id, but no 'text'; did you mean 'txet'?"),
        (
            b'{"body": "a", "id": 1}',
            "line 3 of {path} has the fields body, id, but no 'text'; choose one of: body, id",
        ),
        (b"{}", "line 3 of {path} has the fields (none), but no 'text'"),
        (b'{"text": null}', "field 'text' in line 3 of {path} is a NoneType, expected a string"),
        (b'{"text": ["a"]}', "field 'text' in line 3 of {path} is a list, expected a string"),
        (b'{"text": "ab\\ud83d"}', "field 'text' in line 3 of {path} has the lone surrogate U+D83D at character 2"),
    ],
)
def test_bad_jsonl_lines(line: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": "good"}) + b"\n" + line + b"\n")
    assert expected.format(path=path) in message(path)


def test_a_field_for_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a")
    assert f"field='body' is for .jsonl files, but {path} has none" in message(path, "body")


# The split


def test_split_follows_nanogpt(shared_data: Path) -> None:
    train, validation = split_text(read_text(shared_data / "tinyshakespeare.txt"))
    assert (len(train), len(validation)) == (1_003_854, 111_540)  # as nanoGPT's data/shakespeare_char/readme.md says


@given(st.text(), st.floats(0, 1, exclude_max=True))
def test_split_loses_nothing(text: str, fraction: float) -> None:
    train, validation = split_text(text, fraction)
    assert train + validation == text
    assert abs(len(validation) - fraction * len(text)) <= 1
    ids = np.arange(len(text))
    train_ids, validation_ids = split_tokens(ids, fraction)
    assert (len(train_ids), len(validation_ids)) == (len(train), len(validation))
    np.testing.assert_array_equal(np.concatenate([train_ids, validation_ids]), ids)


def test_split_tokens_reads_nothing() -> None:
    parts = [np.arange(10, dtype=np.uint16), np.arange(10, 15, dtype=np.uint16)]
    train, validation = split_tokens(Tokens(parts, vocab_size=15), 0.5)
    assert (list(train), list(validation)) == ([*range(7)], [*range(7, 15)])
    assert all(np.shares_memory(part, parts[0]) for part in train.parts)
    assert np.shares_memory(validation.parts[1], parts[1])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 90, float("nan")])
def test_split_refuses_a_fraction(fraction: float) -> None:
    with pytest.raises(InputError, match=r"^split_text: the validation fraction is .*, expected 0 <= fraction < 1"):
        split_text("some text", fraction)
    with pytest.raises(InputError, match=r"^split_tokens: the validation fraction is"):
        split_tokens([1, 2, 3], fraction)


def test_a_lone_carriage_return_ends_a_line_of_json_and_is_a_character_of_text(tmp_path):
    path = tmp_path / "old.jsonl"
    path.write_bytes(b'{"text": "a\\rb"}\r{"text": "c"}\r\r\n{"text": "d"}\n\r{"text": "e"}')
    assert list(read_texts(path)) == ["a\rb", "c", "d", "e"]
    path.write_bytes(b'{"text": "a"}\r\r\n{"text": "b"}\r\xff')
    with pytest.raises(InputError, match="byte 0xff at offset 30"):
        list(read_texts(path))
    path.write_bytes(b'{"text": "a"}\r\n\rhello')
    with pytest.raises(InputError, match=r"line 3 of .* is not JSON"):
        list(read_texts(path))
    (tmp_path / "old.txt").write_bytes(b"a\rb\r\nc\r")
    assert read_text(tmp_path / "old.txt") == "a\rb\nc\r"
