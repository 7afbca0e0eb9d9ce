"""Wrong command lines: each is refused in one sentence

Every command gets random wrong words: values of a wrong type, empty ones, huge, negative and NaN ones, unknown and
doubled options, options without a value, files that are missing, empty, binary or folders, and sizes that no machine
has. Such a call must end within ten seconds and two gigabytes, with status 2 and an error of at most three lines that
begins with the program's own words and has no traceback. Each trial is a forked process.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from minillm import cli
from minillm.options import Option, options_of
from tests.reliability.row import Row

SECONDS = 10
MEMORY = 2 << 30  # bytes
NUMBERS = (
    "x",
    "",
    "1.5.2",
    "1e",
    "0x10",
    "12x",
    "--",
    "\udcff",
    "²",
    "1e18",
    "9" * 30,
    "-" + "9" * 30,
    "NaN",
    "12 monkeys",
)
NOT_WHOLE = ("1.5", "1e3", "inf", "-inf", "true")
ABSURD = ("1e18", "9" * 25, "-1" + "0" * 25)
# What a trial gives to a command before the wrong words, so that these and nothing else are refused.
SIZES = {
    "describe": (["gpt2"], ("--layers", "--channels", "--heads", "--context", "--vocab-size")),
    "train": (["--preset", "nano"], ("--layers", "--channels", "--batch-size", "--context", "--vocab-size")),
    "step": (["nano", "--text", "the cat"], ("--layers", "--channels", "--context", "--vocab-size")),
    "plan": (["gpt2"], ("--layers", "--channels", "--context", "--vocab-size", "--batch-size")),
    "profile": (["--preset", "nano"], ("--layers", "--channels", "--batch-size", "--context", "--vocab-size")),
}
MAY_BE_MISSING = ("--folder",)  # of the exercises, which `exercise list` only looks for
LARGE = ("1000000", "100000000", "2000000000", "1000000000000", "1e18", "9" * 20)


def described(command: str) -> list[Option]:
    """The options of a command."""
    return list(options_of(cli.options_of(command)))


def wrong_value(option: Option, draw: random.Random, folder: Path) -> str | None:
    """A value that an option cannot have; None where it takes any text."""
    if option.choices:
        return draw.choice(["", "nonsense", "\udce4", option.choices[0] + "x", option.choices[0].upper() + "?"])
    if option.kind is int:
        return draw.choice(NUMBERS[:7] + NUMBERS[8:] + NOT_WHOLE + ABSURD) if not option.unit else "x"
    if option.kind is float:
        return draw.choice(NUMBERS[:5] + NUMBERS[8:9] + ("12 monkeys",))
    if option.kind is Path and option.name in MAY_BE_MISSING:
        return ""
    if option.kind is Path:
        return draw.choice(["", f"{folder}/missing/x", f"{folder}/binary", f"{folder}/a\0b", "\udcff" * 300])
    return None


def wrong_call(draw: random.Random, folder: Path, sizes: bool) -> tuple[str, list[str]]:
    """What is wrong, and the words of a call."""
    command = draw.choice(list(cli.COMMANDS))
    words, options = command.split(), described(command)
    named = [option for option in options if not option.positional]
    kinds = ["unknown option", "missing value", "wrong value", "misspelt command", "file", "size", "flag with a value"]
    kind = draw.choice([one for one in kinds if sizes or one != "size"])
    if kind == "size":
        command = draw.choice(list(SIZES))
        given, names = SIZES[command]
        return kind, [command, *given, draw.choice(names), draw.choice(LARGE)]
    if kind == "misspelt command":
        spoilt = command[: draw.randrange(len(command))] + draw.choice(["q", "ü", "\udcff", "-", ""]) + "x"
        return kind, [spoilt, *draw.sample(["--help", "", "1", "--seed"], 2)][:2]
    if kind == "unknown option":
        near = draw.choice(named).name if named else "--seed"
        name = draw.choice(
            [near + "s", near.replace("-", "") + "x", "--" + near[3:] + "q", "--\udcff", "-q", "--ü=1", "-\n"]
        )
        return kind, draw.choice([[*words, name, "1"], [*words, "x", name], [*words, name]])
    if kind == "file":
        if command == "tokenizer train":  # its path is where the tokenizer goes, so a missing one is right
            return kind, [*words, draw.choice([f"{folder}/binary", "a\0b", ""])]
        which = draw.choice(["missing", "empty", "binary", "directory", "a\0b", "", "\udcff", "x" * 5000, "text.json"])
        path = which if which in ("", "\udcff") or "\0" in which or len(which) > 99 else f"{folder}/{which}"
        if not any(option.positional for option in options):
            return kind, [*words, "--init" if command == "train" else "--model", path]
        return kind, [*words, path, *(["--out", f"{folder}/missing/a/b"] if draw.random() < 0.3 else [])]
    valued = [option for option in named if option.kind is not bool]
    if kind == "flag with a value" and (flags := [option for option in named if option.kind is bool]):
        return kind, [*words, f"{draw.choice(flags).name}={draw.choice(['1', 'true', '', 'ü'])}"]
    if kind == "missing value" and (needy := [option for option in valued if option.alone is None]):
        return kind, [*words, draw.choice(needy).name]
    choices = [(option, value) for option in valued if (value := wrong_value(option, draw, folder)) is not None]
    if not choices:
        return "unknown option", [*words, "--no-such-option"]
    option, value = draw.choice(choices)
    doubled = [option.name, value] if draw.random() < 0.2 else []
    return "wrong value", [*words, *doubled, f"{option.name}={value}"]


def ending(words: list[str]) -> tuple[int, str]:
    """Run a call in a forked process; returns its status (that of a signal is negative), and what it said on stderr."""
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            status = 70
            try:
                os.dup2(errors.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_RDWR), 1)
                os.dup2(1, 0)
                sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace")
                sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8")
                sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8")
                size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(SECONDS)
                cli.main(words)
                status = 0
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            except BaseException as error:
                with contextlib.suppress(Exception):
                    print(f"Traceback {type(error).__name__}: {error}", file=sys.stderr)
            finally:
                with contextlib.suppress(Exception):
                    sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        errors.seek(0)
        return os.waitstatus_to_exitcode(status), errors.read().decode("utf-8", "replace")


def fault(status: int, errors: str, words: list[str]) -> str:
    """What is wrong with the end of a wrong call, or nothing."""
    if status == -signal.SIGALRM:
        return f"no end after {SECONDS} s"
    if "Traceback" in errors:
        return f"a traceback: {errors.strip().splitlines()[-1][:150]}"
    if status != 2:
        return f"status {status}"
    lines = errors.strip().splitlines()
    if not 1 <= len(lines) <= 3:
        return f"{len(lines)} lines"
    first = words[0] if words and words[0] in " ".join(cli.COMMANDS).split() else "minillm"
    if not (errors.startswith((f"{first}", "minillm"))):
        return f"begins with {errors[:60]!r}"
    if "[Errno" in errors:
        return f"words of the system: {errors.strip()[:150]}"
    return ""


def trials(count: int, folder: Path, seed: int = 0, sizes: bool = True) -> dict[str, list[str]]:
    """Give `count` wrong calls; returns for each kind the faults, an empty text for a call that was refused rightly.

    sizes: also give sizes that no machine has.
    """
    (folder / "empty").touch()
    (folder / "binary").write_bytes(bytes(range(256)) * 8)
    (folder / "text.json").write_text('{"a": [1, 2')
    (folder / "directory").mkdir()
    for command in cli.COMMANDS:
        cli.function_of(command)  # loads what the processes of the trials then have
    draw = random.Random(seed)
    ended: dict[str, list[str]] = {}
    here = Path.cwd()
    os.chdir(folder)
    try:
        for _ in range(count):
            kind, words = wrong_call(draw, folder, sizes)
            told = fault(*ending(words), words)
            ended.setdefault(kind, []).append(f"minillm {' '.join(words)[:120]!r}: {told}" if told else "")
    finally:
        os.chdir(here)
    return ended


def measure(count: int) -> list[Row]:
    """The table: a row for each kind of wrong call."""
    folder = Path(tempfile.mkdtemp())
    try:
        ended = trials(count, folder)
    finally:
        shutil.rmtree(folder)
    rows = []
    for kind, ends in sorted(ended.items()):
        faults = [one for one in ends if one]
        often = "; ".join(f"{told} ({number})" for told, number in Counter(faults).most_common(3))
        rows.append(Row(kind, len(ends), len(faults), often or "all refused with status 2 and one sentence"))
    return rows
