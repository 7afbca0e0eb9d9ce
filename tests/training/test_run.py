"""Run directories: they appear whole or not at all, are never written over, and say what is wrong with them."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from minillm.errors import CheckpointError, InputError
from minillm.tokenizers import CharacterTokenizer
from minillm.training.config import PRESETS, TrainConfig
from minillm.training.run import Run, check_free


@pytest.fixture
def tokenizer() -> CharacterTokenizer:
    return CharacterTokenizer.train("to be or not to be")


def nano(out: Path | None) -> TrainConfig:
    return dataclasses.replace(PRESETS["nano"], out=out)


def record(step: int, val_loss: float | None = None) -> dict:
    return {"step": step, "loss": 5.0 / step, "val_loss": val_loss}


# Made and opened


def test_a_new_run_can_be_opened_again(tmp_path: Path, tokenizer: CharacterTokenizer) -> None:
    config = nano(tmp_path / "deep" / "down" / "run")
    run = Run.create(config, tokenizer)
    assert run.folder == config.out
    with run:
        assert sorted(path.name for path in run.folder.iterdir()) == [
            ".lock",
            "checkpoints",
            "config.json",
            "tokenizer",
        ]
    assert not (run.folder / ".lock").exists()
    assert [path.name for path in run.folder.parent.iterdir()] == ["run"]  # nothing unfinished beside it
    again = Run.open(run.folder)
    assert again.config == config
    assert again.tokenizer.fingerprint() == tokenizer.fingerprint()
    assert again.metrics() == []
    assert run.checkpoint("best") == run.folder / "checkpoints" / "best.safetensors"


def test_without_a_name_it_takes_the_first_that_is_free(
    tmp_path: Path, tokenizer: CharacterTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [Run.create(nano(None), tokenizer).folder for _ in range(2)]
    assert folders == [Path("runs/nano-1"), Path("runs/nano-2")]
    assert all((folder / "config.json").is_file() for folder in folders)


def test_an_empty_folder_may_become_a_run(tmp_path: Path, tokenizer: CharacterTokenizer) -> None:
    (tmp_path / "run").mkdir()
    Run.create(nano(tmp_path / "run"), tokenizer)
    assert (tmp_path / "run" / "config.json").is_file()


@pytest.mark.parametrize("kind", ["run", "folder", "file"])
def test_what_is_there_is_never_written_over(tmp_path: Path, tokenizer: CharacterTokenizer, kind: str) -> None:
    out = tmp_path / "run"
    if kind == "run":
        Run.create(nano(out), tokenizer)
    elif kind == "folder":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    else:
        out.write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"^train: .*run exists already and is never written over; choose another"):
        Run.create(nano(out), tokenizer)
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("name", [".", "/"])
def test_a_path_without_a_name_is_no_place_for_a_run(
    tmp_path: Path, tokenizer: CharacterTokenizer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)  # which is empty
    with pytest.raises(InputError, match="choose another --out"):
        check_free(Path(name))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_on_the_way_leaves_nothing(
    tmp_path: Path, tokenizer: CharacterTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(folder: Path) -> None:
        folder.mkdir()
        (folder / "tokenizer.json").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tokenizer, "save", disk_full)
    with pytest.raises(InputError, match=r"cannot write the run directory .*run .*No space left.*choose another --out"):
        Run.create(nano(tmp_path / "run"), tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_appears_meanwhile_is_not_written_over(
    tmp_path: Path, tokenizer: CharacterTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    save = tokenizer.save

    def race(folder: Path) -> None:
        save(folder)
        out.mkdir()
        (out / "theirs").write_text("theirs")

    monkeypatch.setattr(tokenizer, "save", race)
    with pytest.raises(InputError, match="cannot write the run directory"):
        Run.create(nano(out), tokenizer)
    assert contents(tmp_path).keys() == {str(out), str(out / "theirs")}


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(CheckpointError, match=f"^{folder} is not a run directory: it has no config.json; give"):
            Run.open(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"steps": ', r"config\.json is damaged \(.*\); get it again"),
        (b"\xff\xfe", r"config\.json is damaged"),
        (b"[]", r"config\.json holds a list, expected an object"),
        (b'{"stepz": 3}', r"there is no setting called 'stepz'; did you mean 'steps'"),
    ],
)
def test_a_damaged_config(tmp_path: Path, tokenizer: CharacterTokenizer, content: bytes, message: str) -> None:
    run = Run.create(nano(tmp_path / "run"), tokenizer)
    (run.folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Run.open(run.folder)


def test_a_run_without_its_tokenizer(tmp_path: Path, tokenizer: CharacterTokenizer) -> None:
    run = Run.create(nano(tmp_path / "run"), tokenizer)
    (run.folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"cannot read .*tokenizer\.json"):
        Run.open(run.folder)


def test_changed_settings_are_kept(tmp_path: Path, tokenizer: CharacterTokenizer) -> None:
    run = Run.create(nano(tmp_path / "run"), tokenizer)
    longer = dataclasses.replace(run.config, steps=999)
    run.go_on(longer, 0)
    assert run.config == Run.open(run.folder).config == longer
    assert not list(run.folder.glob("*.tmp"))


# Metrics


def test_metrics_come_back_less_a_line_that_a_kill_cut_off(tmp_path: Path, tokenizer: CharacterTokenizer) -> None:
    run = Run.create(nano(tmp_path / "run"), tokenizer)
    records = [record(1), record(2, 4.5), record(3)]
    for each in records:
        run.add_metrics(each)
    path = run.folder / "metrics.jsonl"
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [set(line) - set(each) for line, each in zip(written, records, strict=True)] == [{"crc32"}] * 3
    path.write_text('{"step": 0, "lo\n' + path.read_text() + '{"step": 4, "lo')
    assert run.metrics() == records
    assert run.damaged_lines() == [("metrics.jsonl", 1)]  # the last line was cut off by a kill, which is no damage


def test_damaged_metrics_are_left_out_and_counted(tmp_path: Path, tokenizer: CharacterTokenizer) -> None:
    run = Run.create(nano(tmp_path / "run"), tokenizer)
    for step in range(1, 6):
        run.add_metrics(record(step, 4.5))
    path = run.folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"4.5", b"4.7")
    lines[3] = lines[3].replace(b"loss", b"l\xffss")
    path.write_bytes(b"".join(lines))
    assert [each["step"] for each in run.metrics()] == [1, 3, 5]
    assert run.damaged_lines() == [("metrics.jsonl", 2), ("metrics.jsonl", 4)]
    before = path.read_bytes()
    run.forget_metrics_after(3)
    assert [each["step"] for each in run.metrics()] == [1, 3]
    assert (run.folder / "metrics.damaged.jsonl").read_bytes() == before
    path.write_bytes(before)
    other = Run.create(dataclasses.replace(nano(tmp_path / "other"), seed=5), tokenizer)
    path.replace(other.folder / "metrics.jsonl")
    assert other.metrics() == []
    assert len(other.damaged_lines()) == 5


def test_lines_that_cannot_be_written_wait(tmp_path: Path, tokenizer: CharacterTokenizer) -> None:
    run = Run.create(nano(tmp_path / "run"), tokenizer)
    path = run.folder / "metrics.jsonl"
    run.add_metrics(record(1))
    good = path.read_bytes()
    path.unlink()
    path.mkdir()
    run.add_metrics(record(2))
    run.add_metrics(record(3))
    assert run.waiting.keys() == {"metrics.jsonl"}
    path.rmdir()
    path.write_bytes(good + b'{"step": 2, "l')  # the disk was full in the middle of a line
    run.add_metrics(record(4))
    assert [each["step"] for each in run.metrics()] == [1, 2, 3, 4]
    assert not run.waiting


def test_a_config_that_was_changed_is_told(tmp_path: Path, tokenizer: CharacterTokenizer) -> None:
    run = Run.create(nano(tmp_path / "run"), tokenizer)
    path = run.folder / "config.json"
    path.write_text(path.read_text().replace('"cosine"', '"wsd"'))
    with pytest.raises(CheckpointError, match=r"config\.json is not as it was written: .* take \"crc32\" out of it to"):
        Run.open(run.folder)
    content = json.loads(path.read_text())
    del content["crc32"]
    path.write_text(json.dumps(content))
    assert Run.open(run.folder).config.schedule == "wsd"


def test_the_tokenizer_of_another_run_is_told(tmp_path: Path, tokenizer: CharacterTokenizer) -> None:
    run = Run.create(nano(tmp_path / "run"), tokenizer)
    CharacterTokenizer.train("nobody else").save(run.folder / "tokenizer")
    with pytest.raises(CheckpointError, match="tokenizer is not the tokenizer that the run was trained with; restore"):
        Run.open(run.folder)


def test_one_process_at_a_time_trains_a_run(tmp_path: Path, tokenizer: CharacterTokenizer) -> None:
    run = Run.create(nano(tmp_path / "run"), tokenizer)
    second = [sys.executable, "-c", f"from minillm.cli import main; main(['train', '--resume', {str(run.folder)!r}])"]
    refused = subprocess.run(second, capture_output=True, text=True)
    assert refused.returncode == 2
    told = rf"train: process {os.getpid()} \(since \d.*\) is training {run.folder} at the moment; wait for its end, or"
    assert re.match(told, refused.stderr)
    assert len(refused.stderr.splitlines()) == 1
    with run:
        pass
    goes_on = subprocess.run(second, capture_output=True, text=True)
    assert "is training" not in goes_on.stderr  # it is refused for its tokenizer, which does not fit the text
    assert not (run.folder / ".lock").exists()


def test_what_a_killed_start_left_is_swept_and_what_lives_is_not(tmp_path: Path, tokenizer: CharacterTokenizer) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead, alive = (tmp_path / f".run.{number}.tmp" for number in (gone.stdout.strip(), os.getppid()))
    (dead / "checkpoints").mkdir(parents=True)
    (dead / "config.json").write_text("{")
    alive.mkdir()
    Run.create(nano(tmp_path / "run"), tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, "run"]


def test_metrics_after_a_step_are_forgotten_and_the_next_line_stands_alone(
    tmp_path: Path, tokenizer: CharacterTokenizer
) -> None:
    run = Run.create(nano(tmp_path / "run"), tokenizer)
    for step in range(1, 6):
        run.add_metrics(record(step))
    path = run.folder / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "lo')
    run.forget_metrics_after(3)
    assert run.metrics() == [record(1), record(2), record(3)]
    run.add_metrics(record(4, 1.0))
    assert run.metrics() == [record(1), record(2), record(3), record(4, 1.0)]
    assert len(path.read_text().splitlines()) == 4
    run.forget_metrics_after(0)
    assert path.read_text() == ""


def test_forgetting_needs_no_metrics(tmp_path: Path, tokenizer: CharacterTokenizer) -> None:
    run = Run.create(nano(tmp_path / "run"), tokenizer)
    run.forget_metrics_after(3)
    assert run.metrics() == []


# The picture


def png_size(content: bytes) -> tuple[int, int]:
    """Width and height, once every chunk's checksum is seen to be right and the pixels to be all there."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    position, kinds, pixels = 8, [], b""
    while position < len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        body = content[position + 8 : position + 8 + length]
        [checksum] = struct.unpack(">I", content[position + 8 + length : position + 12 + length])
        assert checksum == zlib.crc32(kind + body)
        kinds.append(kind)
        pixels += body if kind == b"IDAT" else b""
        position += 12 + length
    assert (kinds[0], kinds[-1]) == (b"IHDR", b"IEND")
    width, height = struct.unpack(">II", content[16:24])
    assert len(zlib.decompress(pixels)) == height * (1 + 4 * width)  # RGBA, 8 bits, and one filter byte a row
    return width, height


def test_the_plot_is_a_png_that_shows_the_losses(tmp_path: Path, tokenizer: CharacterTokenizer) -> None:
    run = Run.create(nano(tmp_path / "run"), tokenizer)
    pictures = []
    for step in range(1, 41):
        run.add_metrics(record(step, 5.0 if step % 10 == 0 else None))
        if step in (20, 40):
            assert run.plot() == run.folder / "loss.png"
            pictures.append((run.folder / "loss.png").read_bytes())
    assert pictures[0] != pictures[1]
    width, height = png_size(pictures[1])
    assert min(width, height) >= 300
    assert not [path for path in run.folder.iterdir() if "tmp" in path.name]


@pytest.mark.parametrize("records", [[], [record(1)], [record(1, 2.0)]])
def test_a_plot_of_almost_nothing(tmp_path: Path, tokenizer: CharacterTokenizer, records: list[dict]) -> None:
    run = Run.create(nano(tmp_path / "run"), tokenizer)
    for each in records:
        run.add_metrics(each)
    png_size(run.plot().read_bytes())
