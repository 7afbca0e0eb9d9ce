"""Token shards hold every kept document with an end behind it, and training on them keeps documents apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minillm.corpus import stage as stages
from minillm.corpus.document import Document, open_lines
from minillm.corpus.shards import Shards, write_parts
from minillm.data import open_tokens
from minillm.errors import InputError
from minillm.tokenizers import BPETokenizer, Tokenizer

pytest.importorskip("zstandard")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(stages, "CHUNK_BYTES", 1500)


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    words = ["the", "cat", "sat", "on", "a", "mat", "größer", "<|endoftext|>", "und", "Hund"]
    return [" ".join(rng.choice(words, rng.integers(1, 20))) for _ in range(count)]


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for number, part in enumerate(("train", "validation")):
        found[part] = tmp_path / f"{part}.jsonl.zst"
        with open_lines(found[part], "wb") as lines:
            for i, text in enumerate(texts(60, number)):
                lines.write(Document(text, f"{part}:{i}", dropped="rule: 1" if i == 4 else None).to_line())
            lines.write(Document("", f"{part}:empty").to_line())
    return found


@pytest.mark.parametrize("kind", ["bpe", "char", "unigram"])
def test_shards_have_every_document_with_an_end(parts, tmp_path, kind):
    out = tmp_path / "shards"
    counts = write_parts(parts, out, Shards(kind, vocab_size=290 if kind == "bpe" else 60), progress=False)
    tokenizer = Tokenizer.load(out / "tokenizer")
    end = tokenizer.eos_id
    for number, part in enumerate(parts):
        tokens = open_tokens(sorted(out.glob(f"{part}_*.bin")), tokenizer.fingerprint())
        ids = np.asarray(tokens)
        assert counts[part] == len(ids) > 500
        documents = [text for i, text in enumerate(texts(60, number)) if i != 4]
        assert (ids == end).sum() == len(documents)
        pieces = np.split(ids, np.flatnonzero(ids == end) + 1)
        assert [piece.tolist() for piece in pieces[:-1]] == [[*tokenizer.encode(text), end] for text in documents]
        assert len(pieces[-1]) == 0
        if kind != "unigram":  # which changes spaces
            assert [tokenizer.decode(piece[:-1]) for piece in pieces[:-1]] == documents


def test_shards_are_the_same_in_two_processes_and_after_a_stop(parts, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    write_parts(parts, one, Shards(vocab_size=280), progress=False)
    from minillm.corpus import stage

    append, calls = stage.append, []

    def stopping(journal, done):
        calls.append(done)
        if len(calls) == 3:
            raise KeyboardInterrupt
        append(journal, done)

    monkeypatch.setattr(stage, "append", stopping)
    with pytest.raises(KeyboardInterrupt):
        write_parts(parts, two, Shards(vocab_size=280), progress=False)
    monkeypatch.setattr(stage, "append", append)
    assert not list(two.glob("*.bin"))
    write_parts(parts, two, Shards(vocab_size=280), 2, progress=False)
    for name in ("train_00000.bin", "validation_00000.bin"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    before = (two / "train_00000.bin").stat().st_mtime_ns
    write_parts(parts, two, Shards(vocab_size=280), progress=False)
    assert (two / "train_00000.bin").stat().st_mtime_ns == before


def test_a_tokenizer_that_is_given_is_used(parts, tmp_path):
    with_bos = BPETokenizer.train("the cat sat on a mat", 260, ("<s>", "</s>"))
    with_bos.name_special_tokens(bos_token="<s>", eos_token="</s>")
    with_bos.around = ("<s>",), ("</s>",)
    with_bos.save(tmp_path / "mine")
    write_parts(parts, tmp_path / "out", Shards(str(tmp_path / "mine")), progress=False)
    ids = np.asarray(open_tokens(tmp_path / "out" / "train_00000.bin", with_bos.fingerprint()))
    begin, end = with_bos.bos_id, with_bos.eos_id
    assert ids[0] == begin
    assert ids[-1] == end
    assert (ids == begin).sum() == (ids == end).sum() == 60  # also the empty document
    assert not ((ids[:-1] == end) & (ids[1:] == end)).any()


def test_a_tokenizer_is_trained_on_a_share_of_the_text(parts, tmp_path):
    write_parts(parts, tmp_path / "all", Shards(vocab_size=300), progress=False)
    write_parts(parts, tmp_path / "some", Shards(vocab_size=300, tokenizer_bytes=300), progress=False)
    every, some = (Tokenizer.load(tmp_path / name / "tokenizer") for name in ("all", "some"))
    assert every.fingerprint() != some.fingerprint()


def test_refusals(parts, tmp_path):
    without = BPETokenizer.train("the cat", 256, ())
    without.save(tmp_path / "without")
    with pytest.raises(InputError, match=r"no token that ends a text.*train one with <\|endoftext\|>"):
        write_parts(parts, tmp_path / "out", Shards(str(tmp_path / "without")), progress=False)
    with open_lines(parts["validation"], "wb"):
        pass
    with pytest.raises(InputError, match=r"validation.jsonl.zst has no text; give the output of `minillm data split`"):
        write_parts(parts, tmp_path / "out", Shards(vocab_size=280), progress=False)
    with pytest.raises(InputError, match="vocab_size is 0"):
        Shards(vocab_size=0)
