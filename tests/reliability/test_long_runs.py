"""A long run, many short ones and many starts of ranks leave nothing behind; the table has the long counts."""

from __future__ import annotations

import mmap
import os

import pytest

from tests.reliability import long_runs


def test_what_stays_is_counted():
    before = long_runs.Kept.now()
    kept = mmap.mmap(-1, 4_000_000)  # not from memory that was used before
    kept.write(bytes(range(250)) * 16_000)
    file = open(os.devnull)  # noqa: SIM115
    try:
        assert long_runs.Kept.now().faults_since(before) == 2
    finally:
        file.close()
    kept.close()
    assert before.faults_since(before) == 0


@pytest.mark.slow
def test_little_stays_after_short_runs():
    """Files, threads and lines; memory needs the long counts, because the first runs fill caches."""
    for row in long_runs.measure(15):
        files, threads = (part.split(", then ") for part in row.told.split("; ")[1:3])
        assert int(files[0].split()[-1]) >= int(files[1]), row
        assert int(threads[0].split()[-1]) >= int(threads[1].split(";")[0]), row
        assert row.faults <= 1, row
