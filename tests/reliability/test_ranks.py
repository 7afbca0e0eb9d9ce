"""Ranks that are killed, stopped, slow or talked to by strangers, a few of each; the table tries more."""

from __future__ import annotations

import errno
import os
import time

import pytest

from minillm.errors import ParallelError
from minillm.parallel import segments, shared_memory
from tests.parallel.test_faults import shared_memory_names
from tests.reliability import ranks


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.txt").write_text(ranks.TEXT)
    return tmp_path


def test_no_faults(folder):
    """What takes a second or two each."""
    for row in (ranks.slow(folder, 1), ranks.strangers(folder, 100), ranks.clock_steps(folder, 1)):
        assert row.count
        assert row.faults == 0, row


@pytest.mark.slow
def test_no_faults_in_trainings(folder):
    for row in (ranks.killed(folder, 6), ranks.stopped(folder, 1), ranks.launcher_killed(folder, 1)):
        assert row.count
        assert row.faults == 0, row
    for row in (ranks.one_port(folder, 1), ranks.told_once(folder, 1), ranks.no_room(1)):
        assert row.faults == 0, row


def test_a_fault_is_counted(folder):
    def trial(number):
        assert number != 1, "on purpose"

    assert ranks.counted("anything", 3, trial, "") == ("anything", 3, 1, "")


def test_shared_memory_without_room(monkeypatch):
    """In a container without memfd_create whose /dev/shm is full."""
    before = shared_memory_names()

    def full(file, start, count):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def forbidden(name):
        raise PermissionError("seccomp")

    monkeypatch.setattr(os, "memfd_create", forbidden)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ParallelError, match=r"connect: /dev/shm has no 3 MB .*No space left on device.*make room"):
        segments.create_segment(2)
    monkeypatch.undo()
    monkeypatch.setattr(os, "memfd_create", forbidden)
    memory = segments.create_segment(2)  # there is room
    memory.close()
    memory.unlink()
    assert shared_memory_names() <= before


def test_a_wait_that_was_stopped_itself_waits_on(monkeypatch):
    """A job that is stopped whole, for longer than its timeout, goes on: time that it stood does not count."""
    memory = segments.create_segment(2)
    communicator = shared_memory.SharedMemoryCommunicator(0, (0, 1), memory, timeout=5.0)
    now, calls = 1000.0, 0

    class Clock:
        sleep = staticmethod(time.sleep)

        @staticmethod
        def monotonic():
            return now

    def ready():
        nonlocal now, calls
        calls += 1
        now += 400.0 if calls == 100 else 0.001
        return calls > 300

    monkeypatch.setattr(shared_memory, "time", Clock)
    communicator._poll("all_reduce", ready, lambda: [1])
    assert calls > 300
    with pytest.raises(ParallelError, match="waited 5 s for ranks 1"):
        communicator._poll("all_reduce", lambda: setattr(Clock, "monotonic", lambda: tick()), lambda: [1])
    memory.unlink()
    communicator.close()


def tick(state=[1000.0]):  # noqa: B006
    state[0] += 0.5
    return state[0]
