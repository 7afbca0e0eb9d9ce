"""Is my loss normal? The curves of the presets, from real runs, and how a run of the same settings compares.

`curves/NAME.json` has, for a preset of `minillm train` on the built-in data, the validation losses of runs with
different seeds; `python benchmarks/reference_curves.py` trains them anew and writes the files. Runs with other seeds
scatter by s, a share of the loss: the root of the mean variance over all validations. A run is unusual where it is away
from the mean by more than four s and by 5 %, since few seeds say little of s. The built-in text belongs to the version
of Python; with another text 10 % are allowed, and so beside a single run. The presets that take longer, default,
shakespeare-char-cpu and multi30k, have no curve.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from minillm.data import read_text
from minillm.study.doctor.finding import Finding
from minillm.study.doctor.history import History
from minillm.training.config import preset

SPREADS = 4.0
SHARE, ALONE = 0.05, 0.10
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

    @property
    def means(self) -> np.ndarray:
        """The mean of the runs at each validation, (steps,)."""
        return np.mean(self.losses, 0)

    def allowed(self, same_text: bool = True) -> float:
        """The share of the mean by which a run may be away from it."""
        if len(self.losses) == 1 or not same_text:
            return ALONE
        scatter = float(np.sqrt((np.var(self.losses, 0, ddof=1) / self.means**2).mean()))
        return max(SPREADS * scatter, SHARE)

    def mean_at(self, step: int) -> float | None:
        """The mean of the runs at a step; None before the first validation and behind the last."""
        inside = self.steps[0] <= step <= self.steps[-1]
        return float(np.interp(step, self.steps, self.means)) if inside else None


def curve_of(preset: str) -> Curve | None:
    """The curve that the package carries for a preset; None if it has none."""
    file = files("minillm.study.doctor").joinpath("curves", f"{preset}.json")
    return Curve(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def curves() -> list[str]:
    """The presets that the package has curves of."""
    folder = files("minillm.study.doctor").joinpath("curves")
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))


def differing(settings: dict[str, Any], curve: Curve) -> list[str]:
    """The settings in which a run differs from those of the curve, and that count.

    A setting that one of the two is too old to have is, there, that of the preset.
    """
    default = json.loads(json.dumps(preset(curve.preset).to_json()))
    ours, theirs = with_defaults(settings, default), with_defaults(curve.settings, default)
    return sorted(name for name in (ours.keys() | theirs.keys()) - FREE if ours.get(name) != theirs.get(name))


def with_defaults(settings: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """The settings, and the default ones that they lack, in the objects within them too."""
    whole = {**default, **settings}
    for name, value in default.items():
        if isinstance(value, dict) and isinstance(whole[name], dict | None):
            whole[name] = {**value, **(whole[name] or {})}
    return whole


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
    share = curve.allowed(same_text(history, curve))
    means = [(row, curve.mean_at(row["step"])) for row in rows]
    away = [(row["val_loss"] / mean - 1, row, mean) for row, mean in means if mean]
    if not away:
        return
    off, row, mean = max(away, key=lambda one: abs(one[0]))
    if abs(off) <= share:
        _, end, usual = away[-1]
        yield Finding(
            "note",
            "usual-loss",
            f"the loss is normal: {end['val_loss']:.3f} at step {end['step']}, where {usual:.3f} is usual for "
            f"{curve.preset} ({len(curve.seeds)} runs)",
            "nothing",
            "the picture",
        )
        return
    kind = "higher" if off > 0 else "lower"
    yield Finding(
        "warning",
        "unusual-loss",
        f"the validation loss at step {row['step']} is {row['val_loss']:.3f}, {kind} than the {mean:.3f} (up to "
        f"{share:.0%} more or less) of {len(curve.seeds)} runs of {curve.preset} with other seeds",
        "look what has changed: the code, the data, or the version of a package"
        + ("" if off > 0 else "; a lower loss may come of a leak"),
        "the picture",
    )


def same_text(history: History, curve: Curve) -> bool:
    """True if the run read the text of the curve: the built-in one of this version of Python."""
    return history.settings.get("data") == "builtin" and text_of_builtin() == curve.text


def text_of_builtin() -> str:
    """A short text that differs for another built-in text."""
    text = read_text("builtin")
    return f"{len(text)}-{zlib.crc32(text.encode()):08x}"
