"""`minillm verify`: damage is found in every file that minillm writes, and the file and the place in it are named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import minillm
from minillm.cli import main
from minillm.corpus.document import Document, compressed, read_documents
from minillm.data import write_shards
from minillm.errors import CheckpointError, InputError
from minillm.verify import Verified, verify
from tests.reliability.corruption import flipped

NANO = "train --preset nano --steps 4 --warmup 1 --eval-every 2 --eval-batches 1 --sample-every 0".split()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, the model in Hugging Face's files, and shards."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "text.txt").write_text("to be or not to be, that is the question. " * 40)
    main([*NANO, "--data", str(folder / "text.txt"), "--out", str(folder / "run")])
    main(["convert", str(folder / "run"), str(folder / "model")])
    write_shards(folder / "shards", "train", (i % 99 for i in range(20_000)), 99, "0123456789abcdef")
    return folder


def verdicts(found: list[Verified]) -> dict[str, set[str]]:
    """All verdicts on each file: a tokenizer.json is checked by its list, and by reading it."""
    told: dict[str, set[str]] = {}
    for one in found:
        told.setdefault(f"{one.path.parent.name}/{one.path.name}", set()).add(one.verdict)
    return told


def test_what_was_written_is_whole(whole: Path) -> None:
    found = verdicts(verify(whole))
    assert {name for name, told in found.items() if "whole" in told} == {
        *("run/config.json", "run/metrics.jsonl", "checkpoints/last.safetensors", "checkpoints/best.safetensors"),
        *("model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/tokenizer_config.json"),
        *("model/special_tokens_map.json", "shards/train_00000.bin"),
    }
    assert not any("damaged" in told for told in found.values())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("run/config.json", r"config\.json "),
        ("run/metrics.jsonl", "1 line not as written, or of another run: "),
        ("run/checkpoints/best.safetensors", "best.safetensors is damaged: the array (model|optimizer)\\."),
        ("model/model.safetensors", "model.safetensors is damaged: the array [a-z]"),
        ("model/config.json", "does not have its checksum by checksums.json; convert the model again"),
        ("model/tokenizer.json", "does not have its checksum by checksums.json; convert the model again"),
        ("shards/train_00000.bin", r"is damaged: its ids \d+ to \d+ do not have their checksum"),
    ],
)
def test_a_changed_bit_is_found(name: str, told: str, whole: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(whole, tmp_path / "all")
    path = tmp_path / "all" / name
    content = path.read_bytes()
    path.write_bytes(flipped(content, len(content) * 2 // 3))
    damaged = [one for one in verify(tmp_path / "all" / name.partition("/")[0]) if one.verdict == "damaged"]
    assert path in {one.path for one in damaged}
    assert any(re.search(told, one.told) for one in damaged), damaged
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(tmp_path / "all"), "--json"])
    assert ended.value.code == 1
    listed = json.loads(capsys.readouterr().out)
    assert str(path) in [one["path"] for one in listed if one["verdict"] == "damaged"]


def test_files_of_other_runs_are_told_apart(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    main([*NANO, "--data", str(whole / "text.txt"), "--seed", "9", "--out", str(tmp_path / "other")])
    for name in ("checkpoints/last.safetensors", "metrics.jsonl"):
        shutil.copyfile(tmp_path / "other" / name, tmp_path / "run" / name)
    damaged = {one.path.name: one.told for one in verify(tmp_path / "run") if one.verdict == "damaged"}
    assert damaged.keys() == {"last.safetensors", "metrics.jsonl"}
    assert "belongs to another run, with other settings or another tokenizer" in damaged["last.safetensors"]
    assert damaged["metrics.jsonl"].startswith("4 lines not as written, or of another run: 1, 2, 3, 4")


def test_a_file_beside_weights_is_loaded_as_it_was_written(whole: Path, tmp_path: Path) -> None:
    model = shutil.copytree(whole / "model", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 0.5, "rms_norm_eps": 0.5}))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged \(it does not have its checksum by checksums"):
        minillm.load(model)
    (model / "checksums.json").unlink()  # which the error proposes to who has changed the file
    assert isinstance(minillm.load(model), type(minillm.load(whole / "model")))


def test_a_list_ends_with_the_files_that_it_was_of(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole / "model", tmp_path / "model")
    model = minillm.load(folder)
    model.save_pretrained(folder)
    assert not (folder / "checksums.json").exists()
    minillm.load(folder)


@pytest.mark.parametrize("end", ["zst", "gz"])
def test_damaged_documents_are_told(end: str, tmp_path: Path) -> None:
    if end == "zst":
        pytest.importorskip("zstandard")
    path = tmp_path / f"clean.jsonl.{end}"
    lines = b"".join(Document(f"tale {i} of {i * 7} mice", str(i)).to_line() for i in range(100))
    content = compressed(lines, path) + compressed(lines, path)
    path.write_bytes(content)
    assert [(one.verdict, one.told) for one in verify(path)] == [("whole", "200 documents, all of which can be read")]
    for place in range(20, len(content), 37):
        for damaged in (flipped(content, place), content[:place]):
            if damaged == content[: len(content) // 2]:
                continue  # its last frame is whole
            path.write_bytes(damaged)
            [found] = verify(path)
            fine = found.verdict == "whole" and list(read_documents(path)) == read_twice(lines)
            assert fine or (found.verdict == "damaged" and str(path) in found.told), (place, found)


def read_twice(lines: bytes) -> list[Document]:
    """The documents of these lines, two times."""
    return [Document.from_line(line) for line in lines.splitlines()] * 2


def test_nothing_to_check_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no file that can be checked; give a run, a model, or a shard"):
        verify(tmp_path)
    with pytest.raises(InputError, match="is not there; give a run"):
        verify(tmp_path / "none")
