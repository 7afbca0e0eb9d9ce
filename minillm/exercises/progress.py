"""The progress of a learner: the file progress.json in the folder of the exercises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minillm.errors import InputError
from minillm.files import writing

FILE = "progress.json"


class Progress:
    """The checks, the hints and the successes of each exercise, and which exercise was the last one worked on.

    Nothing is kept outside the folder, and the file may be deleted to begin anew.
    """

    def __init__(self, folder: Path):
        self.path = folder / FILE
        self.last: str | None = None
        self.exercises: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            try:
                kept = json.loads(self.path.read_text(encoding="utf-8"))
                self.last, self.exercises = kept["last"], {name: dict(one) for name, one in kept["exercises"].items()}
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(f"exercise: {self.path} is damaged; delete it, which forgets the progress") from None

    def of(self, name: str) -> dict[str, Any]:
        """The record of an exercise, which may be changed."""
        return self.exercises.setdefault(name, {"checks": 0, "hints": 0, "passed": False})

    def passed(self, name: str) -> bool:
        return bool(self.exercises.get(name, {}).get("passed"))

    def save(self, last: str) -> None:
        """Write the file; `last` is the exercise that was worked on."""
        self.last = last
        text = json.dumps({"last": last, "exercises": self.exercises}, indent=1)
        with writing("exercise", self.path) as unfinished:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(text + "\n", encoding="utf-8")
