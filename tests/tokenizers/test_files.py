"""Text files as they come: with a byte order mark, with line ends of any kind, damaged or empty."""

from __future__ import annotations

import json

import pytest

from minillm import hub
from minillm.errors import InputError
from minillm.tokenizers import BPETokenizer, CharacterTokenizer, Tokenizer, UnigramTokenizer, WordPieceTokenizer
from minillm.tokenizers.vocab_files import spell

MARK = b"\xef\xbb\xbf"
VOCAB = {**{spell(bytes([byte])): byte for byte in range(256)}, "ab": 256, "<s>": 257}


def with_mark(path):
    path.write_bytes(MARK + path.read_bytes())
    return path


@pytest.mark.parametrize(
    "train",
    [
        CharacterTokenizer.train,
        lambda text: BPETokenizer.train(text, 260),
        lambda text: WordPieceTokenizer.train(text, 40, min_frequency=1),
        lambda text: UnigramTokenizer.train(text, 20),
    ],
)
def test_a_byte_order_mark_is_no_text_to_learn_from(train, tmp_path):
    text = "hi hi \ufeffho\r\nho\rha"  # within a text it is a character, as a lone carriage return is
    (tmp_path / "text.txt").write_bytes(text.encode())
    expected = train(text).fingerprint()
    assert train(tmp_path / "text.txt").fingerprint() == expected
    assert train(with_mark(tmp_path / "text.txt")).fingerprint() == expected
    again = train(with_mark(tmp_path / "text.txt"))  # a second mark is a character
    assert again.fingerprint() == train(f"\ufeff{text}").fingerprint()


def test_a_byte_order_mark_is_no_part_of_a_vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\na\n", encoding="utf-8-sig")
    read = WordPieceTokenizer.from_vocab_txt(tmp_path / "vocab.txt")
    assert read.special_tokens == {"[PAD]": 0, "[UNK]": 1}
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB), encoding="utf-8-sig")
    for first in ("#version: 0.2\n", ""):
        (tmp_path / "merges.txt").write_text(f"{first}a b\n", encoding="utf-8-sig")
        read = BPETokenizer.from_gpt2_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
        assert read.merges == [(b"a", b"b")]
        assert read.special_tokens == {"<s>": 257}
    read.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<s>"}', encoding="utf-8-sig")
    assert Tokenizer.load(with_mark(tmp_path / "tokenizer.json").parent).fingerprint() == read.fingerprint()
    content = {"model": {"type": "WordLevel", "vocab": {"a": 0, "<s>": 1}, "unk_token": "a"}}
    content["added_tokens"] = [{"id": 1, "content": "<s>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8-sig")
    assert Tokenizer.from_file(tmp_path).eos_id == 1
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8-sig")
    assert hub.read_config(tmp_path) == {"model_type": "gpt2"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_vocabularies_end_in_any_way(end, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(end.join(["[UNK]", "a", "##b", ""]).encode())
    assert WordPieceTokenizer.from_vocab_txt(tmp_path / "vocab.txt").encode("ab") == [1, 2]
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB), encoding="utf-8")
    (tmp_path / "merges.txt").write_bytes(end.join(["#version: 0.2", "a b", "", ""]).encode())
    read = BPETokenizer.from_gpt2_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert read.merges == [(b"a", b"b")]
    tokenizer = WordPieceTokenizer({"a": 0, f"x{end}y": 1})
    with pytest.raises(InputError, match="has a line end, which the file cannot hold"):
        tokenizer.save_vocab_txt(tmp_path / "other.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\xff\n", "is not UTF-8 text .invalid start byte 0xff"),
        (b"\xff\xfea\0\n\0", "is not UTF-8 text"),
        (b"a\nb\na\n", "has 'a' in line 1 and again in line 3"),
    ],
)
def test_a_damaged_vocabulary_is_named(content, message, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        WordPieceTokenizer.from_vocab_txt(tmp_path / "vocab.txt")


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        (b"{", b"a b\n", "is not JSON"),
        (b"[]", b"a b\n", "holds no table of tokens and ids"),
        (b"{}", b"", "vocab has no token for byte 0x00"),
        (b'{"b": 1, "a": null}', b"", "token b'a' has id None, expected a number"),
        (b'{"a": "0"}', b"", "token b'a' has id '0', expected a number"),
        (json.dumps(VOCAB).encode(), b"a b c\n", "line 1 of .* is not a merge"),
        (json.dumps(VOCAB).encode(), b"a b\n\xff\n", "is not UTF-8 text"),
        (json.dumps({**VOCAB, "b": 97}).encode(), b"a b\n", "has id 97 where 98 is next"),
    ],
)
def test_damaged_gpt2_files_are_named(vocab, merges, message, tmp_path):
    (tmp_path / "vocab.json").write_bytes(vocab)
    (tmp_path / "merges.txt").write_bytes(merges)
    with pytest.raises(InputError, match=message):
        BPETokenizer.from_gpt2_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
