"""Checkpoints of a run: what is saved, and how a run goes on from there."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from minillm import random
from minillm.backend import Array
from minillm.checkpoint import Checkpoint, save_checkpoint
from minillm.errors import CheckpointError
from minillm.files import writing
from minillm.lora import base_checksum, is_lora
from minillm.optim import Optimizer
from minillm.parallel.communicator import Communicator, broadcast_arrays, broadcast_bytes
from minillm.training.run import Run
from minillm.training.tasks.task import Task


class State(NamedTuple):
    """The state of a run, besides its weights and moments."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    worse: int = 0  # validations since the best one
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0  # of these, the last ones
    choice: dict[str, Any] | None = None  # how work is cut (a tuning.Choice as JSON), on so many
    ranks: int = 1
    line: dict[str, Any] | None = None  # of metrics.jsonl, where a stopped run was saved before it was validated

    def after_step(self, tokens: int, seconds: float, skipped: bool = False) -> State:
        """The state one step later; skipped: the step has changed no weight."""
        return self._replace(
            step=self.step + 1,
            tokens=self.tokens + tokens,
            seconds=self.seconds + seconds,
            skipped=self.skipped + skipped,
            skipped_in_a_row=self.skipped_in_a_row + 1 if skipped else 0,
        )

    def after_validation(self, loss: float) -> State:
        """The state with this validation loss, if it is the lowest so far."""
        if loss < self.best_loss:
            return self._replace(best_loss=loss, best_step=self.step, worse=0)
        return self._replace(worse=self.worse + 1)

    def has_no_hope(self, patience: int | None) -> bool:
        """True if the last `patience` validations were not better than the best one."""
        return patience is not None and self.worse >= patience


def save(run: Run, model: Any, optimizer: Optimizer, task: Task, state: State) -> None:
    """Write the last checkpoint, which is also the best one if no validation loss was lower. All ranks call this.

    A divided model is brought together on rank 0, which writes what one process would. The best checkpoint is written
    first: a run that is killed between the two goes on from the last one before, and comes here again.
    """
    weights, moments = model.state_dict(), model.optimizer_state_dict(optimizer)
    if weights is None or moments is None:
        return  # rank 0 has them
    content = {**state._asdict(), "random": random.default.state(), "corpus": task.fingerprint(), "run": run.id}
    if is_lora(model.model):
        content["base"] = base_checksum(model.model)  # the frozen weights, which are not in the file
    last, best = run.checkpoint("last"), run.checkpoint("best")
    if not last.parent.is_dir():  # somebody has removed it, or the whole run
        run.write_again()
    if state.best_step < state.step:
        save_checkpoint(last, weights, moments, content)
        return
    save_checkpoint(best, weights, moments, content)
    with writing("train", last, CheckpointError) as unfinished:
        try:
            os.link(best, unfinished)  # a checkpoint is replaced, never written to, so two names may share one file
        except OSError:
            shutil.copyfile(best, unfinished)


def restore(run: Run | None, model: Any, optimizer: Optimizer, task: Task, world: Communicator) -> State:
    """Load the latest checkpoint of a run into model and optimiser, however they are divided. All ranks call this.

    run: the run on rank 0, which reads the file; None on the other ranks.
    Raises: CheckpointError if the data, the tokenizer or the model's shape is not what the run was saved with.
    """
    checkpoint = read_latest(run, task) if run else Checkpoint({}, {}, {})
    content = json.loads(broadcast_bytes(world, json.dumps(checkpoint.state).encode()))
    if is_lora(model.model) and content.get("base") != base_checksum(model.model):
        raise CheckpointError(
            f"train: the weights under the adapters are not those that they were trained on; put {task.config.init} "
            "back as it was, or start a new run"
        )
    weights, moments = (broadcast_arrays(world, arrays) for arrays in (checkpoint.model, checkpoint.optimizer))
    model.load_state_dict(weights)
    model.load_optimizer_state_dict(optimizer, moments)
    random.default.set_state(content["random"])
    return State(**{name: content[name] for name in State._fields if name in content})


def kept_arrays(run: Run | None, world: Communicator) -> dict[str, Array]:
    """The arrays that a task keeps in its run (see Task.begin), on every rank; run: on rank 0, None on the others."""
    return broadcast_arrays(world, run.read_checkpoint(run.kept).model if run and run.kept.is_file() else {})


def whole_checkpoint(run: Run, path: Path) -> Checkpoint:
    """The checkpoint in a file of the run. Raises: CheckpointError if it is damaged, with what to do about it."""
    try:
        return run.read_checkpoint(path)
    except CheckpointError as damage:
        best = run.checkpoint("best")
        try:
            step = run.read_checkpoint(best).state["step"] if path != best else None
        except (CheckpointError, KeyError):
            step = None
        if step is None:
            raise
        what = str(damage).rpartition("; ")[0]
        raise CheckpointError(
            f"{what}; {best} is whole, and of step {step}: to go on from there, remove {path} and resume again"
        ) from None


def read_latest(run: Run, task: Task) -> Checkpoint:
    """The latest checkpoint of a run that `train` saved with the data of this task.

    Raises: CheckpointError for any other; for a damaged one, with the way to go on from the other one if that is whole.
    """
    path = run.latest() or run.checkpoint("last")
    checkpoint = whole_checkpoint(run, path)
    content = checkpoint.state
    lately = {"choice", "ranks", "worse", "line", "run", "skipped", "skipped_in_a_row"}  # older runs have none
    if missing := {"corpus", "random", *State._fields} - lately - content.keys():
        raise CheckpointError(
            f"train: {path} lacks {', '.join(sorted(missing))}, so `minillm train` did not write it; "
            "resume a run that it did"
        )
    if content["corpus"] != task.fingerprint():
        raise CheckpointError(
            f"train: the text or tokenizer of {run.folder} has changed since it was saved ({content['corpus']}, now "
            f"{task.fingerprint()}); put the old text back, or start a new run"
        )
    return checkpoint
