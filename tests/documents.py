"""Markdown that is tested: the blocks of a document, and how they are run.

The README, those of the folders and the chapters of the guide keep these rules, which a reader can see:

- ```` ```python ```` is run. All blocks of a chapter share their names, as in one session of Python; what is printed is
  compared, line by line, with the comments `# prints ...`.
- ```` ```sh ```` holds commands, one a line. `# tested with --steps 2` behind one adds these words in the test;
  `# not tested: needs a GPU` leaves it out for a reason in UNTESTED; `# tested by tests/x.py` says which test has it
  instead. (A line that ends in `\\` goes on.)
- ```` ```text ```` behind commands is what the last of them prints: each line must come in its output, in this order;
  `...` stands for lines that are left out, and within a line for anything. Spaces and a table's lines do not count.

All blocks of a chapter run in one empty folder, in order: a command finds the files that the blocks before it wrote.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import minillm
from minillm.cli import COMMANDS, GROUPS, main

ROOT = Path(__file__).parents[1]
UNTESTED = (  # what a test machine lacks
    "needs a GPU",
    "needs several machines",
    "needs a published model",
    "needs a person",
    "needs a debugger",
    "installs packages",
)
DECIDING = ("--model", "--preset", "--objective")  # options on which it depends which others there are
ANOTHER_TEST = re.compile(r"tested by (tests/[\w/]+\.py)")


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str  # python, sh, text
    text: str
    line: int  # of its first line in the document


class Command(NamedTuple):
    """A line of a block of commands."""

    words: list[str]
    environment: dict[str, str]
    untested: str | None  # the reason


def blocks_of(text: str) -> list[Block]:
    """All fenced blocks of a document."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(one[1], one[2], text[: one.start()].count("\n") + 2) for one in found]


def commands_of(block: Block) -> list[Command]:
    """The commands of a block, with what their marks add."""
    commands = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        untested = re.search(r"# (?:not tested: |(?=tested by ))([^#]+)$", line)
        added = re.search(r"# tested with ([^#]+)$", line)
        environment = {}
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        words += shlex.split(added[1]) if added else []
        commands.append(Command(words, environment, untested[1].strip() if untested else None))
    return commands


def run_python(block: Block, names: dict[str, Any], capsys: Any, document: str) -> None:
    """Run a block with these names, and compare what it prints with its comments."""
    capsys.readouterr()
    padded = "\n" * (block.line - 1) + block.text  # an error names the line of the document
    exec(compile(padded, document, "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    said = re.findall(r"# prints ?(.*)$", block.text, re.MULTILINE)
    assert printed == said, f"{document}, line {block.line}, prints:\n" + "\n".join(printed)


def run_command(command: Command, folder: Path, capsys: Any) -> str:
    """Run a command in a folder and return what it prints: minillm's in this process, others in one of their own."""
    words, environment = command.words, dict(command.environment)
    if words[0] == "minillm" and set(environment) <= {"MINILLM_ENGINE"}:
        capsys.readouterr()
        status: Any = None
        with minillm.engine(environment.get("MINILLM_ENGINE", "auto")):
            try:
                main(words[1:])
            except SystemExit as end:
                status = end.code
        printed = capsys.readouterr()
        assert not status, f"{shlex.join(words)}: {printed.out[-3000:]}{printed.err}"
        return printed.out
    program = [sys.executable, *words[1:]] if words[0] == "python" else words
    everything = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(program, cwd=folder, env=everything, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{shlex.join(words)}: {result.stdout}{result.stderr}"
    return result.stdout


def words_of(line: str) -> str:
    """A line of output without the lines of a table and with single spaces."""
    return " ".join(re.sub("[│┃|]", " ", line).split())


def compare_output(shown: Block, printed: str, document: str) -> None:
    """Demand that the lines of a block come in what was printed, in this order."""
    lines = [words_of(line) for line in printed.splitlines()]
    for line in shown.text.splitlines():
        wanted = words_of(line)
        if wanted in ("", "..."):
            continue
        pattern = ".*".join(re.escape(part) for part in wanted.split("..."))
        place = next((i for i, one in enumerate(lines) if re.fullmatch(pattern, one)), None)
        assert place is not None, f"{document}, line {shown.line}: {line!r} is not printed here:\n{printed}"
        lines = lines[place + 1 :]


def name_of(words: list[str]) -> str:
    """The name of minillm's command that begins with these words: `finetune sft`."""
    return " ".join(words[1:3] if words[1] in GROUPS else words[1:2])


def check_command(command: Command, document: str) -> None:
    """Demand that a command exists, and that a reason for not running it is one of those that are allowed."""
    if command.untested is not None:
        assert command.untested in UNTESTED or ANOTHER_TEST.fullmatch(command.untested), (document, command)
    if command.words[:1] == ["minillm"] and len(command.words) > 1:
        assert name_of(command.words) in COMMANDS, (document, command)


def check_options(words: list[str], capsys: Any) -> None:
    """Demand that the help of a command has every option that is given here."""
    deciding = [word for name, value in itertools.pairwise(words) if name in DECIDING for word in (name, value)]
    with contextlib.suppress(SystemExit):
        main([*name_of(words).split(), *deciding, "--help"])
    known = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert option in known, f"{shlex.join(words)}: there is no option {option}"
