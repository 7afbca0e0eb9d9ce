"""`minillm finetune TASK MODEL --data FILE`: teach a trained model a task.

A command is a dataclass and a function of one line. The dataclass has the options of `minillm train` that are left when
the model is given, with defaults for this task, and the options of the task itself, which `TrainConfig.task` holds.
Every run is continued with `minillm train --resume RUN`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from minillm.commands.train import Train, check_effect, config_of, run_ranks, starting_model
from minillm.errors import InputError
from minillm.options import Positional, filled, scan
from minillm.training.tasks import task_class


@dataclass(frozen=True)
class Finetune(Train):
    """Teach a trained model a task; the base of the commands of all tasks."""

    no_options: ClassVar[tuple[str, ...]] = (
        *("preset", "field", "tokenizer", "architecture", "objective", "model", "init", "resume"),
    )
    start: Positional[str] = dataclasses.field(default="", metadata={"name": "model"})
    """Model to start from: a run directory, a Hugging Face folder, a .safetensors, a .gguf, or a LoRA adapter."""
    lr: float = 2e-5
    """Peak learning rate; with --lora ten times as much unless it is given."""
    steps: int = 300
    """Number of optimiser steps."""
    batch_size: int = 8
    """Rows of examples per step."""
    eval_every: int = 50
    """Steps between validations, each of which also saves."""
    sample_every: int = 100
    """Steps between previews of held-out data; 0 for none."""
    validation_fraction: float = 0.1
    """Share of the data that is held out and never trained on."""
    weight_decay: float = 0.0
    """Decay of matrices; biases and normalisation weights are not decayed."""


@dataclass(frozen=True)
class FinetuneSft(Finetune):
    """Teach a model to answer instructions and to hold conversations, from examples of both."""

    data: str = ""
    """A .jsonl or .json file of records: messages, conversations, instruction and output, or prompt and completion."""


def finetune_sft(arguments: list[str]) -> None:
    """Supervised fine-tuning; training/tasks/sft.py."""
    finetune("sft", FinetuneSft, arguments)


@dataclass(frozen=True)
class FinetuneDpo(Finetune):
    """Teach a model which of two answers is better, by DPO and its family, from pairs of answers."""

    data: str = ""
    """A .jsonl or .json file of records: a prompt, an instruction or messages, with answers chosen and rejected."""
    batch_size: int = 8
    """Pairs per step."""
    lr: float = 1e-6
    """Peak learning rate; with LoRA some 20 times as much."""


def finetune_dpo(arguments: list[str]) -> None:
    """Direct preference optimisation; training/tasks/preference.py."""
    finetune("dpo", FinetuneDpo, arguments, "preference")


@dataclass(frozen=True)
class FinetuneReward(Finetune):
    """Teach a model to score answers, from pairs of a better and a worse one."""

    data: str = ""
    """A .jsonl or .json file of records: a prompt, an instruction or messages, with answers chosen and rejected."""
    batch_size: int = 8
    """Pairs per step."""


def finetune_reward(arguments: list[str]) -> None:
    """A reward model; training/tasks/reward.py."""
    finetune("reward", FinetuneReward, arguments)


@dataclass(frozen=True)
class FinetuneGrpo(Finetune):
    """Let a model learn from rewards of the answers that it samples itself, by GRPO."""

    data: str = ""
    """A .jsonl or .json file of prompts with answers to check, as for sft; or `builtin`, sums that are made here."""
    batch_size: int = 64
    """Answers per step, a multiple of --group-size."""
    eval_batches: int = 20
    """Validation batches, the same at every validation, which measures 1 - the mean reward of held-out prompts."""
    lr: float = 1e-6
    """Peak learning rate; for small models and with LoRA some 20 times as much."""


def finetune_grpo(arguments: list[str]) -> None:
    """Group relative policy optimisation; training/tasks/grpo.py."""
    finetune("grpo", FinetuneGrpo, arguments)


def finetune(task: str, kind: type[Finetune], arguments: list[str], objective: str | None = None) -> None:
    """Read the options of a task's command, open the model that is named, and train it."""
    command, objective = f"finetune {task}", objective or task
    before = kind(objective=objective, architecture=next(iter(task_class(objective).models)))
    values = scan(kind, command, arguments, before)
    given = filled(kind, command, values, before)
    for name, shown, example in (("start", "MODEL", "runs/mine"), ("data", "--data", "--data records.jsonl")):
        if not getattr(given, name):
            raise InputError(f"{command}: {shown} is missing; write minillm {command} {example} ...")
    check_effect(command, values, given)
    if given.lora and ("lr",) not in values:
        given = dataclasses.replace(given, lr=10 * given.lr)
    start = starting_model(given.start, command)
    run_ranks(command, arguments, config_of(given, **start, preset=f"{Path(given.start).stem}-{task}"), given)
