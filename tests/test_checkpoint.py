"""Checkpoints: every bit comes back, a kill leaves the old file, and anything else is refused with a reason."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import minillm
from minillm import files, nn
from minillm.checkpoint import load_checkpoint, save_checkpoint
from minillm.errors import CheckpointError
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.optim import SGD, AdamW, Optimizer, decay_groups

SMALL = GPT2Config(vocab_size=11, context=8, layers=1, heads=2, channels=12)
STATE = {"step": 3, "best_loss": math.inf, "name": "ä \u2028", "random": {"seed": 2**63, "counter": 2**60}}


def trained(kind: type[Optimizer] = AdamW, seed: int = 0, dtype: type = np.float32) -> tuple[GPT2, Optimizer]:
    """A model and an optimiser after two steps, so that no moment is zero."""
    minillm.manual_seed(seed)
    model = GPT2(SMALL).to(dtype)
    optimizer = kind(decay_groups(model.parameters(), 0.1), 0.1)
    for batch in np.random.default_rng(seed).integers(0, 11, (2, 2, 2, 8)):
        optimizer.zero_grad()
        model.loss(*batch).backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("kind", [AdamW, SGD])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip_is_bitwise(tmp_path: Path, kind: type[Optimizer], dtype: type) -> None:
    model, optimizer = trained(kind, dtype=dtype)
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model, optimizer, STATE)
    checkpoint = load_checkpoint(path)
    assert checkpoint.state == STATE
    for saved, own in ((checkpoint.model, model.state_dict()), (checkpoint.optimizer, optimizer.state_dict())):
        assert saved.keys() == own.keys()
        for name, array in own.items():
            assert saved[name].dtype == array.dtype
            assert saved[name].tobytes() == array.tobytes()
            assert array.any(), name
    other, other_optimizer = trained(kind, seed=1, dtype=dtype)
    other.load_state_dict(checkpoint.model)
    other_optimizer.load_state_dict(checkpoint.optimizer)
    assert other_optimizer.steps == 2
    for name, array in {**model.state_dict(), **optimizer.state_dict()}.items():
        np.testing.assert_array_equal({**other.state_dict(), **other_optimizer.state_dict()}[name], array)


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    """Read with nothing but the format's description: a length, a JSON header, and raw arrays."""
    model, optimizer = trained()
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model, optimizer, STATE)
    content = path.read_bytes()
    [length] = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header["__metadata__"]["minillm"]) == STATE
    entry = header["model.wte.weight"]
    start, stop = (8 + length + offset for offset in entry["data_offsets"])
    values = np.frombuffer(content[start:stop], "<f4").reshape(entry["shape"])
    np.testing.assert_array_equal(values, model.wte.weight.data)
    assert "optimizer.exp_avg.wte.weight" in header
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, *trained(), STATE)
    before = path.read_bytes()

    def disk_full(unfinished):
        assert unfinished.stat().st_size > 1000
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", disk_full)
    with pytest.raises(CheckpointError, match=r"^save_checkpoint: cannot write .*a\.safetensors \(No space left"):
        save_checkpoint(path, *trained(seed=1), STATE)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_place_of_the_file_never_holds_half_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes reach the disk before the name does, and the name before the function returns."""
    path, seen, sync = tmp_path / "a.safetensors", [], files.sync

    def look(synced):
        seen.append((synced.is_dir(), path.exists()))
        sync(synced)

    monkeypatch.setattr(files, "sync", look)
    save_checkpoint(path, *trained(), STATE)
    assert seen == [(False, False), (True, True)]


def test_a_flipped_bit_anywhere_is_told_or_changes_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, *trained(), STATE)
    whole, good = path.read_bytes(), load_checkpoint(path)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*rng.integers(0, header, 120), *rng.integers(header, len(whole), 80)]
    told = 0
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        try:
            read = load_checkpoint(path)
        except CheckpointError as error:
            told += str(path) in str(error)
            continue
        assert place < header  # a space among those that fill it
        assert read.state == good.state
        for one, other in zip(read[:2], good[:2], strict=True):
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[name], other[name]) for name in one)
    assert told > 190


def test_arrays_that_changed_places_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"a": np.zeros(4), "b": np.ones(4)}, {}, STATE)
    path.write_bytes(path.read_bytes().replace(b'"model.a"', b'"model.c"').replace(b'"model.b"', b'"model.a"'))
    with pytest.raises(CheckpointError, match=r"a\.safetensors is damaged"):
        load_checkpoint(path)


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    """As older versions wrote it, and other programs."""
    safetensors.numpy.save_file({"model.a": np.ones(3)}, tmp_path / "a", {"minillm": json.dumps(STATE)})
    assert load_checkpoint(tmp_path / "a").model["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, bad: float) -> None:
    save_checkpoint(tmp_path / "a", {"w.weight": np.array([1, bad, bad], np.float32)}, {}, STATE)
    with pytest.raises(CheckpointError, match=r"/a holds 2 weights that are NaN or infinite in the array w\.weight;"):
        load_checkpoint(tmp_path / "a")


def test_a_weight_beyond_all_measure_is_told(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", {"w": np.array([1, -3e38], np.float32)}, {}, STATE)
    with pytest.warns(UserWarning, match=r"has a weight of 3e\+38 in the array w, which is more than a trained"):
        load_checkpoint(tmp_path / "a")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^load_checkpoint: .*none\.safetensors is not there; give a run"):
        load_checkpoint(tmp_path / "none.safetensors")


def damaged(content: bytes) -> dict[str, bytes]:
    header = 8 + struct.unpack("<Q", content[:8])[0]
    return {
        "empty": b"",
        "cut in the header": content[: header // 2],
        "cut in the arrays": content[:-1],
        "too long": content + b"\0",
        "text": b"To be, or not to be",
        "a length beyond the file": b"\xff" * 8 + content[8:],
    }


@pytest.mark.parametrize("kind", damaged(struct.pack("<Q", 8) + b"{}      "))
def test_a_damaged_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, *trained(), STATE)
    path.write_bytes(damaged(path.read_bytes())[kind])
    with pytest.raises(CheckpointError, match=r"^load_checkpoint: .* is damaged or not a minillm checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"minillm": "{not json"}])
def test_a_file_of_another_program_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"wte.weight": np.zeros((2, 2), np.float32)}, path, metadata)
    with pytest.raises(CheckpointError, match="is damaged or not a minillm checkpoint"):
        load_checkpoint(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is damaged or not a minillm checkpoint"):
        load_checkpoint(tmp_path)


def test_the_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, *trained(), STATE)
    checkpoint = load_checkpoint(path)
    other = GPT2(GPT2Config(vocab_size=11, context=8, layers=2, heads=2, channels=16))
    before = other.wte.weight.data.copy()
    with pytest.raises(CheckpointError) as raised:
        other.load_state_dict(checkpoint.model)
    assert "wte.weight has shape (11, 12), expected (11, 16)" in str(raised.value)
    assert "missing h.1.ln_1.weight" in str(raised.value)
    np.testing.assert_array_equal(other.wte.weight.data, before)


def test_any_module_will_do_also_with_parameters_without_a_name(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    optimizer = SGD(layer.parameters(), 0.1, momentum=0.9)
    layer(minillm.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "a", layer, optimizer, {})
    checkpoint = load_checkpoint(tmp_path / "a")
    assert set(checkpoint.model) == {"weight", "bias"}
    np.testing.assert_array_equal(checkpoint.optimizer["momentum.0.0"], [[1, 2, 3], [1, 2, 3]])
    assert checkpoint.state == {}
