"""`minillm finetune classify` and `minillm finetune qa`: an encoder gets a head, and learns a task with it.

The encoder is a published one, one that was trained here, or a preset, which begins from random weights with a
vocabulary of the training texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minillm.commands.finetune import Finetune
from minillm.commands.train import check_effect, config_of, run_ranks
from minillm.data.labelled import read_labelled
from minillm.errors import InputError
from minillm.models.bert import BertConfig
from minillm.options import Positional, filled, scan
from minillm.resolver import Described, described
from minillm.training.config import TrainConfig
from minillm.training.run import Run
from minillm.training.tasks import task_class
from minillm.training.tasks.classify import check_labels

# A pretrained encoder forgets at rates that a new one needs; a narrow one bears more than one of BERT's width.
RATES = {"new": 5e-4, "narrow": 1e-4, "wide": 3e-5}
WIDE = 512  # channels


@dataclass(frozen=True)
class FinetuneHead(Finetune):
    """The options that the tasks with a head share."""

    start: Positional[str] = dataclasses.field(default="", metadata={"name": "model"})
    """Encoder to start from: a Hugging Face folder, a .safetensors, a run directory, or a preset such as bert-tiny."""
    lr: float = RATES["wide"]
    """Peak learning rate; by default 3e-5, or 1e-4 for an encoder of less than 512 channels, or 5e-4 for a preset."""
    batch_size: int = 32
    """Texts or windows per step."""
    eval_batches: int = 50
    """Validation batches, the same at every validation."""
    weight_decay: float = 0.01
    """Decay of matrices; biases and normalisation weights are not decayed."""


@dataclass(frozen=True)
class FinetuneClassify(FinetuneHead):
    """Teach an encoder to tell texts apart, such as good reviews from bad ones."""

    data: str = ""
    """Labelled texts: a .jsonl, .csv or .tsv, or a pattern for plain files of one class each, such as rt-polarity.*"""
    steps: int = 600
    """Number of optimiser steps."""
    eval_every: int = 100
    """Steps between validations, each of which also saves."""
    sample_every: int = 300
    """Steps between previews of held-out texts; 0 for none."""


@dataclass(frozen=True)
class FinetuneQa(FinetuneHead):
    """Teach an encoder to find the answers to questions in texts."""

    data: str = ""
    """Questions in SQuAD's JSON, version 1 or 2."""
    batch_size: int = 16
    """Windows per step."""


def finetune_classify(arguments: list[str]) -> None:
    """Classes of texts; training/tasks/classify.py."""
    finetune_model("classify", "classify", FinetuneClassify, BertConfig(), arguments, starting_encoder)


def finetune_qa(arguments: list[str]) -> None:
    """Answers to questions; training/tasks/qa.py."""
    finetune_model("qa", "qa", FinetuneQa, BertConfig(), arguments, starting_encoder)


def finetune_model(
    name: str, task: str, kind: type[Any], example: Any, arguments: list[str], starting: Callable[..., dict[str, Any]]
) -> Run | None:
    """Read the options of a command, and train the model that is named, which may be a preset; returns the run.

    example: a configuration of a family that the task trains. starting: a function of the options, of the model that is
    named, and of a function that tells if an option was given; it returns settings, the model's configuration among
    them.
    """
    command = f"finetune {name}"
    architecture = type(example).__module__.rpartition(".")[2].removesuffix("_config")
    before = kind(objective=task, architecture=architecture, model=example)
    values = scan(kind, command, arguments, before)
    given = filled(kind, command, values, before)
    for field, shown, written in (("start", "MODEL", "bert-tiny"), ("data", "--data", "--data FILE")):
        if not getattr(given, field):
            raise InputError(f"{command}: {shown} is missing; write minillm {command} {written} ...")
    check_effect(command, values, given)
    found = described(given.start, command)
    family = found.kind.__module__.rpartition(".")[2]  # type: ignore[attr-defined]
    task_class(task).check_model(family)
    if found.place.kind != "preset" and values.keys() & {("vocab_size",), ("task", "vocab_size")}:
        raise InputError(
            f"{command}: --vocab-size does nothing here, as {given.start} has a vocabulary of its own; leave it out"
        )
    settings = {
        "architecture": family,
        "init": None if found.place.kind == "preset" else given.start,
        "preset": f"{Path(given.start).stem}-{name}",
        **starting(given, found, lambda option: (option,) in values),
    }
    return run_ranks(command, arguments, config_of(given, **settings), given)


def starting_encoder(given: FinetuneHead, found: Described, is_given: Callable[[str], bool]) -> dict[str, Any]:
    """The settings that depend on the encoder: its configuration with the classes, and the learning rate."""
    rate = "new" if found.place.kind == "preset" else "wide" if found.config.channels >= WIDE else "narrow"
    return {"model": with_labels(given, found)} | ({} if is_given("lr") else {"lr": RATES[rate]})


def with_labels(given: TrainConfig, found: Described) -> Any:
    """The configuration of the model with the classes that it will tell apart: its own, or those of the data.

    Raises: InputError for data with a class that the head of the model lacks.
    """
    config = found.config if given.task.dropout is None else with_dropout(found.config, given.task.dropout)
    if given.objective == "qa":
        return replace(config, labels=2, label_names=())
    labels = read_labelled(given.data, given.task.text, given.task.label).labels
    known = found.config.label_names
    if found.kind.__name__.endswith("ForSequenceClassification") and known and not given.task.new_head:  # type: ignore[attr-defined]
        check_labels(labels, known)
        return config
    return replace(config, labels=len(labels), label_names=labels, problem_type=None)


def with_dropout(config: Any, probability: float) -> Any:
    """The configuration with this probability at all places with dropout."""
    names = {field.name for field in dataclasses.fields(config) if field.name.endswith("dropout")}
    return replace(config, **dict.fromkeys(names, probability))
