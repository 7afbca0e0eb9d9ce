"""Trials of disk.py and compilers.py, some of each kind; `benchmarks/reliability.py disk` does all of them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from minillm.errors import InputError
from minillm.files import check_is_file, writing

pytest.importorskip("resource", reason="limits of a process are those of Unix")
pytest.importorskip("matplotlib", reason="a run draws its curve")

from tests.reliability import compilers, disk
from tests.reliability.faults import Disk, in_child

no_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Iterator[disk.Place]:
    with disk.place(tmp_path_factory.mktemp("disk")) as made:
        yield made


def test_a_failing_call_is_seen_by_who_makes_it(tmp_path):
    for error in disk.ERRORS:
        failing = Disk(tmp_path, at=1, error=error)
        with failing.watched(), pytest.raises(OSError, match=os.strerror(error)):
            (tmp_path / "one").write_text("opened by call 0, written by call 1")
    with Disk(tmp_path / "elsewhere", at=0, error=errno.EIO).watched():
        (tmp_path / "two").write_text("not counted")


def test_an_end_is_judged():
    assert not in_child(lambda: print("fine")).faults()
    assert in_child(lambda: 1 / 0).faults(), "a traceback"
    assert in_child(lambda: os.kill(os.getpid(), 9)).faults(), "a signal"
    assert in_child(lambda: os.read(os.pipe()[0], 1), seconds=0.1).faults(), "a hang"
    refused = in_child(lambda: (print("x.bin is damaged"), os._exit(2)))
    assert refused.faults("y.bin")
    assert not refused.faults("y.bin", "x.bin")


def test_shards_that_change_under_a_training(here):
    count, found = disk.shards_in_use(here)
    assert count == 6
    assert not found, found


@no_compiler
def test_damaged_kernels_and_compilers_that_fail(tmp_path):
    rows = compilers.trials(tmp_path)
    assert [count for _, count, _ in rows] == [8, 3, 13]
    assert not any(found for _, _, found in rows), rows


def test_a_pipe_is_neither_read_nor_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=r"f: .*pipe is a pipe, which cannot be read as a file; write what it gives"):
        check_is_file("f", pipe)
    with pytest.raises(InputError, match="/dev/zero is a device"):
        check_is_file("f", "/dev/zero")
    with pytest.raises(InputError, match="pipe is a device, a pipe or a socket"), writing("f", pipe) as unfinished:
        unfinished.write_text("x")
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    check_is_file("f", Path(__file__))
    check_is_file("f", tmp_path / "missing")


@pytest.mark.slow
def test_calls_of_a_training_that_fail(here):
    count, found = disk.failing_calls(here, errors=1, every=17)
    assert count >= 7
    assert not found, found


@pytest.mark.slow
def test_other_commands_on_a_disk_that_fails(here):
    rows = disk.other_commands(here, errors=1, every=17)
    assert len(rows) == 8
    assert all(count >= 4 for _, count, _ in rows), rows
    assert not any(found for _, _, found in rows), rows


@pytest.mark.slow
def test_pipes_devices_sockets_and_folders(here):
    count, found = disk.files_that_are_none(here, every=5)
    assert count >= 20
    assert not found, found
