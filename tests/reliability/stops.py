"""Ctrl-C at any call that changes the disk, and what is left

Every run then goes on to its end, and must have the weights, the moments and the metrics of one that was never stopped,
bit for bit, and the same files. A training that is stopped is validated once more, so what depends on validations is
left out of the comparison.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from minillm.checksums import KEY
from minillm.counted import counted
from tests.reliability.killer import calls_of, child
from tests.reliability.kills import TEXT, TRAIN, content_of, import_all, training
from tests.reliability.row import Row


def measure(count: int) -> list[Row]:
    """Stop `count` trainings, each by one, two or three Ctrl-C."""
    with tempfile.TemporaryDirectory() as folder:
        import_all()
        place = Path(folder).resolve()
        (place / "text.txt").write_text(TEXT, encoding="utf-8")
        return [stops_of_training(place, times, count // 3) for times in (1, 2, 3)]


def stops_of_training(place: Path, times: int, count: int) -> Row:
    """Press Ctrl-C before calls that are spread over a whole training, again before the next ones, and go on."""
    data = ["--data", str(place / "text.txt")]
    whole = place / f"stopped{times}" / "run"
    whole.parent.mkdir()
    calls = calls_of(training(*data, *TRAIN, "--out", str(whole)), whole)
    expected = without_validations(content_of(whole))
    shutil.rmtree(whole.parent)
    faults, ends = 0, Counter[int]()
    for number in np.linspace(1, calls - 2, count).astype(int).tolist():
        run = place / f"stopped{times}" / "run"
        run.parent.mkdir()
        start = training(*data, *TRAIN, "--out", str(run))
        stopped = child(start, run, number, signals=(signal.SIGINT,) * times)
        ends[stopped.status] += 1
        ended = child(training("--resume", str(run)) if run.exists() else start, run)
        fault = f"status {ended.status}: {ended.printed}" if ended.status else ""
        if not fault:
            found = without_validations(content_of(run))
            fault = next((f"{name}: {found[name]}" for name in expected if found[name] != expected[name]), "")
        if stopped.status not in (0, 130) or "Traceback" in stopped.printed:
            fault = f"status {stopped.status} when it is stopped: {stopped.printed}"
        if fault:
            faults += 1
            print(f"stops: Ctrl-C {times} times from call {number} on: {fault}", file=sys.stderr)
        shutil.rmtree(run.parent)
    told = f"{ends[0]} saved or were done (status 0), {ends[130]} ended at once (status 130)"
    return Row(f"Ctrl-C, pressed {counted(times, 'time')}", sum(ends.values()), faults, told)


def without_validations(content: dict[str, Any]) -> dict[str, Any]:
    """Of the content of a run, what does not depend on when it was validated."""
    lines = [
        {key: value for key, value in line.items() if not key.startswith("val_") and key != KEY}
        for line in json.loads(content["metrics"])
    ]
    kept = {name: value for name, value in content.items() if not name.startswith(("best", "metrics"))}
    return {**kept, "metrics": json.dumps(lines)}
