"""The common part of all tokenizers: decoding, padding, files, fingerprints."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.errors import DtypeError, InputError
from minillm.tokenizers import BPETokenizer, CharacterTokenizer, Tokenizer

SPECIAL = ("<|endoftext|>", "<|pad|>", "<|unk|>")


def bpe() -> BPETokenizer:
    return BPETokenizer.train("the sea, the seal, the séance", 270, SPECIAL)


def character() -> CharacterTokenizer:
    return CharacterTokenizer.train("the sea, the seal, the séance", SPECIAL)


@pytest.fixture(params=[bpe, character])
def tokenizer(request) -> Tokenizer:
    return request.param()


# Decoding


def test_decode_takes_any_sequence(tokenizer):
    ids = tokenizer.encode("the seal")
    for same in (
        tuple(ids),
        iter(ids),
        np.array(ids),
        np.array(ids, np.uint16),
        np.array([0, *ids])[1:],
        list(np.array(ids)),
    ):
        assert tokenizer.decode(same) == "the seal"
    assert tokenizer.decode([]) == tokenizer.decode(np.array([], np.int64)) == tokenizer.decode(np.array([])) == ""


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 269)))
def test_decode_of_any_ids(ids):
    tokenizer = bpe()
    tokens = [*tokenizer.vocab, b"<|endoftext|>", b"<|pad|>", b"<|unk|>"]
    expected = b"".join(tokens[i] for i in ids)
    assert tokenizer.decode(ids) == expected.decode("utf-8", "replace")


def test_decode_of_half_a_character():
    tokenizer = bpe()
    assert tokenizer.decode([0xC3]) == "\ufffd"
    assert tokenizer.decode([0xC3], errors="ignore") == ""
    assert tokenizer.decode([0xC3, 0xA9]) == "é"
    with pytest.raises(UnicodeDecodeError):
        tokenizer.decode([0xC3], errors="strict")


@pytest.mark.parametrize("wrong", [-1, 10**6, 2**63, np.int64(-2)])
def test_decode_refuses_ids_out_of_range(tokenizer, wrong):
    name, size = type(tokenizer).__name__, tokenizer.vocab_size
    message = rf"^{name}.decode: ids\[1\] is {wrong}, out of range for a vocabulary of {size} tokens; use the tokenizer"
    with pytest.raises(InputError, match=message):
        tokenizer.decode([0, wrong])
    with pytest.raises(InputError, match=rf"ids\[0\] is {size}, out of range"):
        tokenizer.decode(np.array([size]))


@pytest.mark.parametrize("wrong", [[1.0], ["1"], "1", [[1, 2], [3, 4]], np.array([[1, 2]]), np.array([0.5]), [None]])
def test_decode_refuses_what_are_no_ids(tokenizer, wrong):
    with pytest.raises(DtypeError, match=rf"^{type(tokenizer).__name__}.decode: ids"):
        tokenizer.decode(wrong)


@pytest.mark.parametrize("wrong", [5, np.int64(5), np.array(5), None])
def test_decode_refuses_one_id(tokenizer, wrong):
    with pytest.raises(
        DtypeError, match=r"expected a sequence of token ids; write \[(5|np.int64\(5\)|None)\] for one id"
    ):
        tokenizer.decode(wrong)


# Padding


def test_pad_batch(tokenizer):
    pad = tokenizer.pad_id
    ids, mask = tokenizer.pad_batch([[1, 2, 3], [], np.array([pad], np.uint16)])
    np.testing.assert_array_equal(ids, [[1, 2, 3], [pad] * 3, [pad] * 3])
    np.testing.assert_array_equal(mask, [[True] * 3, [False] * 3, [True, False, False]])
    assert (ids.dtype, mask.dtype) == (np.int64, np.bool_)


def test_pad_batch_to_a_length(tokenizer):
    ids, mask = tokenizer.pad_batch(iter([[1], [2, 3]]), length=4)
    assert ids.shape == mask.shape == (2, 4)
    assert ids[mask].tolist() == [1, 2, 3]
    assert set(ids[~mask].tolist()) == {tokenizer.pad_id}
    assert tokenizer.pad_batch([[1, 2]], length=2)[0].tolist() == [[1, 2]]
    assert tokenizer.pad_batch([])[0].shape == (0, 0)
    assert tokenizer.pad_batch([], length=3)[0].shape == (0, 3)


def test_pad_batch_refuses(tokenizer):
    name = type(tokenizer).__name__
    with pytest.raises(
        InputError, match=f"^{name}.pad_batch: a sequence has 3 tokens, but length is 2; cut it or raise"
    ):
        tokenizer.pad_batch([[1], [1, 2, 3]], length=2)
    with pytest.raises(InputError, match=rf"^{name}.pad_batch: ids\[1\] is -1, out of range"):
        tokenizer.pad_batch([[1, -1]])
    with pytest.raises(DtypeError, match=f"^{name}.pad_batch: ids is 1, expected a sequence"):
        tokenizer.pad_batch([1, 2])
    with pytest.raises(
        InputError, match=r"this tokenizer has no padding token; train it with '<\|pad\|>' in special_tokens"
    ):
        CharacterTokenizer.train("ab").pad_batch([[1]])


# Files


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "deep" / "folder")
    assert os.listdir(tmp_path / "deep" / "folder") == ["tokenizer.json"]
    content = json.loads((tmp_path / "deep" / "folder" / "tokenizer.json").read_text())
    assert (content["format"], content["version"], content["kind"]) == ("minillm-tokenizer", 1, tokenizer.kind)
    for again in (
        Tokenizer.load(tmp_path / "deep" / "folder"),
        type(tokenizer).load(str(tmp_path / "deep" / "folder")),
    ):
        assert type(again) is type(tokenizer)
        assert again.special_tokens == tokenizer.special_tokens
        assert again.vocab_size == tokenizer.vocab_size
        assert again.fingerprint() == tokenizer.fingerprint()
        text = "the <|unk|> séa<|endoftext|>l"
        assert again.encode(text, "all") == tokenizer.encode(text, "all")
        assert again.decode(range(again.vocab_size)) == tokenizer.decode(range(tokenizer.vocab_size))


@settings(deadline=None)
@given(text=st.text(max_size=50), special=st.lists(st.text("<|é>", min_size=1, max_size=5), unique=True, max_size=3))
def test_save_and_load_of_any_text(tmp_path_factory, text, special):
    folder = tmp_path_factory.mktemp("any")
    for kind, size in ((BPETokenizer, (300,)), (CharacterTokenizer, ())):
        trained = kind.train([text, "<é>?"], *size, special)
        trained.save(folder)
        again = Tokenizer.load(folder)
        assert again.encode(text, "all") == trained.encode(text, "all")
        assert again.decode(again.encode(text, "all")) == text


def test_save_never_leaves_half_a_file(tokenizer, tmp_path, monkeypatch):
    tokenizer.save(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"\.save: cannot write .*tokenizer.json \(No space left on device\); choose"):
        CharacterTokenizer.train("zzz").save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before


def test_save_refuses_a_file_for_a_folder(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"^{type(tokenizer).__name__}.save: cannot write .*file.tokenizer.json"):
        tokenizer.save(tmp_path / "file")


def test_load_refuses(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    good = json.loads(path.read_text())

    def refuses(content: object, message: str) -> None:
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        with pytest.raises(InputError, match=message) as caught:
            Tokenizer.load(tmp_path)
        assert str(path) in str(caught.value)
        assert str(caught.value).startswith("Tokenizer.load: ")

    refuses(b"", "is not JSON")
    refuses(json.dumps(good).encode()[:-20], "is not JSON .*; it is damaged, or another file")
    refuses(b"\xff\xfe\x00", "is not JSON")
    foreign = '"format": "minillm-tokenizer"'
    refuses(
        {"version": "1.0", "model": {"type": "a7e82374c4305728"}},
        f"is not a minillm tokenizer .it lacks {foreign}.; give a folder",
    )
    refuses([1], "is not a minillm tokenizer")
    refuses(None, "is not a minillm tokenizer")
    refuses(
        {**good, "version": 2}, "has version 2, this minillm reads version 1; read it with the minillm that wrote it"
    )
    refuses(
        {**good, "kind": "sentencepiece"},
        "a tokenizer of kind 'sentencepiece', expected 'bpe'.* or 'wordpiece'; load it",
    )
    refuses({key: value for key, value in good.items() if key != "kind"}, "a tokenizer of kind None")
    for key in ("vocab", "special_tokens"):
        refuses({k: v for k, v in good.items() if k != key}, rf"is damaged \(no '{key}'\); save the tokenizer again")
        for wrong in (None, 3, "x", [1], {"x": "y", "zz": None}):
            refuses({**good, key: wrong}, "is damaged")
    refuses({**good, "special_tokens": {"<|endoftext|>": 0}}, r"is damaged \(.*has id 0 where 1 is next")


def test_load_refuses_damaged_merges(tmp_path):
    bpe().save(tmp_path)
    path = tmp_path / "tokenizer.json"
    good = json.loads(path.read_text())
    for wrong in (None, 3, [3], ["a"], ["x y"], ["a  b"], ["猫 a"], good["merges"] + ["zz zz"]):
        path.write_text(json.dumps({**good, "merges": wrong}))
        with pytest.raises(InputError, match="is damaged"):
            Tokenizer.load(tmp_path)


def test_load_of_another_kind(tmp_path):
    character().save(tmp_path)
    with pytest.raises(
        InputError, match=r"BPETokenizer.load: .* holds a tokenizer of kind 'character', expected 'bpe'; load"
    ):
        BPETokenizer.load(tmp_path)


def test_load_of_nothing(tmp_path):
    with pytest.raises(
        InputError, match=r"Tokenizer.load: cannot read .*tokenizer.json \(No such file or directory\); give"
    ):
        Tokenizer.load(tmp_path)


# Fingerprints


def test_fingerprints_differ_where_ids_do():
    text = "the sea, the seal"
    tokenizers = [
        BPETokenizer.train(text, 260),
        BPETokenizer.train(text, 261),
        BPETokenizer.train(text, 260, ("<|pad|>",)),
        BPETokenizer.train(text, 260, ties="first"),
        CharacterTokenizer.train(text),
        CharacterTokenizer.train(text, ("<|unk|>",)),
        CharacterTokenizer.train(text + "!"),
    ]
    assert len({tokenizer.fingerprint() for tokenizer in tokenizers}) == len(tokenizers)


def test_fingerprints_stay_the_same():
    # Recorded in token shards and checkpoints: if these change, old files can no longer be matched.
    assert CharacterTokenizer({"a": 0, "é": 1}, {"<|pad|>": 2}).fingerprint() == "3386e05d8e13d323"
    assert BPETokenizer.train("abab", 258).fingerprint() == "a7e82374c4305728"
    assert CharacterTokenizer({"é": 1, "a": 0}, {"<|pad|>": 2}).fingerprint() == "3386e05d8e13d323"


def test_repr(tokenizer):
    assert repr(tokenizer) == (
        f"{type(tokenizer).__name__}(vocab_size={tokenizer.vocab_size}, special_tokens={tokenizer.special_tokens})"
    )
