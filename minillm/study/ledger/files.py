"""Claims about files: what a checkpoint and Hugging Face's files bring back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from minillm import export, hub
from minillm.autograd import no_grad, observe
from minillm.beside import load_tokenizer
from minillm.checkpoint import load_checkpoint, save_checkpoint
from minillm.errors import InputError
from minillm.parallel.objective import rows_of
from minillm.stored import are_same, stored_arrays
from minillm.study.ledger.claim import DoesNotApply, Measured
from minillm.study.ledger.rounding import Outcome, compared, kept
from minillm.study.ledger.steps import WEIGHT_DECAY, take_steps
from minillm.study.ledger.subject import Subject
from minillm.training.whole_model import WholeModel

STATE = {"step": 1, "loss": 0.1}  # what a run keeps beside its arrays


def saved_is_loaded(subject: Subject) -> Measured:
    """The steps after a checkpoint in a model and an optimiser that have loaded it, against those of the saved ones."""
    path = subject.folder / "saved.safetensors"
    expected, found = _steps_around(subject, path, load=False), _steps_around(subject, path, load=True)
    path.unlink()
    difference, where = compared(found, expected)
    return Measured(difference, 0.0, where)


def _steps_around(subject: Subject, path: Path, load: bool) -> Outcome:
    """The second step: after a first one whose outcome is saved, or after that is loaded."""
    model = WholeModel(subject.model("float32"), WEIGHT_DECAY)
    optimizer = subject.training.optimizer(model)
    if load:
        stored = load_checkpoint(path)
        if stored.state != STATE:
            raise InputError(f"saved: the state of the run was {STATE}, and came back as {stored.state}")
        model.load_state_dict(stored.model)
        model.load_optimizer_state_dict(optimizer, stored.optimizer)
    else:
        take_steps(subject.training, model, optimizer)
        save_checkpoint(path, model.state_dict() or {}, model.optimizer_state_dict(optimizer) or {}, STATE)
    return take_steps(subject.training, model, optimizer)


def hugging_face(subject: Subject) -> Measured:
    """A model that is written as Hugging Face's files and read again: every weight, the outputs and the ids of a text.

    No bit differs. Weights are in two shards. Those of a model that came from such files are compared with these too.
    """
    model, folder = subject.model("float32").eval(), subject.folder / "hugging-face"
    without_tokenizer = _write(subject, model, folder)
    again = hub.load(folder)
    if (type(again), again.config) != (type(model), model.config):
        raise InputError(f"hugging-face: {type(model).__name__} with {model.config} came back as {again.config}")
    if not without_tokenizer:
        _check_ids(subject, folder)
    found = {"weight": kept(again.state_dict()), **outputs(subject, again)}
    difference, where = compared(found, {"weight": kept(model.state_dict()), **outputs(subject, model)})
    remark = f"{where}; {without_tokenizer}"
    if subject.opened is not None and subject.opened.place.kind in ("folder", "safetensors"):
        theirs, ours = stored_arrays(subject.opened.place.path), stored_arrays(folder)
        shared = [name for name in ours if name in theirs]
        for name in shared:
            if not are_same(ours[name], theirs[name]):
                return Measured(math.inf, 0.0, f"{name} is not the array of the file that it came from")
        remark = f"{len(shared)} of {len(theirs)} arrays of its own files are written as they were; {remark}"
    return Measured(difference, 0.0, remark.strip("; "))


def _write(subject: Subject, model: Any, folder: Path) -> str:
    """Write the files, as `minillm convert` does where the model has some; the reason if there is no tokenizer."""
    half = sum(one.nbytes for one in model.state_dict().values()) // 2
    try:
        if subject.opened is not None and subject.opened.tokenizer is not None:
            return export.save(subject.opened, folder, half)
        model.save_pretrained(folder, half)
    except InputError as reason:
        raise DoesNotApply(str(reason)) from None
    subject.tokenizer.save_hugging_face(folder)
    return ""


def _check_ids(subject: Subject, folder: Path) -> None:
    """Raise InputError where the tokenizer that was written gives a text other ids."""
    ids, again = (one.encode(subject.text) for one in (subject.tokenizer, load_tokenizer(folder)))
    if ids != again:
        place = next((i for i, (a, b) in enumerate(zip(ids, again, strict=False)) if a != b), min(len(ids), len(again)))
        raise InputError(f"hugging-face: id {place} of the text is another one after the tokenizer was read again")


def outputs(subject: Subject, model: Any) -> Outcome:
    """The loss of each example, and the output of the last layer that runs, in evaluation mode."""
    last: list[Any] = []

    def on_module(module: Any, inputs: tuple, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if hasattr(first, "data"):
            last[:] = [first.data]

    with no_grad(), observe(on_module=on_module):
        losses = [
            subject.start.loss(model, rows_of(subject.batch, row, row + 1)).item()
            for row in range(len(next(iter(subject.batch.values()))))
        ]
    return {"loss of each example": {"": np.array(losses)}, "output of the last layer": kept({"": last[0]})}
