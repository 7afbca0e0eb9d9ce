"""Files appear whole or not at all, and every command names the place that it cannot write to."""

from __future__ import annotations

import re

import pytest

from minillm.cli import main
from minillm.errors import InputError
from minillm.files import writing


def test_a_file_appears_when_it_is_whole(tmp_path):
    with writing("test", tmp_path / "a.txt") as unfinished:
        unfinished.write_text("whole")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "whole"
    with pytest.raises(ZeroDivisionError), writing("test", tmp_path / "a.txt") as unfinished:
        unfinished.write_text("h" * (1 // unfinished.write_text("")))
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("place", ["nowhere/a.txt", "folder", ".", "/", "/proc/a.txt", "a" * 300])
def test_a_place_that_cannot_be_written_to_is_named(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    told = rf"^test: cannot write {re.escape(place)} \(.+\); choose another place, or make room$"
    with pytest.raises(InputError, match=told), writing("test", place) as unfinished:
        unfinished.write_text("text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("step nano --layers 1 --text abc --out /proc/a.html", "step: cannot write /proc/a.html ("),
        ("step nano --out nowhere/a.html", "step: there is no folder nowhere; make it, or choose another --out"),
        ("doctor nano --picture nowhere/a.png", "doctor: there is no folder nowhere; make it, or choose another --pic"),
        ("doctor nano --picture .", "doctor: --picture . is a folder; give the name of a file in it"),
        ("exercise start --folder /proc/exercises", "exercise start: cannot write /proc/exercises/chain_rule.py ("),
        ("exercise hint chain-rule --folder /proc/exercises", "exercise hint: cannot write /proc/exercises/progress.j"),
        ("pipeline-picture --out nowhere/a.png", "pipeline-picture: there is no folder nowhere; make it, or choose"),
        ("eval gpt2 --data x --out nowhere/a.json", "eval: there is no folder nowhere; make it, or choose another --o"),
        ("tokenizer encode /proc/version --data x --out y", "tokenizer encode: "),
    ],
)
def test_commands_name_the_place(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith(told)
    assert len(text.splitlines()) == 1


def test_a_stop_is_exported_into_a_folder_that_can_be_written_to(monkeypatch, capsys):
    monkeypatch.chdir("/proc")
    with pytest.raises(SystemExit) as ended:
        main("step nano --layers 1 --text abc --export 1".split())
    assert ended.value.code == 2
    assert "cannot write /proc/embedding_forward_wte.py (" in capsys.readouterr().err
