"""The claim about runs: one that was stopped and resumed ends with the bits of one that was not."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from typing import Any

import numpy as np

from minillm.backend import core_count
from minillm.checkpoint import Checkpoint, load_checkpoint
from minillm.study.ledger.claim import DoesNotApply, Measured
from minillm.study.ledger.rounding import Outcome, compared, kept
from minillm.study.ledger.subject import Subject
from minillm.training.config import TrainConfig
from minillm.training.trainer import train

STEPS = 3  # the run is stopped after the first


def resumed_is_uninterrupted(subject: Subject) -> Measured:
    """Two runs of `minillm train`: the last checkpoints' weights, moments, place in the random stream, tokens.

    The rate is constant, because a schedule depends on the number of steps, by which the first run is stopped.
    """
    settings = _settings(subject)
    whole, stopped = subject.folder / "whole", subject.folder / "stopped"
    with contextlib.redirect_stdout(io.StringIO()):
        train(dataclasses.replace(settings, out=whole), progress=False)
        first = dataclasses.replace(settings, out=stopped, steps=1)
        train(first, progress=False)
        train(dataclasses.replace(first, steps=STEPS), stopped, progress=False)
    expected, found = (load_checkpoint(folder / "checkpoints" / "last.safetensors") for folder in (whole, stopped))
    difference, where = compared(_outcome(found), _outcome(expected))
    return Measured(difference, 0.0, where)


def _settings(subject: Subject) -> TrainConfig:
    """A short training of the model: from its own files, or with random weights of its shape."""
    if subject.config is None:
        raise DoesNotApply(f"`minillm train` does not train a {subject.name} on a text")
    tokenizer = subject.folder / "tokenizer"
    subject.tokenizer.save(tokenizer)
    from_files = subject.opened is not None and subject.opened.tokenizer is not None
    return dataclasses.replace(
        subject.config,
        init=subject.config.init if from_files else None,
        tokenizer=str(tokenizer),
        steps=STEPS,
        warmup=0,
        schedule="wsd",
        decay_steps=0,
        eval_every=STEPS,
        eval_batches=1,
        sample_every=0,
        threads=core_count(),
    )


def _outcome(checkpoint: Checkpoint) -> Outcome:
    state: dict[str, Any] = {**checkpoint.state["random"], "step": checkpoint.state["step"]}
    state["tokens"] = checkpoint.state["tokens"]
    return {
        "weight": kept(checkpoint.model),
        "moment": kept(checkpoint.optimizer),
        **{f"{name} of the run": {"": np.array([float(value)])} for name, value in state.items()},
    }
