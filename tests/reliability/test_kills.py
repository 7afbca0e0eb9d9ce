"""Runs that were killed end as if nothing had happened; `benchmarks/reliability.py kills` takes a --count."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.kills import trials


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_runs_end_equal_to_the_last_bit(count: int, tmp_path: Path) -> None:
    ended = trials(count, tmp_path, seed=count)
    assert {len(ends) for ends in ended.values()} == {count // 2}
    assert {one for ends in ended.values() for one in ends} <= {"equal", "too late"}
    assert sum(end == "equal" for ends in ended.values() for end in ends) > count // 2
