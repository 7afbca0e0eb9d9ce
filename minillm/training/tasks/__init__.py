"""The tasks of training: one file for each, with its data, its loss, what is measured, and what is shown.

`TASKS` has their names; `task_class` imports the file of a name when it is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from minillm.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from minillm.training.tasks.task import Task

TASKS = {
    "causal": "CausalTask",
    "masked": "MaskedTask",
    "permutation": "PermutationTask",
    "denoising": "DenoisingTask",
    "pairs": "PairsTask",
    "sft": "SFTTask",
    "classify": "ClassifyTask",
    "qa": "QATask",
    "preference": "PreferenceTask",
    "reward": "RewardTask",
    "grpo": "GRPOTask",
}


def task_class(name: str) -> type[Task]:
    """The class of a task, minillm/training/tasks/NAME.py.

    Raises: InputError for an unknown name, with the nearest known one.
    """
    if name not in TASKS:
        raise InputError(f"train: there is no objective {name!r}{did_you_mean(name, TASKS)}")
    return getattr(importlib.import_module(f"minillm.training.tasks.{name}"), TASKS[name])
