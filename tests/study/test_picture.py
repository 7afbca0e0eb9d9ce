"""The picture of a pipeline: each bar is an event where and when it was, and the command draws one from a run."""

from __future__ import annotations

import matplotlib.figure
import pytest

from minillm.cli import main
from minillm.errors import InputError
from minillm.parallel.pipeline import Event, schedule, simulate
from minillm.study import picture
from minillm.study.picture import COLORS, Measured, draw, measure, shortest

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    found = []
    save = matplotlib.figure.Figure.savefig

    def saved(figure, path, **options):
        found.append(figure)
        save(figure, path, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", saved)
    return found


def test_bars_are_events(figures, tmp_path, monkeypatch):
    monkeypatch.setattr(picture.os, "cpu_count", lambda: 3)
    events = simulate("1f1b", 3, 5, forward=0.01, backward=0.02)
    draw(Measured("1f1b", 3, 5, events), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(PNG)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    (axes,) = figures[0].axes
    bars = {
        (bar.get_y() + bar.get_height() / 2, kind, bar.get_x(), bar.get_width())
        for kind, bars in zip(COLORS, axes.containers, strict=True)
        for bar in bars
    }
    expected = {(e.stage, e.kind, 1e3 * e.start, 1e3 * (e.end - e.start)) for e in events}
    assert {tuple(map(told, bar)) for bar in bars} == {tuple(map(told, event)) for event in expected}
    numbers = {(told(text.get_position()[0]), text.get_position()[1], text.get_text()) for text in axes.texts}
    assert numbers == {(told(500 * (e.start + e.end)), e.stage, str(e.micro_batch)) for e in events}
    assert axes.yaxis_inverted()  # the first stage on top
    assert axes.get_title() == "1f1b, 3 stages, 5 micro-batches: bubble 29% measured, 29% in theory"
    assert axes.get_xlim() == (0, pytest.approx(210))  # (5 + 3 - 1) times 30 ms


def told(value):
    return round(value, 6) if isinstance(value, float) else value


def test_a_bar_too_narrow_has_no_number(figures, tmp_path):
    events = [Event(0, "forward", 0, 0.0, 0.001), Event(0, "backward", 0, 0.001, 1.0)]
    draw(Measured("gpipe", 1, 1, events), tmp_path / "picture.png")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["0"]
    assert figures[0].axes[0].get_title() == "gpipe, 1 stage, 1 micro-batch: bubble 0% measured, 0% in theory"


def test_the_shortest_step_begins_at_zero():
    long = [Event(0, "forward", 0, 1.0, 2.0), Event(1, "forward", 0, 2.0, 9.0)]
    short = [Event(1, "forward", 0, 12.0, 15.0), Event(0, "forward", 0, 10.0, 11.0)]
    assert shortest([long, short]) == [Event(1, "forward", 0, 2.0, 5.0), Event(0, "forward", 0, 0.0, 1.0)]


def test_the_title_says_when_stages_share_cores(monkeypatch):
    monkeypatch.setattr(picture.os, "cpu_count", lambda: 2)
    title = Measured("gpipe", 4, 2, simulate("gpipe", 4, 2)).title()
    assert title == "gpipe, 4 stages on 2 cores, 2 micro-batches: bubble 60% measured, 60% in theory"


def test_the_command_draws_a_run(figures, tmp_path, capsys):
    out = tmp_path / "picture.png"
    main(["pipeline-picture", "--stages", "2", "--micro-batches", "3", "--schedule", "gpipe", "--out", str(out)])
    assert out.read_bytes().startswith(PNG)
    line = capsys.readouterr().out
    assert line.startswith("gpipe, 2 stages, 3 micro-batches: bubble ") or " on 1 core, " in line
    assert line.endswith(f" ms: {out}\n")
    axes = figures[0].axes[0]
    bars = [
        (bar.get_y() + bar.get_height() / 2, bar.get_x(), kind)
        for kind, bars in zip(COLORS, axes.containers, strict=True)
        for bar in bars
    ]
    for stage in range(2):
        kinds = [kind for where, _, kind in sorted(bars) if where == stage]
        assert kinds == [kind for kind, _ in schedule("gpipe", stage, 2, 3)]


def test_what_cannot_be_drawn_is_said(tmp_path, capsys):
    with pytest.raises(InputError, match=r"^pipeline-picture: stages=0 and micro_batches=8; give 1 or more of each$"):
        measure(0)
    with pytest.raises(InputError, match="there is no '2f2b'; choose 1f1b or gpipe"):
        measure(kind="2f2b")
    with pytest.raises(SystemExit):
        main(["pipeline-picture", "--out", str(tmp_path / "nowhere" / "picture.png")])
    nowhere = tmp_path / "nowhere"
    expected = f"pipeline-picture: there is no folder {nowhere}; make it, or choose another --out\n"
    assert capsys.readouterr().err == expected
