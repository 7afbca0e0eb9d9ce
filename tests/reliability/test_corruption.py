"""Damaged files are found when they are read; `benchmarks/reliability.py corruption` does this 2,000 times."""

from __future__ import annotations

from pathlib import Path

from tests.reliability.corruption import READERS, trials


def test_no_damage_is_used_without_a_word(tmp_path: Path) -> None:
    ended = trials(6 * len(READERS), tmp_path)
    assert len(ended) == 6 * len(READERS)
    faults = {place: counts for place, counts in ended.items() if set(counts) - {"refused", "harmless"}}
    assert faults == {}
    assert sum(counts["refused"] for counts in ended.values()) > 5 * len(READERS)
