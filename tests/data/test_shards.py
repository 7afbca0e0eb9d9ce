"""Shards: what is on disk, what comes back, and what every kind of damage says."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minillm.data import Tokens, open_tokens, write_shards
from minillm.errors import InputError

FINGERPRINT = "0123456789abcdef"
HEADER = 64


def header(count: int, code: int = 2, vocab_size: int = 100, version: int = 1, fingerprint: str = FINGERPRINT) -> bytes:
    """A header of version 1 by the table in shard_file.py, written without the module."""
    fields = b"MINILLMT" + struct.pack("<IIQQ", version, code, count, vocab_size) + fingerprint.encode() + bytes(12)
    return fields + struct.pack("<I", zlib.crc32(fields))


def sealed(ids: bytes, code: int, vocab_size: int) -> bytes:
    """A shard of version 2 by the same table."""
    table = b"".join(zlib.crc32(ids[at : at + 16384]).to_bytes(4, "little") for at in range(0, len(ids), 16384))
    fields = b"MINILLMT" + struct.pack("<IIQQ", 2, code, len(ids) // code, vocab_size) + FINGERPRINT.encode()
    fields += struct.pack("<III", 16384, zlib.crc32(table), 0)
    return fields + struct.pack("<I", zlib.crc32(fields)) + ids + table


def message(*args: object) -> str:
    """The error's text from open_tokens, which must be one sentence that begins with the function's name."""
    with pytest.raises(InputError) as raised:
        open_tokens(*args)  # type: ignore[arg-type]
    text = str(raised.value)
    assert text.startswith("open_tokens: ")
    assert "\n" not in text
    return text


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    [path] = write_shards(tmp_path, "train", range(50), 100, FINGERPRINT)
    return path


# What is on disk


@pytest.mark.parametrize(("vocab_size", "code"), [(1, 2), (256, 2), (65_536, 2), (65_537, 4), (2**32, 4)])
def test_the_bytes_are_those_of_the_table(vocab_size: int, code: int, tmp_path: Path) -> None:
    ids = [vocab_size - 1, 0, vocab_size // 2]
    [path] = write_shards(tmp_path / "new" / "folder", "a", ids, vocab_size, FINGERPRINT)
    assert path == tmp_path / "new" / "folder" / "a_00000.bin"
    assert path.read_bytes() == sealed(b"".join(i.to_bytes(code, "little") for i in ids), code, vocab_size)
    np.testing.assert_array_equal(np.fromfile(path, f"<u{code}", count=3, offset=64), ids)


def test_the_reader_reads_what_others_write(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(header(3) + b"\x01\x00\x02\x00\x63\x00")
    tokens = open_tokens(tmp_path / "a.bin", FINGERPRINT)
    assert list(tokens) == [1, 2, 99]
    assert tokens.vocab_size == 100


@given(
    st.lists(st.integers(0, 99_999), min_size=1, max_size=60),
    st.sampled_from([100_000, 2**32]),
    st.integers(1, 70),
    st.data(),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], vocab_size: int, per_shard: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    paths = write_shards(folder, "a", iter(ids), vocab_size, FINGERPRINT, per_shard)
    assert paths == sorted(folder.iterdir())
    sizes = [(path.stat().st_size - HEADER) // 4 - 1 for path in paths]  # less the checksum of their one block
    assert sizes[:-1] == [per_shard] * (len(paths) - 1)
    assert 1 <= sizes[-1] <= per_shard
    tokens = open_tokens(paths)
    assert (len(tokens), tokens.vocab_size) == (len(ids), vocab_size)
    np.testing.assert_array_equal(tokens, ids)
    bounds = st.none() | st.integers(-len(ids) - 3, len(ids) + 3)
    cut = slice(data.draw(bounds), data.draw(bounds))
    part = tokens[cut]
    assert isinstance(part, Tokens)
    assert len(part) == len(ids[cut])
    np.testing.assert_array_equal(part, ids[cut])
    again = slice(data.draw(bounds), data.draw(bounds))
    np.testing.assert_array_equal(part[again], ids[cut][again])
    assert np.asarray(part[again]).dtype == np.uint32


def test_shards_longer_than_a_chunk(tmp_path: Path) -> None:
    count = 3 * 65_536 + 17
    paths = write_shards(tmp_path, "a", (i % 251 for i in range(count)), 251, FINGERPRINT, 2 * 65_536)
    tokens = open_tokens(paths)
    np.testing.assert_array_equal(tokens, np.arange(count) % 251)
    assert len(paths) == 2


def test_writing_holds_a_chunk_and_not_the_corpus(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        [path] = write_shards(tmp_path, "a", range(500_000), 500_000, FINGERPRINT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size == HEADER + 4 * 500_000 + 4 * -(-4 * 500_000 // 16384)
    assert peak < 6_000_000  # the ids alone, as a list, would be 18 MB


def test_opening_and_slicing_reads_only_what_is_asked_for(tmp_path: Path) -> None:
    count = 1 << 29
    path = tmp_path / "sparse.bin"  # one GiB of zeros that take no room on disk
    path.write_bytes(header(count))
    os.truncate(path, HEADER + 2 * count)
    tracemalloc.start()
    try:
        tokens = open_tokens([path, path])
        window = np.asarray(tokens[count - 500 : count + 500])
        halves = tokens[: count // 2], tokens[count // 2 :]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(tokens), window.shape) == (2 * count, (1000,))
    assert sum(map(len, halves)) == 2 * count
    assert peak < 100_000


def test_ids_that_were_damaged_are_told_when_they_are_read_and_not_before(tmp_path: Path) -> None:
    ids = np.arange(30_000) % 1000
    [path] = write_shards(tmp_path, "a", ids.tolist(), 1000, FINGERPRINT)
    content = bytearray(path.read_bytes())
    content[64 + 2 * 20_000] ^= 4  # in the third block of 8,192 ids
    path.write_bytes(content)
    tokens = open_tokens(path)
    np.testing.assert_array_equal(tokens[:16_000], ids[:16_000])
    for part in (slice(16_300, 16_500), slice(24_500, 24_600), slice(20_000, 20_001)):
        told = rf"^open_tokens: {path} is damaged: its ids 16384 to 24575 do not have their checksum; copy or write it"
        with pytest.raises(InputError, match=told):
            np.asarray(tokens[part])
    np.testing.assert_array_equal(tokens[24_576:], ids[24_576:])


def test_a_flipped_bit_anywhere_is_told(tmp_path: Path, rng: np.random.Generator) -> None:
    [path] = write_shards(tmp_path, "a", range(9000), 9000, FINGERPRINT)
    whole = path.read_bytes()
    for place in [*range(HEADER), *rng.integers(HEADER, len(whole), 100), *range(len(whole) - 8, len(whole))]:
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"^open_tokens: .*{path}.* (write|make) "):
            np.asarray(open_tokens(path))


def test_a_file_that_is_cut_short_under_a_reader_is_a_sentence(shard: Path) -> None:
    """A file mapped into memory would end the program with SIGBUS."""
    tokens = open_tokens(shard)
    os.truncate(shard, HEADER + 20)
    with pytest.raises(InputError, match=r"was cut short after it was opened|is damaged"):
        np.asarray(tokens)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        assert "is no file; give the paths that write_shards returned" in message(path)


# One sequence


def test_tokens_is_a_sequence() -> None:
    arrays = [np.array(part, np.uint16) for part in ([5, 6, 7], [], [8], [], [])]
    tokens = Tokens(arrays, 10)
    assert list(tokens) == [5, 6, 7, 8]
    assert [tokens[i] for i in (0, 3, -1, -4)] == [5, 8, 8, 5]
    assert type(tokens[np.int64(2)]) is int
    for index in (4, -5):
        with pytest.raises(IndexError):
            tokens[index]
    with pytest.raises(InputError, match=r"^Tokens: the slice has step 2"):
        tokens[::2]
    assert (7 in tokens, 9 in tokens) == (True, False)
    assert repr(tokens) == "Tokens([5, 6, 7, 8], 4 ids, vocab_size=10)"
    assert repr(Tokens([np.arange(9)], 10)) == "Tokens([0, 1, 2, 3, 4, 5, 6, 7, ...], 9 ids, vocab_size=10)"
    assert np.asarray(tokens, np.int64).dtype == np.int64
    assert np.asarray(tokens[2:2]).shape == (0,)
    assert np.asarray(tokens[1:]).dtype == np.uint16
    assert np.shares_memory(np.asarray(tokens[:2]), arrays[0])
    assert not np.shares_memory(np.array(tokens[:2]), arrays[0])


# Atomic


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def failing(count: int) -> Iterator[int]:
    yield from range(count)
    raise RuntimeError("the tokenizer failed")


@pytest.mark.parametrize("failure", [failing(25), [1, 2, 300], [], [1, -1], [1.5], [[1, 2]], ["a"], [2**70]])
def test_a_failure_leaves_the_folder_as_it_was(failure: Iterator[int], tmp_path: Path) -> None:
    write_shards(tmp_path, "train", range(30), 100, FINGERPRINT, 10)
    before = contents(tmp_path)
    with pytest.raises((RuntimeError, InputError)):
        write_shards(tmp_path, "train", failure, 100, FINGERPRINT, 10)
    assert contents(tmp_path) == before


def test_no_shard_has_its_name_before_the_last_id_is_written(tmp_path: Path) -> None:
    def ids() -> Iterator[int]:
        for i in range(30):
            yield i
            assert not list(tmp_path.glob("*.bin"))

    assert len(write_shards(tmp_path, "train", ids(), 100, FINGERPRINT, 10)) == 3


def test_old_shards_of_the_same_name_are_replaced(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", range(50), 100, FINGERPRINT, 10)
    others = [
        "train_a_00000.bin",
        "train_00009.bin.bak",
        "train_000001.bin",
        "validation_00003.bin",
        "[t]rain_00004.bin",
    ]
    for other in others:
        (tmp_path / other).write_bytes(b"mine")
    paths = write_shards(tmp_path, "train", range(20, 35), 100, FINGERPRINT, 10)
    assert sorted(contents(tmp_path)) == sorted(["train_00000.bin", "train_00001.bin", *others])
    np.testing.assert_array_equal(open_tokens(paths), range(20, 35))
    write_shards(tmp_path, "[t]rain", range(20), 100, FINGERPRINT, 20)  # not read as a pattern that matches train_
    np.testing.assert_array_equal(open_tokens(paths), range(20, 35))
    assert not (tmp_path / "[t]rain_00004.bin").exists()


# Damage


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_byte_of_the_header_is_checked(flip: int, shard: Path) -> None:
    whole = shard.read_bytes()
    for position in range(HEADER):
        damaged = bytearray(whole)
        damaged[position] ^= flip
        shard.write_bytes(damaged)
        assert str(shard) in message(shard), f"byte {position}"
    shard.write_bytes(whole)
    assert list(open_tokens(shard)) == [*range(50)]


@given(st.integers(0, 163))
@example(163)
def test_every_truncation_is_found(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.bin"
    path.write_bytes((header(50) + bytes(100))[:size])
    text = message(path)
    assert ("not a token shard" if size < 8 else f"has {size} bytes") in text


def test_an_appended_byte_is_found(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes() + b"\0")
    assert "has 169 bytes, but its header promises 168 (50 ids of 2 bytes)" in message(shard)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(100))
    assert r"starts with b'\x93NUMPY\x01\x00', expected b'MINILLMT'" in message(tmp_path / "a.npy")
    (tmp_path / "empty").touch()
    assert "starts with b''" in message(tmp_path / "empty")
    assert "cannot read" in message(tmp_path / "missing.bin")
    assert "the list of paths is empty" in message([])


def test_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(header(0, version=3))
    assert "has format version 3, expected 1 or 2" in message(tmp_path / "a.bin")


def test_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(header(1, code=8) + bytes(8))
    assert "has dtype code 8, expected 2 (uint16) or 4 (uint32)" in message(tmp_path / "a.bin")


def test_another_tokenizer_is_named(shard: Path, tmp_path: Path) -> None:
    [other] = write_shards(tmp_path, "other", [1], 100, "fedcba9876543210")
    [larger] = write_shards(tmp_path, "larger", [1], 101, FINGERPRINT)
    assert open_tokens(shard, FINGERPRINT).vocab_size == 100
    for text in (message([shard, other]), message(other, FINGERPRINT), message([other], FINGERPRINT)):
        assert f"{other} comes from tokenizer fedcba9876543210" in text
        assert "expected tokenizer 0123456789abcdef" in text
    text = message([shard, larger])
    assert f"{larger} comes from tokenizer 0123456789abcdef with 101 ids" in text
    assert "expected tokenizer 0123456789abcdef with 100;" in text


# Arguments of write_shards


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ids": []}, "there are no ids for"),
        ({"ids": [0, 99, 100, 101]}, "id 100 at position 2 is not in [0, 100)"),
        ({"ids": [3, 5, -1], "tokens_per_shard": 2}, "id -1 at position 2 is not in [0, 100)"),
        ({"ids": [*range(100)] * 656 + [777]}, "id 777 at position 65600 is not in [0, 100)"),
        ({"ids": [1, 2.0]}, "ids must be integers below 100, one by one, but 'float' object"),
        ({"ids": [[1, 2], [3]]}, "ids must be integers below 100, one by one, but 'list' object"),
        ({"ids": "text"}, "ids must be integers below 100, one by one, but 'str' object"),
        ({"ids": [2**63]}, "ids must be integers below 100, one by one, but "),
        ({"vocab_size": 0}, "vocab_size is 0, expected 1 to 2**32"),
        ({"vocab_size": 2**32 + 1}, "vocab_size is 4294967297, expected 1 to 2**32"),
        ({"fingerprint": "short"}, "fingerprint is 'short', expected 16 ASCII characters"),
        ({"fingerprint": "ä" * 16}, "expected 16 ASCII characters"),
        ({"fingerprint": b"0123456789abcdef"}, "expected 16 ASCII characters"),
        ({"tokens_per_shard": 0}, "tokens_per_shard is 0, expected 1 or more"),
    ],
)
def test_wrong_arguments(changes: dict, expected: str, tmp_path: Path) -> None:
    arguments = {"ids": [1, 2], "vocab_size": 100, "fingerprint": FINGERPRINT} | changes
    with pytest.raises(InputError) as raised:
        write_shards(tmp_path, "a", **arguments)
    assert str(raised.value).startswith("write_shards: ")
    assert expected in str(raised.value)
    assert not list(tmp_path.iterdir())
