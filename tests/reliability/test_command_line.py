"""Wrong command lines are refused in one sentence; `benchmarks/reliability.py command_line` takes a --count."""

from __future__ import annotations

from pathlib import Path

import pytest

from minillm.cli import main
from tests.reliability.command_line import ending, fault, trials


@pytest.mark.parametrize("count", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_wrong_calls_are_refused_in_one_sentence(count: int, tmp_path: Path) -> None:
    ended = trials(count, tmp_path, seed=count, sizes=False)
    assert sum(map(len, ended.values())) == count
    assert [told for ends in ended.values() for told in ends if told] == []


def test_right_calls_work_and_are_told_from_refused_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(["guide"])[0] == 0
    main(["guide"])
    assert capsys.readouterr().out
    assert fault(*ending(["guide"]), ["guide"]) == "status 0"


@pytest.mark.parametrize(
    ("status", "errors", "told"),
    [
        (1, "minillm: x", "status 1"),
        (2, "Traceback (most recent call last):\n  x\nTypeError: y", "a traceback: TypeError: y"),
        (2, "guide: a\nb\nc\nd", "4 lines"),
        (2, "guide: [Errno 2] no", "words of the system: guide: [Errno 2] no"),
        (2, "usage: x", "begins with 'usage: x'"),
        (-14, "", "no end after 10 s"),
        (2, "guide: chapter is 99; give 1 to 12", ""),
    ],
)
def test_a_fault_is_seen(status: int, errors: str, told: str) -> None:
    assert fault(status, errors, ["guide"]) == told
