"""Processes killed while they work, and what is left

Half of the kills of a training come at a chosen call that changes the disk, in a third of these with the written file
cut in half; the other half come at any moment. A third of the runs is killed a second time, while it goes on. Every run
then goes on to its end, and must have the weights and the metrics of one that was never stopped, bit for bit; and its
folder must have the same files, with nothing beside it. The other commands are killed at every call in turn, and done
again.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minillm.checkpoint import load_checkpoint
from minillm.cli import main
from minillm.training import Run
from tests.reliability.killer import Ended, calls_of, child
from tests.reliability.row import Row

TIMES = ("seconds", "tokens_per_s")
DATED = re.compile(rb'"fingerprint": "\w+"|"modified_ns": \d+')  # of records of a corpus
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 12
TRAIN = (
    "--tokenizer char --context 8 --layers 1 --heads 2 --channels 16 --dropout 0.2 --batch-size 4 --eval-batches 2 "
    "--steps 12 --warmup 2 --eval-every 3 --sample-every 0 --watch 4 --threads 1"
).split()


def measure(count: int) -> list[Row]:
    """Kill `count` trainings, and the other commands at every call in turn, or at a few where `count` is small."""
    with tempfile.TemporaryDirectory() as folder:
        import_all()
        place = Path(folder).resolve()
        (place / "text.txt").write_text(TEXT, encoding="utf-8")
        return [*kills_of_training(place, count), *kills_of_commands(place, count)]


def import_all() -> None:
    """Import what the commands need, once, and not in every child."""
    import minillm.commands.convert
    import minillm.commands.data
    import minillm.commands.tokenizer
    import minillm.commands.train
    import minillm.training.trainer  # noqa: F401


# --- trainings -----------------------------------------------------------------------------------------------------


def kills_of_training(place: Path, count: int) -> list[Row]:
    """Rows about trainings that are killed, and then go on."""
    data = ["--data", str(place / "text.txt")]
    whole = place / "whole" / "run"
    whole.parent.mkdir()
    calls = calls_of(training(*data, *TRAIN, "--out", str(whole)), whole)
    started = time.perf_counter()
    shutil.rmtree(whole)
    child(training(*data, *TRAIN, "--out", str(whole)), whole)
    seconds = time.perf_counter() - started
    expected = content_of(whole)
    rng = np.random.default_rng(18)
    found: dict[str, Counter[str]] = {
        name: Counter() for name in ("before a call", "at a call, half written", "at any moment")
    }
    for trial in range(count):
        run = place / f"trial{trial}" / "run"
        run.parent.mkdir()
        number = 1 + int(trial // 2 * calls / (count / 2)) % calls  # they are spread evenly over all calls
        kinds = "before a call", "before a call", "at a call, half written"
        name = "at any moment" if trial % 2 else kinds[trial // 2 % 3]
        torn = name.endswith("written")
        how: dict[str, Any] = dict(seconds=rng.uniform(0, seconds)) if trial % 2 else dict(number=number, torn=torn)
        child(training(*data, *TRAIN, "--out", str(run)), run, **how)
        begun = run.exists()
        if begun and trial % 3 == 0:  # killed once more, while it goes on
            found[name]["killed twice"] += 1
            child(training("--resume", str(run)), run, number=1 + trial % 40)
        words = ["--resume", str(run)] if begun else [*data, *TRAIN, "--out", str(run)]
        ended = child(training(*words), run)
        found[name]["begun" if begun else "not begun"] += 1
        fault = difference(ended, run, expected)
        if fault:
            found[name]["faults"] += 1
            print(f"kills: trial {trial}, {name} {how}: {fault}", file=sys.stderr)
        shutil.rmtree(run.parent)
    return [
        Row(
            f"training killed {name}" + (f" ({calls} calls)" if "call" in name else ""),
            seen["begun"] + seen["not begun"],
            seen["faults"],
            f"{seen['begun']} went on, {seen['killed twice']} of them killed twice; {seen['not begun']} were killed "
            "before the run's folder was there",
        )
        for name, seen in found.items()
    ]


def training(*words: str) -> Callable[[], None]:
    """The work of a training, whose pictures are files of a few bytes: they take most of the time."""

    def work() -> None:
        Figure.savefig = lambda self, path, **_: Path(path).write_bytes(b"picture")  # type: ignore[method-assign]
        main(["train", *words])

    return work


def content_of(run: Path) -> dict[str, Any]:
    """What must be equal in two runs: their files, the arrays of both checkpoints, and the metrics without times."""
    opened = Run.open(run)
    arrays: dict[str, Any] = {}
    for name in ("last", "best"):
        found = load_checkpoint(opened.checkpoint(name))
        for key, array in {**found.model, **found.optimizer}.items():
            arrays[f"{name}: {key}"] = array.tobytes()
        arrays[f"{name}: step"] = found.state["step"]
    lines = [{key: value for key, value in line.items() if key not in TIMES} for line in opened.metrics()]
    watched = [{key: value for key, value in line.items() if key != "seconds"} for line in opened.watched()]
    files = sorted(str(path.relative_to(run.parent)) for path in run.parent.rglob("*"))
    return {**arrays, "metrics": json.dumps(lines), "watched": json.dumps(watched), "files": files}


def difference(ended: Ended, run: Path, expected: dict[str, Any]) -> str:
    """The first difference between a run that was killed and one that was not; empty if there is none."""
    if ended.status:
        return f"it ends with status {ended.status}: {ended.printed}"
    found = content_of(run)
    name = next((name for name in expected if found.get(name) != expected[name]), None)
    return "" if name is None else f"{name} differs: {found.get(name)!r:.500}, not {expected[name]!r:.500}"


# --- other commands ------------------------------------------------------------------------------------------------


def kills_of_commands(place: Path, count: int) -> list[Row]:
    """Rows about commands that are killed at a call, and then given once more."""
    text = str(place / "text.txt")
    tokenizer = place / "tokenizer"
    main(["tokenizer", "train", str(tokenizer), "--data", text, "--kind", "char"])
    (place / "texts").mkdir()
    for number, letter in enumerate("abcdef"):
        (place / "texts" / f"{letter}.txt").write_text(TEXT[number:] + letter, encoding="utf-8")
    commands: dict[str, Callable[[Path], list[str]]] = {
        "tokenizer train": lambda out: [str(out), "--data", text, "--vocab-size", "280"],
        "tokenizer encode": lambda out: [str(tokenizer), "--data", text, "--out", str(out)],
        "convert": lambda out: [str(place / "whole" / "run"), str(out)],
        "data build": lambda out: [
            str(place / "texts"),
            "--out",
            str(out),
            "--processes",
            "1",
            "--skip",
            "dedup,clean",
            "--validation",
            "0.3",
        ],
    }
    return [kills_of_command(place, name, words, count) for name, words in commands.items()]


def kills_of_command(place: Path, name: str, words: Callable[[Path], list[str]], count: int) -> Row:
    """Kill a command at calls that are spread over all, and give it once more; its files must be as they should."""

    def work(out: Path) -> Callable[[], None]:
        return lambda: main([*name.split(), *words(out)])

    out = place / "again" / "out"  # one place for all, because records name files
    out.parent.mkdir()
    calls = calls_of(work(out), out)
    expected = files_of(out)
    shutil.rmtree(out.parent)
    faults, numbers = 0, sorted(set(np.linspace(1, calls, min(calls, max(3, count // 4))).astype(int).tolist()))
    for number, torn in zip(numbers, itertools.cycle([False, True])):
        out.parent.mkdir()
        child(work(out), out, number, torn)
        ended = child(work(out), out)
        found = files_of(out)
        differing = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
        refused = ended.status and f"{out} exists already" not in ended.printed  # as a whole one may be
        if refused or differing:
            faults += 1
            told = f"status {ended.status}, {', '.join(differing)} differ: {ended.printed}"
            print(f"kills: {name} at call {number}, torn {torn}: {told}", file=sys.stderr)
        shutil.rmtree(out.parent)
    return Row(f"`{name}` killed at a call, and given once more", len(numbers), faults, f"of {calls} calls")


def files_of(out: Path) -> dict[str, bytes]:
    """The files beside and below a folder, each by its path, without what depends on the time."""
    return {
        str(path.relative_to(out.parent)): DATED.sub(b"", path.read_bytes())
        for path in out.parent.rglob("*")
        if path.is_file()
    }
