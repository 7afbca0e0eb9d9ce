"""The output of a run, on a terminal and elsewhere."""

from __future__ import annotations

import functools
import io
import math
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from minillm.tokenizers import CharacterTokenizer
from minillm.training import display
from minillm.training.config import TrainConfig
from minillm.training.saving import State
from minillm.training.tasks.causal import CausalTask

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Shown(io.StringIO):
    """An output that always works, and can be read."""

    broken = ""


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Everything that is printed, to no terminal unless a test says so; 40 columns, so that a wrapped line shows."""
    file = Shown()
    monkeypatch.setattr(display, "Output", lambda: file)
    monkeypatch.setattr(display, "Console", functools.partial(Console, width=40))
    return file


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, shown: io.StringIO, width: int = 120) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(display, "Console", functools.partial(Console, width=width, force_terminal=True))


def task_of(tokenizer: Any, tokens: Any) -> CausalTask:
    """A task that can be told about."""
    task = CausalTask.__new__(CausalTask)
    task.tokenizer, task.corpus = tokenizer, SimpleNamespace(train=tokens)
    return task


def make(folder: str = "runs/nano-1", step: int = 0, records: list[dict[str, Any]] | None = None) -> display.Display:
    tokenizer = SimpleNamespace(vocab_size=1024, encode=list)
    written = list(records or [])
    return display.Display(
        SimpleNamespace(
            folder=Path(folder),
            metrics=lambda: written,
            add_metrics=written.append,
            watched=list,
            waiting={},
            plot=lambda: Path("loss.png"),
        ),
        1234567,
        task_of(tokenizer, range(98765)),
        State(step=step),
        TrainConfig(steps=200),
    )


def record(step: int, val_loss: float | None = None, speed: float = 1000.0) -> dict[str, Any]:
    return {"step": step, "loss": 3.25, "val_loss": val_loss, "tokens_per_s": speed, "seconds": 12.4}


def test_it_starts_with_what_is_trained_on_what(shown: io.StringIO) -> None:
    make()
    make(step=7)
    lines = shown.getvalue().splitlines()
    assert lines[0] == (
        f"1,234,567 weights, 98,765 training tokens, vocabulary 1,024 (a uniform guess has loss {math.log(1024):.2f})"
    )
    assert lines[1] == "run directory runs/nano-1"
    assert lines[3] == "run directory runs/nano-1, from step 7"


def test_elsewhere_it_prints_a_plain_line_a_validation(shown: io.StringIO) -> None:
    with make() as progress:
        shown.truncate(0)
        shown.seek(0)
        for step in range(1, 21):
            progress.step(record(step, 2.5 + step if step % 10 == 0 else None), 1.536)
    assert shown.getvalue().splitlines() == [
        "step 10/200  loss 3.250  validation 12.500  1,000 tokens/s  12 s",
        "step 20/200  loss 3.250  validation 22.500  1,000 tokens/s  12 s",
        "at 1.54e+03 ms a step, about 4.8 minutes to go",
    ]
    assert "\x1b" not in shown.getvalue()


def test_on_a_terminal_it_shows_a_live_line(monkeypatch: pytest.MonkeyPatch, shown: io.StringIO) -> None:
    on_a_terminal(monkeypatch, shown)
    with make() as progress:
        shown.truncate(0)
        shown.seek(0)
        progress.step(record(50, 2.75), 1.536)
        progress.progress.refresh()
    live = CONTROL.sub("", shown.getvalue())
    assert "\x1b[" in shown.getvalue()
    assert "50/200" in live
    assert "loss 3.250  validation 2.750  1,000 tokens/s" in live
    assert re.search(r"(\d:\d\d:\d\d|-:--:--) left", live)
    assert "step 50/200  loss" not in live  # no plain line as well


def test_the_last_validation_stays_on_the_live_line(monkeypatch: pytest.MonkeyPatch, shown: io.StringIO) -> None:
    on_a_terminal(monkeypatch, shown)
    with make() as progress:
        progress.step(record(1, 2.75), 1.536)
        progress.step(record(2), 1.536)
        shown.truncate(0)
        shown.seek(0)
        progress.progress.refresh()
    assert "validation 2.750" in CONTROL.sub("", shown.getvalue())


def test_the_speed_is_a_running_mean(shown: io.StringIO) -> None:
    progress = make()
    progress.step(record(1, speed=1000), 1.536)
    assert progress.speed == 1000
    progress.step(record(2, speed=2000), 1.536)
    assert progress.speed == pytest.approx(1050)
    for step in range(3, 200):
        progress.step(record(step, speed=2000), 1.536)
    assert progress.speed == pytest.approx(2000, rel=1e-3)


SAMPLE = "[bold]x[/bold] [0] \\[/] {brace} :smile: http://a.b \tend\n  ä\u2028 and a line of more than 40 columns"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_sample_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, shown: io.StringIO, terminal: bool) -> None:
    """Text of a model may hold anything: no markup, no emoji codes, no broken lines."""
    if terminal:
        on_a_terminal(monkeypatch, shown, width=40)
    progress = make()
    shown.truncate(0)
    shown.seek(0)
    progress.sample("To [be]", SAMPLE)
    expected = f"To [be]{SAMPLE}\n{'-' * 40}\n"
    assert CONTROL.sub("", shown.getvalue()).expandtabs() == expected.expandtabs()


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_end_says_what_came_of_it_and_what_to_type_next(shown: io.StringIO, interrupted: bool) -> None:
    records = [record(10, 3.0), record(11), record(20, 2.5), record(30, 2.75), record(31)]
    progress = make(records=records)
    shown.truncate(0)
    shown.seek(0)
    progress.finish(State(step=31, seconds=61.2, best_loss=2.5, best_step=20), interrupted)
    lines = shown.getvalue().splitlines()
    assert lines[0] == "validation loss: last 2.7500 at step 30, best 2.5000 at step 20; 61 s of training"
    assert lines[1] == "loss curve: runs/nano-1/loss.png"
    if interrupted:
        assert lines[2:] == ["stopped and saved at step 31; to go on:", "  minillm train --resume runs/nano-1"]
    else:
        assert lines[2] == "to sample from it:"
        assert shlex.split(lines[3])[:5] == ["minillm", "sample", "runs/nano-1", "--prompt", "The "]
        assert len(lines) == 4


@pytest.mark.parametrize(
    "folder", ["/deep/" * 20 + "run", "my runs/a b", "runs/[bold]x[/bold]", "it's", "runs/$HOME", "runs/:smile:"]
)
@pytest.mark.parametrize("interrupted", [False, True])
def test_the_command_can_be_pasted_whatever_the_folder_is_called(
    shown: io.StringIO, folder: str, interrupted: bool
) -> None:
    progress = make(folder)
    assert f"run directory {Path(folder)}" in shown.getvalue().splitlines()
    progress.finish(State(step=3), interrupted)
    assert str(Path(folder)) in shlex.split(shown.getvalue().splitlines()[-1])


def test_the_prompt_is_one_that_the_tokenizer_can_write(shown: io.StringIO) -> None:
    tokenizer = CharacterTokenizer.train("it's [so] small")
    progress = make()
    progress.task = task_of(tokenizer, np.array(tokenizer.encode("it's [so] small")))
    progress.finish(State(step=3), stopped=False)
    assert shlex.split(shown.getvalue().splitlines()[-1])[3:5] == ["--prompt", "it's [so"]


def test_a_run_without_a_validation_ends_too(shown: io.StringIO) -> None:
    make().finish(State(), stopped=False)
    assert "validation loss" not in shown.getvalue()


def test_an_error_in_the_loop_stops_the_live_line(monkeypatch: pytest.MonkeyPatch, shown: io.StringIO) -> None:
    on_a_terminal(monkeypatch, shown)
    with pytest.raises(ZeroDivisionError), make() as progress:
        raise ZeroDivisionError
    assert progress.progress.live.is_started is False
    assert shown.getvalue().rstrip("\n").endswith("\x1b[?25h")  # the cursor is back
