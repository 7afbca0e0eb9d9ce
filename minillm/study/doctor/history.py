"""History: the lines of a run's metrics.jsonl as arrays, and the smoothed loss that the checks of a run compare.

The loss of a step is that of its batch alone. So means over equal stretches of the run are compared, and each mean has
a standard error, from the differences of neighbouring steps: these have twice the variance of a step's noise, and the
slow fall of the loss does not count in them.
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm.errors import CheckpointError

STRETCHES = 20  # of a run, at most
OF_ONE = 5  # steps of a stretch, at least
WITHOUT_LOSS = ("grpo",)  # objectives whose loss says nothing


class Stretch(NamedTuple):
    """The mean loss of neighbouring steps: the last of them, and the standard error of the mean."""

    step: int
    loss: float
    error: float


class History:
    """The files that a run has written: its settings (config.json) and its records (metrics.jsonl)."""

    def __init__(self, settings: dict[str, Any], records: list[dict[str, Any]], folder: Path | None = None):
        self.settings, self.folder = settings, folder
        self.records = records
        self.learned = [one for one in records if one.get("loss") is not None]
        self.validated = [one for one in records if one.get("val_loss") is not None]

    def column(self, name: str) -> np.ndarray:
        """The values of a field in the steps that have it, (n,)."""
        return np.array([one[name] for one in self.learned if one.get(name) is not None], float)

    @cached_property
    def steps(self) -> np.ndarray:
        """The numbers of the steps, (n,)."""
        return np.array([one["step"] for one in self.learned], int)

    @cached_property
    def losses(self) -> np.ndarray:
        """The loss of each step, (n,)."""
        return self.column("loss")

    @property
    def loss_tells(self) -> bool:
        """False for objectives whose loss is near 0 all the time."""
        return self.settings.get("objective") not in WITHOUT_LOSS

    @cached_property
    def stretches(self) -> list[Stretch]:
        """The means of the loss over equal parts of the run; none of a run that is too short."""
        number = min(STRETCHES, len(self.losses) // OF_ONE)
        found = []
        for part in np.array_split(np.arange(len(self.losses)), number) if number else ():
            some = self.losses[part]
            noise = float(np.sqrt(np.mean(np.diff(some) ** 2) / 2)) if len(some) > 1 else 0.0
            found.append(Stretch(int(self.steps[part[-1]]), float(some.mean()), noise / math.sqrt(len(some))))
        return found

    @cached_property
    def is_finite(self) -> bool:
        """True if every loss and norm is a number."""
        return all(np.isfinite(self.column(name)).all() for name in ("loss", "grad_norm", "val_loss"))


def history_of(folder: str | Path) -> History:
    """The history of a run directory. The settings are read as they are, so that runs of other versions do too.

    A run that was stopped before its first step has no metrics.jsonl yet, and no record.
    Raises: CheckpointError for a folder that is no run, or whose config.json is damaged.
    """
    folder = Path(folder)
    for name in ("config.json", "metrics.jsonl"):
        begun = name == "metrics.jsonl" and (folder / "checkpoints").is_dir()
        if not (folder / name).is_file() and not begun:
            raise CheckpointError(f"doctor: {folder} has no {name}; give a folder that `minillm train` made")
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} is damaged ({error}); restore it from a copy") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{folder / 'config.json'} holds no JSON object; restore it from a copy")
    return History(settings, read_lines(folder / "metrics.jsonl"), folder)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line, without their texts; none where there is no file.

    A line that a kill has cut off is skipped, and one without a number of its step.
    """
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if isinstance(one, dict) and isinstance(one.get("step"), int):
            records.append({name: value for name, value in one.items() if isinstance(value, float | int | dict)})
    return records
