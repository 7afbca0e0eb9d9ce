"""A killed process loses nothing that was saved: tests/reliability/kills.py, a few times."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from minillm.cli import main
from minillm.files import UNFINISHED, sweep, unfinished_name, writing
from tests.reliability import kills, stops
from tests.reliability.killer import calls_of, child
from tests.reliability.row import Row

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/fd").is_dir(), reason="needs Linux")


def check(rows: list[Row]) -> None:
    assert [row for row in rows if row.faults] == []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(kills.TEXT)
    kills.import_all()
    return tmp_path


@pytest.mark.slow
def test_killed_trainings_go_on_to_the_same_end(place: Path) -> None:
    rows = kills.kills_of_training(place, 10)
    check(rows)
    assert sum(row.count for row in rows) == 10


@pytest.mark.slow
def test_killed_commands_can_be_given_again(place: Path) -> None:
    main(["train", "--data", str(place / "text.txt"), *kills.TRAIN, "--out", str(place / "whole" / "run")])
    check(kills.kills_of_commands(place, 8))


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_training_goes_on_whenever_it_was_stopped(place: Path, times: int) -> None:
    check([stops.stops_of_training(place, times, 4)])


def test_a_killed_writer_leaves_the_old_file_and_the_next_writer_takes_its_rest_away(tmp_path: Path) -> None:
    path = tmp_path / "work" / "file"
    path.parent.mkdir()

    def work() -> None:
        with writing("save", path) as unfinished:
            unfinished.write_text("new" * 100)

    for torn in (False, True):
        for number in range(1, calls_of(work, path.parent / "x") + 1):
            path.write_text("old")
            ended = child(work, path.parent / "x", number, torn)
            assert ended.status == -signal.SIGKILL
            assert path.read_text() in ("old", "new" * 100)
            work()
            assert [one.name for one in path.parent.iterdir()] == ["file"]


def test_a_process_with_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path: Path) -> None:
    mine = unfinished_name(tmp_path / "file")
    mine.touch()
    found = UNFINISHED.fullmatch(mine.name)
    assert found is not None
    assert (found[1], int(found[2])) == ("file", os.getpid())
    other = tmp_path / f".file.{os.getpid()}-{int(found[3]) - 1}.tmp"  # of an earlier process with this number
    other.touch()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [mine]


@pytest.mark.slow
def test_a_planted_loss_is_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that keeps the lines after its last checkpoint has them twice in the end."""
    from minillm.training.run import Run

    monkeypatch.setattr(Run, "forget_metrics_after", lambda self, step: None)
    rows = kills.kills_of_training(place, 4)
    assert sum(row.faults for row in rows) > 0
