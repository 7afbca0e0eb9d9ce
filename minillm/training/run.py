"""A run directory: everything that one training run leaves behind.

    config.json         the settings
    tokenizer/          the tokenizer
    metrics.jsonl       a JSON object a line: step, loss, lr, grad_norm, tokens, tokens_per_s, seconds; some val_loss
    watch.jsonl         with --watch: a JSON object for each step that was watched; watch.png shows them (watch.py)
    loss.png            both losses over the steps, the best step, and where the two part
    checkpoints/        last.safetensors and best.safetensors, see checkpoint.py
    kept.safetensors    of some tasks: what they found out before the first step
    .lock               while it is trained: which process does

A directory appears whole, under its final name, or not at all; an existing one is never written over. config.json and
each line of the metrics have a checksum (checksums.py). The lines' also depends on the run, so that a file of another
run is told apart. One process at a time writes a run, which holds its lock (lock.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minillm.backend import Array
from minillm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from minillm.checksums import KEY, sealed, unsealed
from minillm.errors import CheckpointError, InputError, MinillmError
from minillm.files import sweep, sync, unfinished_name, writing
from minillm.lock import Lock
from minillm.stored import read_json
from minillm.tokenizers import Tokenizer
from minillm.training.config import TrainConfig
from minillm.training.overfitting import COMPARED, parted
from minillm.training.tasks import task_class


class Run:
    """Paths and files of a run directory; `with run:` gives its lock up at the end.

    id: 16 letters that tell it from runs with other settings or another tokenizer; empty in older runs.
    """

    def __init__(self, folder: Path, config: TrainConfig, tokenizer: Tokenizer, id: str = ""):
        self.folder = folder
        self.config = config
        self.tokenizer = tokenizer
        self.id = id
        self.lock: Lock | None = None
        self.waiting: dict[str, list[str]] = {}  # lines of each file that could not be written yet

    @classmethod
    def create(cls, config: TrainConfig, tokenizer: Tokenizer, kept: Mapping[str, Array] | None = None) -> Run:
        """Make the directory of a new run; `kept` are the arrays of Task.begin.

        Raises: InputError where `config.out` is there already.
        """
        folder = config.out or _first_free(config.preset)
        check_free(folder)
        unfinished = unfinished_name(folder)
        settings = {name: value for name, value in config.to_json().items() if name != "out"}
        whose = json.dumps(settings, sort_keys=True) + tokenizer.fingerprint()
        run = cls(unfinished, config, tokenizer, hashlib.blake2b(whose.encode(), digest_size=8).hexdigest())
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            sweep(folder.parent)  # what a start that was killed has left
            (unfinished / "checkpoints").mkdir(parents=True)
            run.write_settings()
            if kept:
                save_checkpoint(run.kept, kept, {}, {"run": run.id})
            os.rename(unfinished, folder)
            sync(folder.parent)
        except OSError as error:
            raise InputError(
                f"train: cannot write the run directory {folder} ({error}); choose another --out"
            ) from None
        except MinillmError as error:  # of a file in it, which nobody knows by that name
            raise type(error)(str(error).replace(str(unfinished), str(folder))) from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        run.folder = folder
        run.take_lock()
        return run

    def write_settings(self) -> None:
        """Write config.json, and the tokenizer where it is not there."""
        content = {**self.config.to_json(), "run": self.id, "tokenizer_fingerprint": self.tokenizer.fingerprint()}
        with writing("train", self.folder / "config.json") as unfinished:
            unfinished.write_text(json.dumps(sealed(content), indent=2) + "\n", encoding="utf-8")
        if not (self.folder / "tokenizer").is_dir():
            self.tokenizer.save(self.folder / "tokenizer")

    def write_again(self) -> None:
        """Make the folders again, with settings and tokenizer. Raises: InputError if this is impossible."""
        try:
            self.checkpoint("last").parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"train: cannot write {self.folder} ({error.strerror}); make room") from None
        self.write_settings()

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open the directory of an earlier run, to read it.

        Raises: CheckpointError for a folder that is not one, or whose settings or tokenizer are damaged.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise CheckpointError(
                f"{folder} is not a run directory: it has no config.json; give a folder that `minillm train` made"
            )
        written = read_json(path)
        content = {name: value for name, value in written.items() if name != KEY}
        content.setdefault("format", 1)  # runs of the first format have no such key
        id, fingerprint = (content.pop(name, "") for name in ("run", "tokenizer_fingerprint"))
        try:
            config = TrainConfig.from_json(content)
        except CheckpointError as error:
            raise CheckpointError(f"{error}, in {path}") from None
        if unsealed(written) is None:
            raise CheckpointError(
                f"{path} is not as it was written: it is damaged, or was changed by hand; restore it from a copy, or "
                f'take "{KEY}" out of it to use it as it is'
            )
        run = cls(folder, config, Tokenizer.load(folder / "tokenizer"), str(id))
        if fingerprint and run.tokenizer.fingerprint() != fingerprint:
            raise CheckpointError(
                f"{folder / 'tokenizer'} is not the tokenizer that the run was trained with; restore it from a copy"
            )
        return run

    def take_lock(self) -> None:
        """Let no other process write this run. Raises: InputError if one does."""
        self.lock = Lock(
            self.folder / ".lock",
            lambda holder: f"train: {holder} is training {self.folder} at the moment; wait for its end, or stop it",
        )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: Any) -> None:
        self.release()

    def release(self) -> None:
        """Let other processes write this run."""
        if self.lock:
            self.lock.release()

    def go_on(self, config: TrainConfig, step: int, kept: Mapping[str, Array] | None = None) -> None:
        """Prepare the directory for a run that goes on after a step, with settings that hold from then on.

        What later steps left is dropped: their metrics, and files that a kill has cut off. kept: as in `create`, where
        the run begins again.
        """
        for folder in (self.folder.parent, self.folder, self.folder / "checkpoints", self.folder / "tokenizer"):
            if folder.is_dir():
                sweep(folder)
        for cut_off in [*self.folder.rglob("*.tmp"), *self.folder.rglob(".tmp*")]:  # of older versions
            cut_off.unlink()
        self.config = config
        self.write_settings()
        if kept:
            save_checkpoint(self.kept, kept, {}, {"run": self.id})
        self.forget_metrics_after(step)

    def checkpoint(self, name: str) -> Path:
        """The path of a checkpoint: `last` or `best`."""
        return self.folder / "checkpoints" / f"{name}.safetensors"

    def read_checkpoint(self, path: Path, moments: bool = True) -> Checkpoint:
        """Read a checkpoint of this run, or the arrays of Task.begin.

        Raises: CheckpointError for a damaged file, and for one of another run.
        """
        checkpoint = load_checkpoint(path, moments)
        if self.id and checkpoint.state.get("run", self.id) != self.id:
            raise CheckpointError(
                f"train: {path} belongs to another run, with other settings or another tokenizer; put this run's own "
                "back, or use another checkpoint of the run"
            )
        return checkpoint

    def latest(self) -> Path | None:
        """The checkpoint to go on from: the last, or the best where a kill left no other; None before the first."""
        return next((path for path in map(self.checkpoint, ("last", "best")) if path.exists()), None)

    @property
    def kept(self) -> Path:
        """The path of the arrays of Task.begin."""
        return self.folder / "kept.safetensors"

    def add_metrics(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; one that cannot be written now is written with a later one."""
        self._append("metrics.jsonl", record)

    def add_watched(self, record: dict[str, Any]) -> None:
        """Append one line to watch.jsonl."""
        self._append("watch.jsonl", record)

    def _append(self, name: str, record: dict[str, Any]) -> None:
        before = self.waiting.get(name, [])
        lines = [*before, json.dumps(sealed(record, self.id)) + "\n"]
        begin = "\n" if before else ""  # after what was written of a line before the disk was full
        try:
            with open(self.folder / name, "a", encoding="utf-8") as file:
                file.write(begin + "".join(lines))
        except OSError:
            self.waiting[name] = lines
        else:
            self.waiting.pop(name, None)

    def metrics(self) -> list[dict[str, Any]]:
        """Every complete line of metrics.jsonl; lines that a kill has cut off, and damaged ones, are skipped."""
        return self._lines("metrics.jsonl")[0]

    def watched(self) -> list[dict[str, Any]]:
        """Every complete line of watch.jsonl."""
        return self._lines("watch.jsonl")[0]

    def damaged_lines(self) -> list[tuple[str, int]]:
        """The damaged lines of metrics.jsonl and watch.jsonl, each by its file and its number, from 1."""
        names = "metrics.jsonl", "watch.jsonl"
        return [(name, number) for name in names for number in self._lines(name)[1]]

    def missing_lines(self, step: int) -> int:
        """The number of steps up to this one that metrics.jsonl has no line of."""
        return step - len({record["step"] for record in self.metrics()} & set(range(1, step + 1)))

    def _lines(self, name: str) -> tuple[list[dict[str, Any]], list[int]]:
        """The records of a file, and the numbers of its damaged lines."""
        return read_records(self.folder / name, self.id)

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps after a checkpoint, because a resumed run takes these steps again.

        A file with damaged lines, which are dropped too, is kept as metrics.damaged.jsonl.
        """
        for name in ("metrics.jsonl", "watch.jsonl"):
            path = self.folder / name
            if name == "watch.jsonl" and not path.is_file():
                continue
            records, damaged = self._lines(name)
            if damaged:
                shutil.copyfile(path, path.with_suffix(".damaged.jsonl"))
            kept = [sealed(record, self.id) for record in records if record["step"] <= step]
            with writing("train", path) as unfinished:
                unfinished.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

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
        with writing("train", path) as unfinished, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # a letter that the font lacks is drawn as a box
            figure.savefig(unfinished, format="png")
        return path


def read_records(path: Path, owner: str = "") -> tuple[list[dict[str, Any]], list[int]]:
    """The records of a .jsonl file of a run, and the numbers of its damaged lines, from 1.

    owner: the run's id. A record has a whole number as its step; a last line without an end was cut off by a kill, and
    is no damage.
    """
    records, damaged = [], []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        record = unsealed(content, owner) if isinstance(content, dict) and (KEY in content or not owner) else None
        if record is not None and isinstance(record.get("step"), int):
            records.append(record)
        elif line and number < len(lines):
            damaged.append(number)
    return records, damaged


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
