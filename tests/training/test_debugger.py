"""A debugger under `minillm train`, on a terminal: the live line makes room for its prompt, and comes back after it."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="there is no pseudo-terminal here")

# `train` with something that happens before the third step.
PROGRAM = """
import pdb, sys
from minillm import cli
from minillm.training import trainer
before = trainer.learning_rate
def learning_rate(config, step):
    if step == 2:
        {happens}
    return before(config, step)
trainer.learning_rate = learning_rate
cli.main(sys.argv[1:])
"""
OPTIONS = "--preset nano --steps 6 --eval-every 2 --eval-batches 1 --sample-every 0 --warmup 1".split()
SHOWN, HIDDEN, ERASE = "\x1b[?25h", "\x1b[?25l", "\x1b[2K"  # the cursor; the line, which the live line draws again
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A program on a terminal of 120 columns; `read_until` returns what it has written since the last call."""

    def __init__(self, command: list[str], folder: Path):
        self.ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40", "PYTHONBREAKPOINT": ""}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.waiting = ""

    def _more(self) -> bool:
        assert select.select([self.ours], [], [], 120)[0], f"nothing more was written: {self.waiting!r}"
        try:
            piece = os.read(self.ours, 65536).decode(errors="replace")
        except OSError:  # the program has ended
            return False
        self.waiting += piece
        return bool(piece)

    def read_until(self, text: str) -> str:
        while text not in self.waiting:
            assert self._more(), f"{text!r} was never written: {self.waiting!r}"
        found, _, self.waiting = self.waiting.partition(text)
        return found + text

    def read_to_end(self) -> str:
        while self._more():
            pass
        found, self.waiting = self.waiting, ""
        self.process.wait()
        return found

    def type(self, line: str) -> None:
        os.write(self.ours, line.encode() + b"\n")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


@pytest.fixture
def start(tmp_path):
    terminals = []

    def start_program(happens: str, *options: str, before: tuple[str, ...] = ()) -> Terminal:
        (tmp_path / "text.txt").write_text("all work and no play makes Jack a dull boy. " * 400)
        (tmp_path / "program.py").write_text(PROGRAM.format(happens=happens))
        given = [*OPTIONS, "--data", "text.txt", "--out", "run", *options]
        terminals.append(Terminal([sys.executable, *before, "program.py", "train", *given], tmp_path))
        return terminals[-1]

    yield start_program
    for terminal in terminals:
        terminal.close()


def test_a_run_without_a_debugger_has_a_live_line(start):
    shown = start("pass").read_to_end()
    assert HIDDEN in shown
    assert "6/6" in shown
    assert shown.count("step 2/6  loss") == 0
    assert "to sample from it" in shown


@pytest.mark.parametrize("happens", ["breakpoint()", "pdb.set_trace()"])
def test_the_live_line_makes_room_for_the_prompt_and_comes_back(start, happens):
    terminal = start(happens)
    before = terminal.read_until("(Pdb) ")
    assert HIDDEN in before, "there was a live line"
    assert before.rfind(SHOWN) > before.rfind(HIDDEN), "and now the cursor is there"
    assert re.search(r"\n> \S*program\.py\(\d+\)learning_rate\(\)", CONTROL.sub("", before)), "a line of its own"
    terminal.type("p 6 * 7, step")
    answer = terminal.read_until("(Pdb) ")
    assert "(42, 2)" in answer
    terminal.type("n")
    answer += terminal.read_until("(Pdb) ")
    assert HIDDEN not in answer
    assert ERASE not in answer, "nothing is drawn between prompts"
    terminal.type("c")
    after = terminal.read_to_end()
    assert HIDDEN in after, "the live line is back"
    assert "6/6" in after
    assert "to sample from it" in after
    assert terminal.process.returncode == 0


def test_while_a_debugger_has_breakpoints_lines_are_plain(start):
    terminal = start("breakpoint()")
    terminal.read_until("(Pdb) ")
    terminal.type("b trainer.Display.finish")
    terminal.read_until("(Pdb) ")
    terminal.type("c")
    steps = terminal.read_until("(Pdb) ")
    assert HIDDEN not in steps
    assert ERASE not in steps
    assert re.search(r"step 4/6  loss \d\.\d+  validation \d\.\d+", steps)
    terminal.type("c")
    assert "to sample from it" in terminal.read_to_end()


def test_after_an_error_the_debugger_has_the_terminal(start):
    terminal = start("1 / 0", before=("-m", "pdb", "-c", "continue"))
    before = terminal.read_until("(Pdb) ")
    assert "ZeroDivisionError" in before
    assert before.rfind(SHOWN) >= before.rfind(HIDDEN)
    terminal.type("p 6 * 7, step")
    assert "(42, 2)" in terminal.read_until("(Pdb) ")


def test_without_progress_there_are_plain_lines(start):
    shown = start("pass", "--no-progress").read_to_end()
    assert "\x1b[" not in shown
    assert re.findall(r"step (\d)/6  loss", shown) == ["2", "4", "6"]
