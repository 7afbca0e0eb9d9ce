"""Is my loss normal? The curves of the presets, from real runs, and how a run of the same settings compares.

`curves/NAME.json` has, for a preset of `minillm train` on the built-in data, the validation losses of runs with
different seeds; `python benchmarks/reference_curves.py` trains them anew and writes the files. Runs with other seeds
scatter by s, the standard deviation at a validation. A run is called unusual outside of the mean by more than four s
and 2 % of it, since few seeds say little of s. The built-in text belongs to the version of Python; with another text,
10 % are allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from minillm.study.doctor.finding import Finding
from minillm.study.doctor.history import History

SPREADS = 4.0
SHARE, OTHER_TEXT = 0.02, 0.10
# Settings that leave the curve as it is.
FREE = {
    *("preset", "out", "resume", "seed", "threads", "device", "dtype", "recompute", "progress", "patience"),
    *("watch", "nproc", "dp", "tp", "pp", "zero", "pipeline", "timeout", "trace", "micro_batches", "sample_every"),
    *("sample_tokens", "eval_every", "format"),
}


class Curve(NamedTuple):
    """The runs of a preset: its settings, the text they read, and (seed, step, loss) by run."""

    preset: str
    settings: dict[str, Any]
    text: str
    steps: list[int]  # of the validations
    losses: list[list[float]]  # of each run at these steps
    seeds: list[int]

    def around(self, step: int) -> tuple[float, float] | None:
        """The mean of the validation losses at a step, between the steps that are known, and their deviation."""
        if not self.steps[0] <= step <= self.steps[-1]:
            return None
        each = np.array([np.interp(step, self.steps, losses) for losses in self.losses])
        return float(each.mean()), float(each.std(ddof=1)) if len(each) > 1 else 0.02 * float(each.mean())


def curve_of(preset: str) -> Curve | None:
    """The curve that the package carries for a preset; None if it has none."""
    file = files("minillm.study.doctor").joinpath("curves", f"{preset}.json")
    return Curve(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def curves() -> list[str]:
    """The presets that the package has curves of."""
    folder = files("minillm.study.doctor").joinpath("curves")
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))


def differing(settings: dict[str, Any], curve: Curve) -> list[str]:
    """The settings in which a run differs from those of the curve, and that count."""
    names = (settings.keys() | curve.settings.keys()) - FREE
    return sorted(name for name in names if settings.get(name) != curve.settings.get(name))


def compared(history: History) -> Iterator[Finding]:
    """Compare the validation losses of a run with the curve of its preset, if it has the settings of the preset."""
    curve = curve_of(str(history.settings.get("preset")))
    rows = [one for one in history.validated if one["step"] > 0]
    if curve is None or not rows:
        return
    if other := differing(history.settings, curve):
        yield Finding(
            "note",
            "no-comparison",
            f"the run is not compared with the curve of {curve.preset}, because it differs in {', '.join(other)}",
            "nothing: another training has another curve",
        )
        return
    worst: tuple[float, dict[str, Any], float, float] | None = None
    for row in rows:
        usual = curve.around(row["step"])
        if usual is not None and usual[0] > 0:
            allowed = max(SPREADS * usual[1], (SHARE if same_text(history, curve) else OTHER_TEXT) * usual[0])
            off = (row["val_loss"] - usual[0]) / allowed
            if worst is None or abs(off) > abs(worst[0]):
                worst = off, row, usual[0], allowed
    if worst is None:
        return
    off, row, mean, allowed = worst
    end = rows[-1]
    usual = curve.around(end["step"])
    if abs(off) <= 1:
        at_end = f", where {usual[0]:.3f} is usual" if usual else ""
        yield Finding(
            "note",
            "usual-loss",
            f"the loss is normal: {end['val_loss']:.3f} at step {end['step']}{at_end} for {curve.preset} "
            f"({len(curve.seeds)} runs)",
            "nothing",
            "the picture (--picture)",
        )
        return
    kind = "higher" if off > 0 else "lower"
    yield Finding(
        "warning",
        "unusual-loss",
        f"the validation loss at step {row['step']} is {row['val_loss']:.3f}, {kind} than the {mean:.3f} (+- "
        f"{allowed:.3f}) of {len(curve.seeds)} runs of {curve.preset} with other seeds",
        "look what has changed: the code, the data, or the version of a package"
        + ("" if off > 0 else "; a lower loss may come of a leak"),
        "the picture (--picture)",
    )


def same_text(history: History, curve: Curve) -> bool:
    """True if the run read the text of the curve: the built-in one of this version of Python."""
    return history.settings.get("data") == "builtin" and text_of_builtin() == curve.text


def text_of_builtin() -> str:
    """A short text that differs for another built-in text."""
    import zlib

    from minillm.data import read_text

    text = read_text("builtin")
    return f"{len(text)}-{zlib.crc32(text.encode()):08x}"
