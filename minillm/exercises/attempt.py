"""Check a learner's file in a process of its own, with a time limit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from minillm.exercises.exercise import Exercise
from minillm.exercises.grade import Finding

GRACE = 120  # seconds for the process to start and to end by itself


def attempt(exercise: Exercise, path: Path, seconds: float) -> Finding:
    """The finding on a file; a file that does not end within `seconds`, or crashes, is answered too."""
    path = path.resolve()
    root = str(Path(__file__).parents[2])  # this copy of minillm, wherever the file of the learner is
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    with tempfile.TemporaryDirectory() as folder:
        answer, trace = Path(folder, "answer.json"), Path(folder, "trace.txt")
        words = [exercise.name, str(path), str(seconds), str(answer), str(trace)]
        # -P: a file beside the learner's that is called as a module of Python's own stays unused
        command = [sys.executable, "-P", "-m", "minillm.exercises.child", *words]
        sys.stdout.flush()
        try:
            limit = exercise.compiling + seconds + GRACE if seconds else None
            status: int | None = subprocess.run(command, env=environment, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            status = None
        if answer.is_file():
            found = json.loads(answer.read_text(encoding="utf-8"))
            return Finding(**{**found, "lines": tuple(found["lines"])})
        text = trace.read_text(encoding="utf-8", errors="replace") if trace.is_file() else ""
    return Finding(False, 0, tuple(ending(path, text, status, seconds)))


def ending(path: Path, trace: str, status: int | None, seconds: float) -> list[str]:
    """Lines about a process that ended without a finding."""
    numbers = re.findall(rf'File "{re.escape(str(path))}", line (\d+)', trace)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    where = [f"line {number}: {lines[int(number) - 1].strip()}" for number in numbers[:1]]
    if trace.startswith("Timeout") or status is None:
        limit = f"{seconds:g} second{'s' * (seconds != 1)}"
        told = f"still running after {limit}; does a loop never end? (--seconds gives it longer)"
    elif trace.startswith("Fatal"):
        told = f"the process crashed: {trace.splitlines()[0].removeprefix('Fatal Python error: ')}"
    else:
        told = f"the process ended with status {status} before the check was done"
    return [*where, told]
