"""A run directory: everything that one training run leaves behind.

    config.json         the settings
    tokenizer/          the tokenizer
    metrics.jsonl       a JSON object a line: step, loss, lr, grad_norm, tokens, tokens_per_s, seconds; some val_loss
    watch.jsonl         with --watch: a JSON object for each step that was watched; watch.png shows them (watch.py)
    loss.png            both losses over the steps, the best step, and where the two part
    checkpoints/        last.safetensors and best.safetensors, see checkpoint.py
    kept.safetensors    of some tasks: what they found out before the first step

A directory appears whole, under its final name, or not at all; an existing one is never written over.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minillm.backend import Array
from minillm.checkpoint import save_checkpoint
from minillm.errors import CheckpointError, InputError
from minillm.tokenizers import Tokenizer
from minillm.training.config import TrainConfig
from minillm.training.overfitting import COMPARED, parted
from minillm.training.tasks import task_class


class Run:
    """Paths and files of a run directory."""

    def __init__(self, folder: Path, config: TrainConfig, tokenizer: Tokenizer):
        self.folder = folder
        self.config = config
        self.tokenizer = tokenizer

    @classmethod
    def create(cls, config: TrainConfig, tokenizer: Tokenizer, kept: Mapping[str, Array] | None = None) -> Run:
        """Make the directory of a new run; `kept` are the arrays of Task.begin.

        Raises: InputError where `config.out` is there already.
        """
        folder = config.out or _first_free(config.preset)
        check_free(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        try:
            (unfinished / "checkpoints").mkdir(parents=True)
            (unfinished / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n", encoding="utf-8")
            tokenizer.save(unfinished / "tokenizer")
            if kept:
                save_checkpoint(unfinished / "kept.safetensors", kept, {}, {})
            os.rename(unfinished, folder)
        except OSError as error:
            raise InputError(
                f"train: cannot write the run directory {folder} ({error}); choose another --out"
            ) from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return cls(folder, config, tokenizer)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open the directory of an earlier run.

        Raises: CheckpointError for a folder that is not one.
        """
        try:
            content = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(
                f"{folder} is not a run directory: it has no config.json; give a folder that `minillm train` made"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{folder / 'config.json'} is damaged ({error}); restore it from a copy") from None
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{folder / 'config.json'} holds no JSON object; give a folder that `minillm train` made"
            )
        content.setdefault("format", 1)  # runs of the first format have no such key
        return cls(folder, TrainConfig.from_json(content), Tokenizer.load(folder / "tokenizer"))

    def go_on(self, config: TrainConfig, step: int, kept: Mapping[str, Array] | None = None) -> None:
        """Prepare the directory for a run that goes on after a step, with settings that hold from then on.

        What later steps left is dropped: their metrics, and files that a kill has cut off. kept: as in `create`, where
        the run begins again.
        """
        for cut_off in self.folder.rglob("*.tmp"):
            cut_off.unlink()
        unfinished = self.folder / "config.json.tmp"
        unfinished.write_text(json.dumps(config.to_json(), indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, self.folder / "config.json")
        self.config = config
        if kept:
            save_checkpoint(self.kept, kept, {}, {})
        self.forget_metrics_after(step)

    def checkpoint(self, name: str) -> Path:
        """The path of a checkpoint: `last` or `best`."""
        return self.folder / "checkpoints" / f"{name}.safetensors"

    def latest(self) -> Path | None:
        """The checkpoint to go on from: the last, or the best where a kill left no other; None before the first."""
        return next((path for path in map(self.checkpoint, ("last", "best")) if path.exists()), None)

    @property
    def kept(self) -> Path:
        """The path of the arrays of Task.begin."""
        return self.folder / "kept.safetensors"

    def add_metrics(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        self._append("metrics.jsonl", record)

    def add_watched(self, record: dict[str, Any]) -> None:
        """Append one line to watch.jsonl."""
        self._append("watch.jsonl", record)

    def _append(self, name: str, record: dict[str, Any]) -> None:
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every complete line of metrics.jsonl; a line that a kill has cut off is skipped."""
        return self._lines("metrics.jsonl")

    def watched(self) -> list[dict[str, Any]]:
        """Every complete line of watch.jsonl."""
        return self._lines("watch.jsonl")

    def _lines(self, name: str) -> list[dict[str, Any]]:
        records = []
        path = self.folder / name
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps after a checkpoint, because a resumed run takes these steps again."""
        for name in ("metrics.jsonl", "watch.jsonl"):
            path = self.folder / name
            if name == "watch.jsonl" and not path.is_file():
                continue
            kept = [record for record in self._lines(name) if record["step"] <= step]
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
            os.replace(unfinished, path)

    def plot(self) -> Path:
        """Draw loss.png from the metrics; returns its path."""
        from matplotlib.figure import Figure  # no pyplot: it would look for a display

        records, validation = self.metrics(), task_class(self.config.objective).validated
        figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        learned = [r for r in records if r["loss"] is not None]  # not of a validation before the first step
        steps, losses = [r["step"] for r in learned], [r["loss"] for r in learned]
        axes.plot(steps, losses, color="#9dbbd8", linewidth=0.8, label="training, each batch")
        validated = [r for r in records if r.get("val_loss") is not None]
        axes.plot(
            [r["step"] for r in validated],
            [r["val_loss"] for r in validated],
            color="#c2452d",
            marker="o",
            markersize=3.5,
            label=validation.removesuffix(" loss"),
        )
        if validated:
            best = min(validated, key=lambda record: record["val_loss"])
            label = f"best {validation.removesuffix(' loss')}, {best['val_loss']:.3f} at step {best['step']}"
            axes.axvline(best["step"], color="#c2452d", linewidth=0.8, linestyle="--", label=label)
        if validation == COMPARED and (found := parted(records)) is not None:
            axes.axvspan(found.step, records[-1]["step"], color="#c2452d", alpha=0.08, label="overfitting")
        also = "" if validation == COMPARED else f", and {validation}"
        axes.set(xlabel="step", ylabel=f"loss (nats per target){also}")
        name = os.fsencode(self.folder.name).decode("utf-8", "replace")
        axes.set_title(name, parse_math=False)  # as it is: a "$" begins no formula
        axes.grid(alpha=0.25)
        axes.legend()
        path = self.folder / "loss.png"
        unfinished = path.with_name(".loss.tmp.png")
        with warnings.catch_warnings():  # a letter that the font lacks is drawn as a box
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            figure.savefig(unfinished)
        os.replace(unfinished, path)
        return path


def check_free(folder: Path) -> None:
    """Raise InputError unless a new run may be made at `folder`."""
    if not folder.name or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise InputError(
            f"train: {folder} exists already and is never written over; choose another --out, "
            f"or continue that run with `minillm train --resume {folder}`"
        )


def _first_free(name: str) -> Path:
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder
